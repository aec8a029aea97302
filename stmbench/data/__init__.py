"""Data sets found by name or path, and loaders of their images.

What others use of this package is what it lists here.
"""

from stmbench.data.images import Images, Stream, UnreadableImagesError
from stmbench.data.info import DataInfo, Part, spread
from stmbench.data.loaders import Loader, eval_loader, mixup, seed_epoch, train_loader
from stmbench.data.sources import find

__all__ = [
    "DataInfo",
    "Images",
    "Loader",
    "Part",
    "Stream",
    "UnreadableImagesError",
    "eval_loader",
    "find",
    "mixup",
    "seed_epoch",
    "spread",
    "train_loader",
]
