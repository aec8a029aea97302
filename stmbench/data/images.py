"""Images as a PyTorch data set, in which an image that cannot be decoded is counted instead of fatal.

The count lies in shared memory, one byte per image: every loader process sees it, and an image that fails in
each epoch is still one image.
"""

import contextlib
import itertools
import struct
import tarfile
import zlib
from collections.abc import Callable, Generator
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data.dataset import IterableImageDataset
from torch import Tensor
from torch.utils.data import Dataset

from stmbench.data.cache import PixelCache
from stmbench.data.info import Reader

UNREADABLE = -1  # the label that stands for an image without content
MOST_UNREADABLE = 0.01  # share of a split's images
# What Pillow, tarfile and zlib raise for broken input.
BROKEN = (
    OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, tarfile.TarError,
    Image.DecompressionBombError,
)  # fmt: skip


class UnreadableImagesError(RuntimeError):
    """More images than can be overlooked could not be decoded."""


class Images(Dataset[tuple[Any, int]]):
    """The images of one split: item `i` is ``(transform(image), label)``, the image RGB or greyscale.

    In training the next readable image stands in for an unreadable one. In evaluation, or where there is no
    readable one, a blank image with the label `UNREADABLE` does, so that every index keeps its place.
    """

    cache: PixelCache | None = None

    def __init__(self, reader: Reader, *, channels: int, training: bool) -> None:
        self.reader = reader
        self.mode = "L" if channels == 1 else "RGB"
        self.training = training
        self.transform: Callable[[Image.Image], Any] = lambda image: image
        self._unreadable: Tensor = torch.zeros(len(reader), dtype=torch.uint8).share_memory_()  # (N,)

    def __len__(self) -> int:
        return len(self.reader)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        for step in range(len(self) if self.training else 1):
            at = (index + step) % len(self)
            try:
                image, label = self._read(at)
            except BROKEN:
                self._unreadable[at] = 1
            else:
                return self.transform(image), label
        return self.transform(Image.new(self.mode, (32, 32))), UNREADABLE

    @property
    def skipped(self) -> int:
        """How many different images could not be decoded so far, in this process and its loaders."""
        return int(self._unreadable.count_nonzero())

    def skipped_names(self, limit: int = 10) -> list[str]:
        """The names of the first of them."""
        return [str(self.reader.filename(int(i))) for i in self._unreadable.nonzero()[:limit]]

    def check_skipped(self) -> None:
        """Raise `UnreadableImagesError` if more than 1 % of the images could not be decoded."""
        if self.skipped > MOST_UNREADABLE * len(self):
            first = int(self._unreadable.nonzero()[0])
            raise UnreadableImagesError(
                f"{self.skipped} of {len(self)} images cannot be read, more than 1 %. "
                f"The first is {self.reader.filename(first)}: {self._reason(first)}."
            )

    def mean_bytes(self, sample: int) -> float:
        """Bytes of a decoded image, the mean over so many of them, evenly spread; only headers are read."""
        pixels = []
        for index in np.linspace(0, len(self) - 1, min(sample, len(self)), dtype=int).tolist():
            with contextlib.suppress(*BROKEN):
                source, _ = self.reader[index]
                if isinstance(source, Image.Image):
                    pixels.append(source.width * source.height)
                    continue
                with source, Image.open(source) as image:
                    pixels.append(image.width * image.height)
        return len(self.mode) * float(np.mean(pixels)) if pixels else 0.0

    def _read(self, index: int) -> tuple[Image.Image, int]:
        """The image, from the cache if it is there."""
        if self.cache is None:
            return self._decode(index)
        found = self.cache.get(index, self.mode)
        if found is None:
            found = self._decode(index)
            self.cache.put(index, *found)
        return found

    def _decode(self, index: int) -> tuple[Image.Image, int]:
        source, label = self.reader[index]
        if isinstance(source, Image.Image):
            return as_mode(source, self.mode), int(label)
        with source, Image.open(source) as image:
            return as_mode(image, self.mode), int(label)

    def _reason(self, index: int) -> str:
        try:
            self._decode(index)
        except BROKEN as error:
            return str(error).rstrip(".") or type(error).__name__
        return "it could be read at the second try"


class Stream(IterableImageDataset):
    """Images that come one after the other, through one of timm's iterable readers.

    timm's readers leave out what they cannot decode and say so in the log, without a count. Of what the
    reader gives, the images number `rank`, ``rank + world`` and so on are taken.
    """

    skipped = 0

    def __init__(self, reader: Any, num_classes: int, rank: int = 0, world: int = 1) -> None:
        super().__init__(None, reader=reader)
        self.num_classes, self.rank, self.world = num_classes, rank, world
        self._stray = torch.zeros((), dtype=torch.int64).share_memory_()  # a label that is none

    def __iter__(self) -> Generator[tuple[Any, int], None, None]:
        image: Any
        label: Any
        for image, label in itertools.islice(super().__iter__(), self.rank, None, self.world):
            if not 0 <= label < self.num_classes:
                self._stray.fill_(label)
            yield image, int(label)

    def __len__(self) -> int:
        return len(range(self.rank, super().__len__(), self.world))

    def skipped_names(self, limit: int = 10) -> list[str]:
        """No names are known."""
        return []

    def check_skipped(self) -> None:
        """Raise ValueError if an image's label is not below the number of classes."""
        if self._stray:
            raise ValueError(
                f"An image has the label {int(self._stray)}, which does not fit classes={self.num_classes}."
            )


def as_mode(image: Image.Image, mode: str) -> Image.Image:
    """`image` as "RGB" or "L"; whatever is transparent shows white, and of 16 bits the upper 8 count.

    Raises:
        ValueError: its numbers are floating-point, whose black and white are not known.
    """
    if image.mode == "F":
        raise ValueError("a floating-point image, which has no known black and white")
    if image.mode.startswith("I"):  # Pillow's own conversion would cut 16 bits off at 255
        values = np.asarray(image)
        wide = image.mode != "I" or values.max() > 255  # "I" is what older Pillows open 16-bit files as
        image = Image.fromarray((values >> 8 * wide).clip(0, 255).astype(np.uint8))
    if image.mode == mode and "transparency" not in image.info:
        image.load()
        return image
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert(mode)
