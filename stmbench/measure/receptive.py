"""Effective receptive fields: what of an image the centre of each level's output sees, map and numbers.

Luo et al. 2016, "Understanding the Effective Receptive Field in Deep Convolutional Neural Networks"
(arXiv:1701.04128): the gradient of the centre of a feature map with respect to the image. As Hu et al. 2022
(arXiv:2211.05781) take it: of the sum of the features after a ReLU, its positive part, summed over colours,
averaged over images. Departures: shares of the mass are of that map itself; its logarithm, log10(x + 1), is
customary, and moves them with the mere scale of the gradient. The centre pixel is where a padded, strided
convolution looks. The shares of squares have intervals, by a bootstrap over images (Efron 1979).

All that a square's share needs of an image is the image's mass within the square of each radius. These masses
add up over images, so that no image's own map is kept.

Shapes: B images of a batch, N of all of them, H x W pixels, h x w positions, R radii of squares.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

SHARES = (20, 30, 50, 99)  # per cent of the mass
RESAMPLES = 2000
_TAILS = (0.025, 0.975)
_EXACT = 1 - 1e-9  # masses that are equal but for the order in which they were summed are equal

Features = Callable[[Tensor], Sequence[Tensor]]  # images (B, C, H, W) -> a feature map (B, c, h, w) per level
Pair = tuple[int, int]  # along the height, along the width


@dataclass(frozen=True, slots=True)
class Square:
    """A square around the centre pixel; what of it lies outside the image counts for its side alone."""

    side: int  # pixels, odd
    area: float  # per cent of the image


@dataclass(frozen=True, slots=True)
class Estimate:
    """The smallest square that holds a share of the mass, with the ends of its 95 % interval."""

    value: Square
    low: Square
    high: Square


class Field:
    """The effective receptive field of one level, gathered a batch at a time.

    `size` is that of the images, `grid` that of the level's output, `stride` the pixels from one of its
    positions to the next.
    """

    def __init__(self, size: Pair, grid: Pair, stride: int, device: torch.device) -> None:
        self.grid = grid
        self.centre = centre(size, grid, stride)
        rows, columns = (
            (torch.arange(length, device=device) - middle).abs()
            for length, middle in zip(size, self.centre, strict=True)
        )
        radius = torch.maximum(rows[:, None], columns).flatten()  # (H W,) of the square that a pixel lies on
        self._inside_out = radius.argsort()
        self._pixels = radius.bincount().cumsum(0)  # (R,) in the square of each radius, clipped at the border
        self._sum = torch.zeros(size, dtype=torch.float64, device=device)
        self._masses: list[Tensor] = []

    def add(self, gradients: Tensor) -> None:
        """Add the positive gradients (B, H, W) of some images."""
        gradients = gradients.double()
        self._sum += gradients.sum(0)
        within = gradients.flatten(1)[:, self._inside_out].cumsum(1)  # (B, H W)
        self._masses.append(within[:, self._pixels - 1].cpu())  # (B, R)

    @property
    def failure(self) -> str:
        """Why there is no field, or ""."""
        if not self._sum.isfinite().all():
            return "its gradient is not finite"
        return "" if self._sum.any() else "no positive gradient reaches the image"

    @property
    def map(self) -> np.ndarray:
        """(H, W) float64 of sum 1, as all that follows for a field without a `failure`."""
        return (self._sum / self._sum.sum()).cpu().numpy()

    def squares(self) -> Mapping[int, Estimate]:
        """The smallest centred square for each of `SHARES`."""
        found = radii(torch.cat(self._masses).numpy())
        return {share: Estimate(*map(self._square, interval)) for share, interval in found.items()}

    def _square(self, radius: int) -> Square:
        return Square(2 * radius + 1, 100 * int(self._pixels[radius]) / self._sum.numel())

    def densest(self, share: float) -> float:
        """The smallest set of pixels, wherever they are, that holds so many per cent; in per cent of all."""
        within = np.sort(self.map, axis=None)[::-1].cumsum()  # (H W,)
        return 100 * float(_first(within, share) + 1) / within.size

    def offset(self) -> float:
        """From the centre pixel to the map's centroid, in pixels."""
        mass, (y, x) = self.map, self.centre
        rows, columns = np.indices(mass.shape)
        return float(np.hypot((mass * (rows - y)).sum(), (mass * (columns - x)).sum()))


class Fields:
    """The fields of every level of a network, gathered a batch at a time.

    `features` hands out a map per level, and `strides` says how many pixels lie between its positions.
    """

    def __init__(self, features: Features, strides: Sequence[int]) -> None:
        self._features, self._strides = features, strides
        self.levels: list[Field] = []  # none before the first images

    def add(self, images: Tensor) -> None:
        """Look at some images (B, C, H, W): one pass forward, and one back from each level."""
        images = images.detach().requires_grad_()
        with torch.enable_grad():
            maps = self._features(images)  # (B, c, h, w) each
            middles = [x[:, :, x.shape[2] // 2, x.shape[3] // 2].relu().sum() for x in maps]
        for level, (middle, stride) in enumerate(zip(middles, self._strides, strict=True)):
            (gradient,) = torch.autograd.grad(middle, images, retain_graph=True)
            positive = gradient.clamp(min=0).sum(1)  # (B, H, W)
            positive = positive.cpu() if positive.is_mps else positive  # float64 is unknown there
            if level == len(self.levels):
                size, grid = (_pair(x.shape) for x in (images, maps[level]))
                self.levels.append(Field(size, grid, stride, positive.device))
            self.levels[level].add(positive)


def centre(size: Pair, grid: Pair, stride: int) -> Pair:
    """The pixel that the middle position (h // 2, w // 2) of a grid looks at.

    Under padded, strided convolutions position i looks at the surroundings of the pixel i * stride.
    """
    row, column = (min(places // 2 * stride, pixels - 1) for pixels, places in zip(size, grid, strict=True))
    return row, column


def radii(masses: np.ndarray) -> Mapping[int, tuple[int, int, int]]:
    """The smallest radius that holds each of `SHARES` of N images' mass, and its 95 % interval over images.

    `masses` (N, R) are those of each image within the square of each radius. The interval lies between
    percentiles of a bootstrap, whose draws are always the same.
    """
    rng, images = np.random.default_rng(0), len(masses)
    draws = (rng.multinomial(images, np.full(images, 1 / images)) for _ in range(RESAMPLES))  # (N,) each
    resampled = np.stack([draw @ masses for draw in draws])  # (RESAMPLES, R)
    found = {}
    for share in SHARES:
        low, high = np.quantile(_first(resampled, share), _TAILS, method="inverted_cdf").tolist()
        found[share] = int(_first(masses.sum(0), share)), low, high
    return found


def _first(within: np.ndarray, share: float) -> np.ndarray:
    """Along the last axis of rising masses, the first place that has so many per cent of the last one."""
    return (within >= share / 100 * _EXACT * within[..., -1:]).argmax(-1)


def _pair(shape: torch.Size) -> Pair:
    return shape[-2], shape[-1]
