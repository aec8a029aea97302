"""The images of `invariance/published`: what the published protocol shows a network, its faults included.

The protocol is that of the code published with Hu et al. 2022, "Demystify Transformers & Convolutions in
Modern Image Deep Networks" (arXiv:2211.05781), github.com/OpenGVLab/STM-Evaluation; the code here is our
own. Its faults, which `invariance/1` does not have:

- a translated window is cut off at the image's end, what is left of it is put back into the middle, and the
  rest is black: of 256 pixels, 64 move what is seen by 40, and blacken 21 % along an axis;
- a direction is drawn per image and strength, other ones for every network, and never the south-west;
- turned images have black corners, before the crop and after it;
- crops larger than the image have black borders, and the reference, 0.875, is not among their ratios.

Departure: a network's directions are drawn from its name, its seed and the image's index, so that they do not
change from run to run.
"""

import zlib

import numpy as np
import torch
from PIL import Image
from torchvision.transforms import functional as tv

from stmbench.data.canvas import Canvases, Variant, Views, as_tensor, crop, resize, shorter_side, stacked
from stmbench.data.info import Part
from stmbench.recipe import Data

STRENGTHS: dict[str, list[float]] = {
    "translation": list(range(0, 65, 4)),
    "rotation_before": list(range(0, 91, 5)),
    "rotation_after": list(range(0, 91, 5)),
    "scale": [ratio / 1000 for ratio in range(200, 2001, 125)],
}
VARIANTS = [Variant(transform, strength) for transform in STRENGTHS for strength in STRENGTHS[transform]]
# Where the window moves: (down, right). The eighth direction, (1, -1), is never drawn.
DIRECTIONS = ((1, 0), (0, 1), (-1, 0), (0, -1), (1, 1), (-1, 1), (-1, -1))


class PublishedImages(Canvases):
    """Like `Canvases`, with every one of `VARIANTS` in `made`, and a canvas that is the plain crop alone."""

    def __init__(self, part: Part, data: Data, *, network: str) -> None:
        super().__init__(part, data, made=VARIANTS)
        self.key = zlib.crc32(network.encode())

    def views(self, image: Image.Image, index: int) -> Views:
        """What is made of a decoded image, the `index`-th of its data set."""
        rng = np.random.default_rng([self.key, index])
        resized = resize(image, shorter_side(self.data.image_size, self.data.crop_pct), self.data)
        canvas = as_tensor(np.asarray(self._central(resized)))
        made = [as_tensor(np.asarray(self._published(each, image, resized, rng))) for each in self.made]
        return {"canvas": canvas, "made": stacked(made, canvas), "noise": torch.empty(0)}

    def _published(
        self, variant: Variant, image: Image.Image, resized: Image.Image, rng: np.random.Generator
    ) -> Image.Image | np.ndarray:
        size, strength = self.data.image_size, variant.strength
        if variant.transform == "translation":
            down, right = DIRECTIONS[rng.integers(len(DIRECTIONS))]
            return translated(np.asarray(resized), size, int(strength) * down, int(strength) * right)
        if variant.transform == "rotation_before":
            return self._central(resized.rotate(strength, Image.Resampling.BICUBIC))
        if variant.transform == "rotation_after":
            return self._central(resized).rotate(strength, Image.Resampling.BICUBIC)
        shorter = shorter_side(size, strength)
        if shorter >= size:
            return crop(image, strength, self.data)
        return self._central(resize(image, shorter, self.data))

    def _central(self, image: Image.Image) -> Image.Image:
        """The central window, black where there is no image."""
        size = self.data.image_size
        return tv.center_crop(image, [size, size])  # pyright: ignore[reportArgumentType, reportReturnType]


def translated(pixels: np.ndarray, size: int, down: int, right: int) -> np.ndarray:
    """The window (size, size[, C]) moved over an image (H, W[, C]).

    What of it lies within the image is put back into the middle.
    """
    spans = []
    for length, shift in zip(pixels.shape, (down, right), strict=False):
        centre = length // 2 + shift
        end = max(0, min(centre + size // 2, length))
        spans.append(slice(min(max(0, centre - size // 2), end), end))
    left = pixels[tuple(spans)]
    black = np.zeros((size, size, *pixels.shape[2:]), pixels.dtype)
    top, side = ((size - length) // 2 for length in left.shape[:2])
    black[top : top + left.shape[0], side : side + left.shape[1]] = left
    return black
