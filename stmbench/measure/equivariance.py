"""Do a network's features move with the image? The protocol equivariance/1 (docs/analysis.md), by level.

Zhang 2019, "Making Convolutional Networks Shift-Invariant Again" (arXiv:1904.11486), compares internal
features of a shifted image with the shifted features of the image, by cosine. Departures: the image moves
over a canvas, where his goes round in a circle (with no border, which real images have); only the interior
is compared; each channel is centred, since features that share a mean resemble each other however they
move; shifts are in cells of the level, fractions of one included, so that levels of different strides can
be compared.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from stmbench.data.canvas import central
from stmbench.measure.sweep import Estimate, interval, resampled

CELLS = (0.25, 0.5, 0.75, 1.0, 2.0)  # shifts, as far as they are whole pixels
BORDER = 8  # this part of a map's side is left out on each side, at least one cell

Features = Callable[[Tensor], Sequence[Tensor]]


class Level(NamedTuple):
    """One map of features (C, H, W) that a network makes of an image."""

    stride: int  # pixels of the image per cell
    height: int
    width: int

    def pixels(self) -> dict[int, float]:
        """The shifts that are measured: pixels -> cells, where an interior is left."""
        shifts = {round(self.stride * cells): cells for cells in CELLS if self.stride * cells % 1 == 0}
        return {
            pixels: cells
            for pixels, cells in shifts.items()
            if all(_overlap(self.height, self.width, axis, cells) for axis in (0, 1))
        }


class Result(NamedTuple):
    """How alike the features are, 1 for the same; NaN has a `reason`."""

    level: int  # from 1
    cells: float
    estimate: Estimate
    reason: str = ""


def features_of(model: nn.Module) -> Features:
    """A function from images to the features of all levels; ValueError if the network hands none out."""
    hand_out = getattr(model, "forward_intermediates", None)
    if hand_out is None:
        raise ValueError("it hands out no features of its levels")
    return lambda images: hand_out(images, intermediates_only=True, output_fmt="NCHW")


def levels_of(model: nn.Module, features: Features, image: Tensor) -> list[Level]:
    """The levels of a network as it takes `image` (1, C, H, W); ValueError where they cannot be compared."""
    try:
        maps = features(image)
        info = getattr(model, "feature_info")  # noqa: B009 - the type checker takes it for a tensor
        strides = [int(each["reduction"]) for each in info]
        sizes = [found.shape[2:] for found in maps]
        return [Level(stride, *size) for stride, size in zip(strides, sizes, strict=True)]
    except Exception as error:  # each model of timm's fails in its own way
        why = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"the features of its levels cannot be compared ({why.rstrip('.')})") from error


class Comparison:
    """Accumulates, image by image, what the likeness of plain and shifted features is computed from."""

    def __init__(self, levels: Sequence[Level], size: int) -> None:
        self.levels, self.size = levels, size
        self.pixels = sorted({pixels for level in levels for pixels in level.pixels()})
        self.margin = max(self.pixels, default=0)  # that a canvas needs around the window
        self._rows: dict[tuple[int, float], list[Tensor]] = defaultdict(list)
        self._centres: list[Tensor] = []

    def add(self, canvas: Tensor, features: Features) -> None:
        """The images of a batch, (B, C, S, S), whose windows are moved down and to the right."""
        plain = [found.float() for found in features(central(canvas, self.size))]
        # Sums of squares lose digits far from the mean; the first batch's is near enough, and cancels out.
        self._centres = self._centres or [found.mean((0, 2, 3), keepdim=True) for found in plain]
        for pixels in self.pixels:
            down, right = (features(central(canvas, self.size, *step)) for step in ((pixels, 0), (0, pixels)))
            for place, level in enumerate(self.levels):
                if (cells := level.pixels().get(pixels)) is None:
                    continue
                still, centre = plain[place] - self._centres[place], self._centres[place]
                moved = (down[place].float() - centre, right[place].float() - centre)
                rows = [_sums(still, each, axis, cells) for axis, each in enumerate(moved)]
                self._rows[place, cells].append(torch.stack(rows).mean(0))

    def results(self, readable: np.ndarray) -> Iterator[Result]:
        """One number for every level and shift; `readable` (N,) bool says which of the added images count."""
        for place, level in enumerate(self.levels):
            for cells in CELLS:
                if level.stride * cells % 1:
                    continue
                rows = self._rows.get((place, cells))
                if rows is None:
                    reason = f"a map of {level.height}x{level.width} cells has no interior left"
                    yield Result(place + 1, cells, Estimate(np.nan), reason)
                    continue
                columns = torch.cat(rows).double().cpu().numpy()[readable]  # (N, 2 C + 3)
                value = float(_cosine(columns.mean(axis=0)))
                if np.isnan(value):
                    yield Result(place + 1, cells, Estimate(np.nan), "features that do not vary")
                    continue
                yield Result(place + 1, cells, interval(value, _cosine(resampled(columns))))


def _overlap(height: int, width: int, axis: int, cells: float) -> tuple[slice, slice] | None:
    """The cells of a map that are still within its border when moved along an axis; None if none."""
    sides = [height, width]
    borders = [max(1, side // BORDER) for side in sides]
    ends = [side - border for side, border in zip(sides, borders, strict=True)]
    ends[axis] = int(ends[axis] - 1 - cells) + 1 if ends[axis] - 1 >= cells else 0
    if any(end <= border for end, border in zip(ends, borders, strict=True)):
        return None
    rows, columns = (slice(border, end) for border, end in zip(borders, ends, strict=True))
    return rows, columns


def _sums(still: Tensor, moved: Tensor, axis: int, cells: float) -> Tensor:
    """Means per image over the interior: of both features' channels, and of their products over all channels.

    Cell j of the moved image's features shows what cell j + `cells` showed, between two cells both in part.

    Returns:
        (B, 2 C + 3).
    """
    overlap = _overlap(still.shape[2], still.shape[3], axis, cells)
    assert overlap is not None
    whole, part = int(cells), cells % 1
    window = list(overlap)
    window[axis] = slice(window[axis].start + whole, window[axis].stop + whole)
    a = still[(..., *window)]  # (B, C, h, w)
    if part:
        window[axis] = slice(window[axis].start + 1, window[axis].stop + 1)
        a = torch.lerp(a, still[(..., *window)], part)
    b = moved[(..., *overlap)]
    products = [(x * y).sum(1).mean((1, 2)) for x, y in ((a, b), (a, a), (b, b))]  # (B,) each
    return torch.cat([a.mean((2, 3)), b.mean((2, 3)), torch.stack(products, 1)], 1)


def _cosine(means: np.ndarray) -> np.ndarray:
    """Of the centred features, from means (..., 2 C + 3) over images and positions; NaN if one is flat."""
    a, b = np.split(means[..., :-3], 2, axis=-1)  # (..., C)
    ab, aa, bb = (means[..., i] - (x * y).sum(-1) for i, x, y in ((-3, a, b), (-2, a, a), (-1, b, b)))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where((aa > 0) & (bb > 0), ab / np.sqrt(aa * bb), np.nan)
