"""Images prepared for transformations: each is decoded once, and what needs the decoded image is made there.

A *window* is what the network sees: `image_size` pixels squared. A *canvas* is the same resized image
beyond the window, so that the window can move and turn over it. Where the image ends it goes on as its own
reflection, as often as need be. The window at the canvas's centre is the plain crop of
`stmbench.data.eval_loader`, bit for bit.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from timm.data.transforms import str_to_interp_mode, str_to_pil_interp
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import functional as tv
from torchvision.transforms.v2 import functional as v2

from stmbench.data.images import Images
from stmbench.data.info import Part
from stmbench.data.resources import loader_processes
from stmbench.recipe import Data

Views = dict[str, Tensor]


class Variant(NamedTuple):
    """One way to change an image."""

    transform: str
    strength: float
    direction: str = ""  # of a translation: where the window moves


class Canvases(Dataset[tuple[Views, int]]):
    """Item `i` is ``(views, label)``: what any transformation of an image is made from, as uint8.

    `canvas` (C, S, S) is `margin` pixels wider than the window on each side; `made` (K, C, H, W) are
    windows that need the decoded image or a CPU, one for each variant of `made` (scale and jpeg); `noise`
    (C, H, W) float16 is a standard normal field, a function of the image's index in its data set. An image
    that cannot be decoded is blank, with the label `UNREADABLE`, and is counted by `images`.
    """

    def __init__(self, part: Part, data: Data, *, margin: int = 0, made: Sequence[Variant] = ()) -> None:
        self.images = Images(part, channels=data.channels, training=False)
        self.indices = part.indices
        self.data, self.margin, self.made = data, margin, made

    def __len__(self) -> int:
        return len(self.images)

    def check_skipped(self) -> None:
        """Raise `UnreadableImagesError` if more than 1 % of the images could not be decoded."""
        self.images.check_skipped()

    def __getitem__(self, index: int) -> tuple[Views, int]:
        image, label = self.images[index]
        return self.views(image, self.indices[index]), label

    def views(self, image: Image.Image, index: int) -> Views:
        """What is made of a decoded image, the `index`-th of its data set."""
        size = self.data.image_size
        resized = np.asarray(resize(image, shorter_side(size, self.data.crop_pct), self.data))
        plain = Image.fromarray(window(resized, size))
        canvas = as_tensor(window(resized, size, self.margin))
        noise = np.random.default_rng(index).standard_normal((self.data.channels, size, size), np.float32)
        return {
            "canvas": canvas,
            "made": stacked([self._make(variant, image, plain) for variant in self.made], canvas),
            "noise": torch.from_numpy(noise).half(),
        }

    def _make(self, variant: Variant, image: Image.Image, plain: Image.Image) -> Tensor:
        if variant.transform == "scale":
            return as_tensor(crop(image, variant.strength, self.data))
        return as_tensor(np.asarray(v2.jpeg(plain, int(variant.strength))))  # pyright: ignore[reportArgumentType]


def canvas_loader(canvases: Canvases, *, batch_size: int, device: str) -> DataLoader[Any]:
    """Batches of views and labels, in the data set's order, made ahead by the recipe's loader processes."""
    return DataLoader(
        canvases,
        batch_size,
        num_workers=loader_processes(canvases.data.workers, device),
        pin_memory=device.startswith("cuda"),
    )


def shorter_side(size: int, ratio: float) -> int:
    """Pixels of the shorter side of an image of which `size` pixels are `ratio`, as timm rounds it."""
    return max(1, math.floor(size / ratio))


def resize(image: Image.Image, shorter: int, data: Data) -> Image.Image:
    """The image with its shorter side at so many pixels, as it is resized in evaluation."""
    return tv.resize(image, [shorter], str_to_interp_mode(data.interpolation))  # pyright: ignore


def crop(image: Image.Image, ratio: float, data: Data) -> np.ndarray:
    """The plain crop for another `crop_pct`, reflected beyond the image's edges: (H, W[, 3]) uint8."""
    size, shorter = data.image_size, shorter_side(data.image_size, ratio)
    if shorter < size:
        return window(np.asarray(resize(image, shorter, data)), size)
    # Only the window is resampled: of a small crop the whole image would be many times as large.
    (left, right), (top, bottom) = (_span(length, min(image.size), shorter, size) for length in image.size)
    resample = str_to_pil_interp(data.interpolation)
    return np.asarray(image.resize((size, size), resample, (left, top, right, bottom)))


def window(pixels: np.ndarray, size: int, margin: int = 0) -> np.ndarray:
    """The central `size` pixels of (H, W[, C]) with a margin around them, reflected beyond the edges."""
    spots = np.arange(-margin, size + margin)
    rows, columns = (reflect(spots + _start(length, size), length) for length in pixels.shape[:2])
    return pixels[rows[:, None], columns]


def reflect(positions: np.ndarray, length: int) -> np.ndarray:
    """Positions on a line, however far, as positions within its `length` by reflection at its end pixels."""
    period = max(2 * (length - 1), 1)
    positions = np.abs(positions) % period
    return np.minimum(positions, period - positions) if length > 1 else positions


def central(canvas: Tensor, size: int, down: int = 0, right: int = 0) -> Tensor:
    """The window (..., size, size) of a canvas (..., S, S), moved from its centre by some pixels. A view."""
    margin = (canvas.shape[-1] - size) // 2
    return canvas[..., margin + down : margin + down + size, margin + right : margin + right + size]


def as_tensor(pixels: np.ndarray) -> Tensor:
    """(H, W) or (H, W, C) uint8 -> (C, H, W)."""
    planes = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
    return torch.from_numpy(np.array(planes, order="C"))


def stacked(windows: Sequence[Tensor], like: Tensor) -> Tensor:
    """(K, C, H, W), also of none."""
    return torch.stack(list(windows)) if windows else like.new_empty(0)


def _start(length: int, size: int) -> int:
    return round((length - size) / 2)  # as torchvision's CenterCrop has it


def _span(length: int, shortest: int, shorter: int, size: int) -> tuple[float, float]:
    """Where, along one side of an image, the central `size` pixels begin and end that it is resized to."""
    resized = int(shorter * length / shortest)  # as torchvision's Resize has it
    start, step = _start(resized, size), length / resized
    return start * step, min((start + size) * step, length)
