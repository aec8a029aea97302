"""Data sets found by name or path, and loaders of their images.

What others use of this package is what it lists here.
"""

from stmbench.data import masks
from stmbench.data.canvas import Canvases, Variant, canvas_loader
from stmbench.data.detection import DetectionInfo
from stmbench.data.detection_loaders import DetectionLoader, detection_eval_loader, detection_train_loader
from stmbench.data.images import Images, Stream, UnreadableImagesError
from stmbench.data.info import DataInfo, Part, spread
from stmbench.data.loaders import Batches, Loader, eval_loader, loader_rate, mixup, train_loader
from stmbench.data.published import PublishedImages
from stmbench.data.robustness import ALEXNET_ERRORS, RobustnessFolder, find_robustness
from stmbench.data.sampling import set_seed
from stmbench.data.sources import find, find_detection

__all__ = [
    "ALEXNET_ERRORS",
    "Batches",
    "Canvases",
    "DataInfo",
    "DetectionInfo",
    "DetectionLoader",
    "Images",
    "Loader",
    "Part",
    "PublishedImages",
    "RobustnessFolder",
    "Stream",
    "UnreadableImagesError",
    "Variant",
    "canvas_loader",
    "detection_eval_loader",
    "detection_train_loader",
    "eval_loader",
    "find",
    "find_detection",
    "find_robustness",
    "loader_rate",
    "masks",
    "mixup",
    "set_seed",
    "spread",
    "train_loader",
]
