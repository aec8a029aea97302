"""Images with their objects, resized, mirrored and cropped together.

Plain resizing brings the shorter side to so many pixels, or the longer one to its own limit (Lin et al. 2017,
arXiv:1612.03144). Large-scale jitter (Ghiasi et al. 2021, arXiv:2012.07177) resizes an image by a random
factor of what fits into a square, and takes a random window of that size; what the image leaves of the window
is filled. Here only the window is resampled, not the whole image, which is the same but for rounding.

An image is (3, H, W) uint8; a target has boxes, labels, area and iscrowd, and masks where there are some.
"""

import math

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as v2

from stmbench.data.detection import Target

Scene = tuple[Tensor, Target]


def resized_size(height: int, width: int, short_side: int, long_side: int) -> tuple[int, int]:
    """Height and width after plain resizing."""
    scale = min(short_side / min(height, width), long_side / max(height, width))
    return _rounded(height * scale), _rounded(width * scale)


def resized(scene: Scene, height: int, width: int) -> Scene:
    """The scene at another size."""
    rows, columns = scene[0].shape[-2:]
    return _window(scene, (0, 0, rows, columns), (height, width))


def mirrored(scene: Scene) -> Scene:
    """Left to right."""
    image, target = scene
    changed = dict(target)
    boxes, width = target["boxes"], image.shape[-1]
    changed["boxes"] = torch.stack(
        [width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], dim=1
    )  # (N, 4)
    if "masks" in target:
        changed["masks"] = target["masks"].flip(-1)
    return image.flip(-1), changed


def jittered(
    scene: Scene, jitter: tuple[float, float], size: int, fill: tuple[int, ...], random: np.random.Generator
) -> Scene:
    """A window of `size` pixels squared, filled on the right and below where the image ends.

    Objects of which nothing is left are left out.
    """
    height, width = scene[0].shape[-2:]
    scale = size / max(height, width) * random.uniform(*jitter)
    sides = [min(side, size / scale) for side in (height, width)]  # of the window, in pixels of the image
    rows, columns = (max(1, _rounded(side)) for side in sides)
    top, left = int(random.integers(height - rows + 1)), int(random.integers(width - columns + 1))
    tall, wide = (min(size, max(1, _rounded(side * scale))) for side in sides)
    image, target = _visible(_window(scene, (top, left, rows, columns), (tall, wide)))
    canvas = torch.tensor(fill, dtype=torch.uint8)[:, None, None].repeat(1, size, size)  # (3, size, size)
    canvas[:, :tall, :wide] = image
    if "masks" in target:
        target["masks"] = v2.pad(target["masks"], [0, 0, size - wide, size - tall])  # (N, size, size)
    return canvas, target


def _window(scene: Scene, window: tuple[int, int, int, int], size: tuple[int, int]) -> Scene:
    """A window (top, left, height, width) of the scene at another size; boxes are cut off at its edges."""
    image, target = scene
    top, left, height, width = window
    scale = torch.tensor([size[1] / width, size[0] / height] * 2)
    boxes = (target["boxes"] - torch.tensor([left, top] * 2)) * scale  # (N, 4)
    limits = torch.tensor([size[1], size[0]] * 2)
    changed = target | {
        "boxes": torch.minimum(boxes.clamp(min=0), limits),
        "area": target["area"] * float(scale[0] * scale[1]),
    }
    if "masks" in target:
        nearest = InterpolationMode.NEAREST_EXACT
        changed["masks"] = v2.resized_crop(target["masks"], *window, list(size), nearest)  # (N, *size)
    return v2.resized_crop(image, *window, list(size), antialias=True), changed


def _visible(scene: Scene) -> Scene:
    """Without the objects of which nothing is left."""
    image, target = scene
    boxes = target["boxes"]
    kept = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])  # (N,)
    if "masks" in target:
        kept &= target["masks"].sum((1, 2)) > 0
    return image, {key: value[kept] if isinstance(value, Tensor) else value for key, value in target.items()}


def _rounded(side: float) -> int:
    return math.floor(side + 0.5)
