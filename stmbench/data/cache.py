"""Decoded images kept in memory, for data sets of which all fit into it.

What is kept are the pixels as they come out of the decoder, so that training is the same, bit for bit, with
the cache and without. Encoded files need none: the operating system keeps them in whatever memory is free.
"""

import mmap
import multiprocessing
from typing import Any

import numpy as np
from PIL import Image

_ROW = np.dtype([("end", "i8"), ("label", "i8"), ("height", "i4"), ("width", "i4")])


class PixelCache:
    """Decoded images with their labels, by index, in memory that forked loader processes share.

    Nothing is ever dropped: what no longer fits into `budget` bytes is not kept.
    """

    def __init__(self, images: int, budget: int) -> None:
        self.budget = budget
        # The system gives such memory page by page, as it is written to.
        self._pixels = np.frombuffer(mmap.mmap(-1, max(budget, 1)), np.uint8)
        self._rows = np.frombuffer(mmap.mmap(-1, images * _ROW.itemsize), _ROW)  # (N,)
        self._used: Any = multiprocessing.Value("Q")

    @property
    def used(self) -> int:
        """Bytes of the images that are kept."""
        return self._used.value

    def get(self, index: int, mode: str) -> tuple[Image.Image, int] | None:
        """An image, which is "RGB" or "L", and its label; None where it is not kept."""
        with self._used:
            end, label, height, width = self._rows[index].item()
        if not end:
            return None
        pixels = self._pixels[end - height * width * len(mode) : end]
        shape = (height, width, 3) if mode == "RGB" else (height, width)
        return Image.fromarray(pixels.reshape(shape)), label  # (H, W[, 3])

    def put(self, index: int, image: Image.Image, label: int) -> None:
        """Keep an image, "RGB" or "L", that is not there yet, if it still fits."""
        size = image.height * image.width * len(image.mode)
        with self._used:
            end = self._used.value + size
            if end > self.budget:
                return
            self._used.value = end
        self._pixels[end - size : end] = np.asarray(image).ravel()  # (H * W * C,)
        with self._used:
            self._rows[index] = (end, label, image.height, image.width)
