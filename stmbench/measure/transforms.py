"""Transformations of image batches on the device, for the protocol invariance/1 (docs/analysis.md).

Every network gets the same changes of the same image, whatever the batch. Pixels are real-valued from the
canvas on: nothing is rounded but what a file format rounds. At its strength in `references` a
transformation does nothing.

Departures from Hu et al. 2022 (arXiv:2211.05781), whose transformations these repair and extend: the window
moves in all eight directions, what lies beyond the image is its reflection and never black, and corners
that a turned crop leaves open have the mean colour. Blur, noise, contrast and JPEG are in the manner of
Hendrycks & Dietterich 2019 (arXiv:1903.12261), with strengths of our own.
"""

import functools
import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.v2 import functional as v2

from stmbench.data.canvas import Variant, Views, central, reflect
from stmbench.recipe import Data, Invariance

# Where the window moves: (down, right), times the strength along each axis.
DIRECTIONS = {
    "E": (0, 1), "NE": (-1, 1), "N": (-1, 0), "NW": (-1, -1),
    "W": (0, -1), "SW": (1, -1), "S": (1, 0), "SE": (1, 1),
}  # fmt: skip
MADE = ("scale", "jpeg")  # by the loader, from the decoded image
_REFERENCES = {
    "translation": 0.0, "rotation_before": 0.0, "rotation_after": 0.0, "flip": 0.0, "blur": 0.0, "noise": 0.0,
    "contrast": 1.0,
}  # fmt: skip
_BLUR_REACH = 3  # standard deviations


def references(crop_pct: float) -> dict[str, float]:
    """The strength at which a transformation does nothing; JPEG has none."""
    return _REFERENCES | {"scale": crop_pct}


def variants(settings: Invariance, crop_pct: float) -> list[Variant]:
    """Every change that the recipe asks for, each once, without those that change nothing."""
    strengths = {
        "translation": settings.translation,
        "rotation_before": settings.rotation,
        "rotation_after": settings.rotation,
        "scale": settings.scale,
        "flip": (1,) if settings.flip else (),
        "jpeg": settings.jpeg,
        "blur": settings.blur,
        "noise": settings.noise,
        "contrast": settings.contrast,
    }
    neutral = references(crop_pct)
    return [
        Variant(transform, strength, direction)
        for transform, values in strengths.items()
        for strength in sorted({float(value) for value in values} - {neutral.get(transform)})
        for direction in (DIRECTIONS if transform == "translation" else ("",))
    ]


def margin_for(chosen: Sequence[Variant], size: int) -> int:
    """Pixels that a canvas needs around a window of `size` pixels, so that no variant sees its edge."""
    moved = [math.ceil(variant.strength) for variant in chosen if variant.transform == "translation"]
    turned = any(variant.transform == "rotation_before" for variant in chosen)
    corner = math.ceil((math.sqrt(2) - 1) / 2 * size) + 2  # bicubic interpolation reads two pixels further
    return max([0, *moved, corner * turned])


class Batch:
    """The views of B images on a device, and every transformation of them, normalised for the network."""

    def __init__(self, views: Views, made: Sequence[Variant], data: Data, device: str) -> None:
        self.size = data.image_size
        shape = (1, data.channels, 1, 1)
        mean, std = ([255 * value for value in values] for values in (data.mean, data.std))  # as timm does
        self._mean, self._std = _constant((*mean,), shape, device), _constant((*std,), shape, device)
        self._places = {variant: place for place, variant in enumerate(made)}
        views = {name: view.to(device, non_blocking=True) for name, view in views.items()}
        self._made, self.noise = views["made"], views["noise"]
        self.pixels = central(views["canvas"], self.size).float()  # (B, C, H, W), 0 to 255
        self.canvas = self.normalise(views["canvas"])  # (B, C, S, S)

    @property
    def plain(self) -> Tensor:
        """(B, C, H, W)."""
        return central(self.canvas, self.size)

    def apply(self, variant: Variant) -> Tensor:
        """The images changed, (B, C, H, W)."""
        if variant in self._places:
            return self.normalise(self._made[:, self._places[variant]])
        return _TRANSFORMS[variant.transform](self, variant)

    def normalise(self, pixels: Tensor) -> Tensor:
        """Numbers from 0 to 255 as the network is fed with them, by the arithmetic of timm's loader."""
        return pixels.to(torch.float32, copy=True).sub_(self._mean).div_(self._std)

    def turned(self, source: Tensor, degrees: float, beyond: str) -> Tensor:
        """The window of `source` (B, C, S, S) whose content is turned counter-clockwise about its centre."""
        spots = torch.arange(self.size, device=source.device) - (self.size - 1) / 2
        y, x = torch.meshgrid(spots, spots, indexing="ij")
        cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
        grid = torch.stack([x * cos - y * sin, x * sin + y * cos], -1) * (2 / source.shape[-1])  # (H, W, 2)
        grid = grid.expand(len(source), -1, -1, -1)  # (B, H, W, 2)
        found = F.grid_sample(source, grid, "bicubic", padding_mode=beyond, align_corners=False)
        black, white = (0 - self._mean) / self._std, (255 - self._mean) / self._std
        return found.clamp_(black, white)  # bicubic interpolation overshoots


def _translation(batch: Batch, variant: Variant) -> Tensor:
    down, right = (int(variant.strength) * step for step in DIRECTIONS[variant.direction])
    return central(batch.canvas, batch.size, down, right)


def _rotation_before(batch: Batch, variant: Variant) -> Tensor:
    return batch.turned(batch.canvas, variant.strength, "border")


def _rotation_after(batch: Batch, variant: Variant) -> Tensor:
    return batch.turned(batch.plain, variant.strength, "zeros")  # 0 is the mean colour


def _flip(batch: Batch, variant: Variant) -> Tensor:
    return batch.plain.flip(-1)


def _blur(batch: Batch, variant: Variant) -> Tensor:
    weights = _blur_weights(batch.size, variant.strength, str(batch.canvas.device))
    return weights @ batch.plain @ weights.T


def _noise(batch: Batch, variant: Variant) -> Tensor:
    return batch.normalise((batch.pixels + 255 * variant.strength * batch.noise).clamp_(0, 255))


def _contrast(batch: Batch, variant: Variant) -> Tensor:
    return batch.normalise(255 * v2.adjust_contrast(batch.pixels / 255, variant.strength))


_TRANSFORMS: dict[str, Callable[[Batch, Variant], Tensor]] = {
    "translation": _translation,
    "rotation_before": _rotation_before,
    "rotation_after": _rotation_after,
    "flip": _flip,
    "blur": _blur,
    "noise": _noise,
    "contrast": _contrast,
}


@functools.lru_cache(maxsize=64)
def _constant(values: tuple[float, ...], shape: tuple[int, ...], device: str) -> Tensor:
    """On the device once: copying from ordinary memory would wait for all that is queued there."""
    return torch.tensor(values, device=device).view(shape)


@functools.lru_cache(maxsize=64)
def _blur_weights(size: int, sigma: float, device: str) -> Tensor:
    """(H, H): a Gaussian along one axis with reflection at the ends, as a matrix.

    Two products with it are ten times as fast as torchvision's convolution with a square kernel.
    """
    spots = np.arange(-math.ceil(_BLUR_REACH * sigma), math.ceil(_BLUR_REACH * sigma) + 1)
    bell = np.exp(-0.5 * (spots / sigma) ** 2)
    weights = np.zeros((size, size))
    rows = np.arange(size)[:, None]
    np.add.at(weights, (rows, reflect(rows + spots, size)), bell / bell.sum())
    return torch.tensor(weights, dtype=torch.float32, device=device)
