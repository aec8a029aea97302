"""What a data set is to the rest of the program: its size, its classes, its fingerprint, its two readers.

A reader is anything that behaves like one of timm's: it has a length, and item `i` is an open image file
or a PIL image, with its label.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import IO, Protocol, cast

from PIL import Image

SPLITS = ("train", "val")
FEW = 5  # of many that a message names


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


@dataclass(frozen=True, slots=True)
class Part:
    """Some images of a reader, in the order of `indices`."""

    reader: Reader
    indices: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> tuple[IO[bytes] | Image.Image, int]:
        return self.reader[self.indices[index]]

    def filename(self, index: int) -> str:
        return self.reader.filename(self.indices[index])


def spread(info: DataInfo, count: int) -> tuple[DataInfo, tuple[int, ...]]:
    """The data set with `count` of its validation images (all for 0), evenly spread, and which those are.

    Raises:
        ValueError: the images can only be read one after the other.
    """
    if not hasattr(info.val, "__getitem__"):
        raise ValueError(
            f"{info.name} is a stream, and the stages erf and invariance choose images: "
            "name the other stages with --stage."
        )
    total = info.num_val
    indices = tuple(i * total // count for i in range(count)) if 0 < count < total else tuple(range(total))
    return replace(info, val=Part(cast(Reader, info.val), indices)), indices


def few(values: Sequence[object]) -> str:
    """The first of them, for a message."""
    return ", ".join(map(str, values[:FEW])) + (" ..." if len(values) > FEW else "")


def fingerprint(parts: Iterable[bytes | str]) -> str:
    """Twelve hexadecimal digits of the SHA-256 of the parts, one after the other."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.encode(errors="surrogateescape") if isinstance(part, str) else part)
    return digest.hexdigest()[:12]
