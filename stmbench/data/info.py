"""What a data set is to the rest of the program: its size, its classes, its fingerprint, its two readers.

A reader is anything that behaves like one of timm's: it has a length, and item `i` is an open image file
or a PIL image, with its label.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import IO, Protocol

from PIL import Image

SPLITS = ("train", "val")


class Reader(Protocol):
    """Random access to the images of one split."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[IO[bytes] | Image.Image, int]: ...

    def filename(self, index: int) -> str: ...


class StreamReader(Protocol):
    """The images of one split where they can only be read one after the other."""

    def __len__(self) -> int: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class DataInfo:
    """A data set that was found. Its fingerprint tells it from others, wherever it lies."""

    name: str
    source: str  # what `find` takes to find it again
    num_classes: int
    fingerprint: str  # twelve hexadecimal digits
    class_names: tuple[str, ...] = ()  # by label, where known
    train: Reader | StreamReader = field(repr=False, compare=False)
    val: Reader | StreamReader = field(repr=False, compare=False)

    @property
    def num_train(self) -> int:
        return len(self.train)

    @property
    def num_val(self) -> int:
        return len(self.val)


def fingerprint(parts: Iterable[bytes | str]) -> str:
    """Twelve hexadecimal digits of the SHA-256 of the parts, one after the other."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.encode(errors="surrogateescape") if isinstance(part, str) else part)
    return digest.hexdigest()[:12]
