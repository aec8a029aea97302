"""Data sets found by name or path, and loaders of their images.

What others use of this package is what it lists here.
"""

from stmbench.data.canvas import Canvases, Variant, canvas_loader
from stmbench.data.images import Images, Stream, UnreadableImagesError
from stmbench.data.info import DataInfo, Part, spread
from stmbench.data.loaders import Loader, eval_loader, mixup, seed_epoch, train_loader
from stmbench.data.published import PublishedImages
from stmbench.data.robustness import ALEXNET_ERRORS, RobustnessFolder, find_robustness
from stmbench.data.sources import find

__all__ = [
    "ALEXNET_ERRORS",
    "Canvases",
    "DataInfo",
    "Images",
    "Loader",
    "Part",
    "PublishedImages",
    "RobustnessFolder",
    "Stream",
    "UnreadableImagesError",
    "Variant",
    "canvas_loader",
    "eval_loader",
    "find",
    "find_robustness",
    "mixup",
    "seed_epoch",
    "spread",
    "train_loader",
]
