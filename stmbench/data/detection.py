"""What a detection data set is to the rest of the program: images, the objects on them, and their classes.

An annotation is a dict in COCO's terms (Lin et al. 2014, arXiv:1405.0312): ``bbox`` [left, top, width,
height] in pixels, ``category_id``, ``area``, ``iscrowd``, ``id`` and, in a set with masks, ``segmentation``.
Labels count the categories from 1, as torchvision's detectors want them; 0 is what is no object.
"""

import pickle
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from stmbench.data import masks
from stmbench.data.images import as_mode
from stmbench.data.info import Reader

Annotation = Mapping[str, Any]
Target = dict[str, Any]


class Packed:
    """The annotations of many images in one array: loader processes share it instead of copying it."""

    def __init__(self, images: Iterable[Sequence[Annotation]]) -> None:
        parts = [pickle.dumps(list(each), pickle.HIGHEST_PROTOCOL) for each in images]
        self._bytes = np.frombuffer(b"".join(parts), np.uint8)
        self._ends = np.cumsum([len(part) for part in parts])  # (N,)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> list[Annotation]:
        start = self._ends[index - 1] if index else 0
        return pickle.loads(self._bytes[start : self._ends[index]].tobytes())


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """The training or the validation images: item `i` is ``(RGB image, target)``.

    A target has `boxes` (N, 4) float32, left, top, right and bottom in pixels, cut off at the image's edges;
    `labels` (N,) int64 from 1; `area` (N,) float32; `iscrowd` (N,) int64; `image_id`; and in a set with masks
    `masks` (N, H, W) uint8. In training crowds and boxes without an inside are left out, as all who train on
    COCO do; evaluation reads `annotations`, with all of them.
    """

    reader: Reader  # of images, whose labels mean nothing
    training: bool
    image_ids: Sequence[int]
    sizes: Sequence[tuple[int, int]]  # height and width
    annotations: Packed
    labels: Mapping[int, int]  # by category
    has_masks: bool

    def __len__(self) -> int:
        return len(self.image_ids)

    def __getitem__(self, index: int) -> tuple[Image.Image, Target]:
        return self.image(index), self.target(index)

    def filename(self, index: int) -> str:
        return self.reader.filename(index)

    def image(self, index: int) -> Image.Image:
        """The image.

        Raises:
            ValueError: it is not as large as its annotations say.
            OSError: it cannot be read.
        """
        source, _ = self.reader[index]
        if isinstance(source, Image.Image):
            image = as_mode(source, "RGB")
        else:
            with source, Image.open(source) as opened:
                image = as_mode(opened, "RGB")
        height, width = self.sizes[index]
        if image.size != (width, height):
            raise ValueError(f"it is {image.width} x {image.height} pixels, annotated as {width} x {height}")
        return image

    def target(self, index: int) -> Target:
        height, width = self.sizes[index]
        found = self.annotations[index]
        if self.training:
            found = [each for each in found if is_trained_on(each, height, width)]
        target: Target = {
            "boxes": torch.tensor([corners(each, height, width) for each in found]).reshape(-1, 4),  # (N, 4)
            "labels": torch.tensor([self.labels[each["category_id"]] for each in found], dtype=torch.int64),
            "area": torch.tensor([each["area"] for each in found], dtype=torch.float32),
            "iscrowd": torch.tensor([each["iscrowd"] for each in found], dtype=torch.int64),
            "image_id": self.image_ids[index],
        }
        if self.has_masks:
            target["masks"] = self._masks(index, found)
        return target

    def _masks(self, index: int, found: Sequence[Annotation]) -> Tensor:
        """(N, H, W) uint8."""
        return torch.from_numpy(masks.decode([each["segmentation"] for each in found], *self.sizes[index]))


@dataclass(frozen=True, slots=True, kw_only=True)
class DetectionInfo:
    """A detection data set that was found. Its fingerprint tells it from others, wherever it lies."""

    name: str
    source: str  # what `find_detection` takes to find it again
    num_classes: int  # K, without the background
    fingerprint: str  # twelve hexadecimal digits
    class_names: tuple[str, ...]  # of the labels 1..K
    category_ids: tuple[int, ...]  # of the labels 1..K, as in the annotations
    has_masks: bool
    notes: tuple[str, ...] = ()  # what a user should know of it, a line each
    train: Split = field(repr=False, compare=False)
    val: Split = field(repr=False, compare=False)

    @property
    def num_train(self) -> int:
        return len(self.train)

    @property
    def num_val(self) -> int:
        return len(self.val)


def corners(annotation: Annotation, height: int, width: int) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of a box within its image."""
    x, y, w, h = map(float, annotation["bbox"])
    right, bottom = min(max(x + w, 0.0), width), min(max(y + h, 0.0), height)
    return min(max(x, 0.0), width), min(max(y, 0.0), height), right, bottom


def is_trained_on(annotation: Annotation, height: int, width: int) -> bool:
    """Whether it is one object with a box that has an inside."""
    left, top, right, bottom = corners(annotation, height, width)
    return not annotation["iscrowd"] and right > left and bottom > top
