"""Data sets in MNIST's IDX files, plain or gzipped, held in memory.

The format is LeCun's (MNIST, 1998): two zero bytes, the type (8 is unsigned byte), the number of axes, the
length of each axis as a big-endian 32-bit integer, then the values. Fashion-MNIST (Xiao et al. 2017,
arXiv:1708.07747), KMNIST and others use the same four files.
"""

import gzip
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from stmbench.data.info import DataInfo, fingerprint

PREFIXES = {"train": "train", "val": "t10k"}  # the files' names for the two splits
FASHION_CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip


class IdxReader:
    """Images (N, H, W) and labels (N,), both uint8."""

    def __init__(self, images: np.ndarray, labels: np.ndarray) -> None:
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return Image.fromarray(self.images[index]), int(self.labels[index])

    def filename(self, index: int) -> str:
        return f"image {index}"


def has_files(folder: Path) -> bool:
    """Whether the folder holds the training images of an IDX data set."""
    return _path(folder, "train", "images-idx3").is_file()


def find_idx(folder: Path, name: str, source: str, class_names: tuple[str, ...] = ()) -> DataInfo:
    """Read both splits; the fingerprint is of the values, so gzipped or not makes no difference.

    Raises:
        ValueError: a file is missing or corrupt.
    """
    parts: list[bytes] = []
    readers: dict[str, IdxReader] = {}
    for split in PREFIXES:
        images = read_idx(_path(folder, split, "images-idx3"), axes=3)
        labels = read_idx(_path(folder, split, "labels-idx1"), axes=1)
        if len(images) != len(labels) or not len(images):
            raise ValueError(
                f"{folder}: {len(images)} {split} images but {len(labels)} labels. Get the files again."
            )
        readers[split] = IdxReader(images, labels)
        parts += [str(images.shape).encode(), images.tobytes(), labels.tobytes()]
    train, val = readers["train"], readers["val"]
    if lacking := sorted(set(val.labels.tolist()) - set(train.labels.tolist())):
        raise ValueError(f"{folder}: no training image has the test label {lacking[0]}.")
    return DataInfo(
        name=name,
        source=source,
        num_classes=int(train.labels.max()) + 1,
        fingerprint=fingerprint(parts),
        class_names=class_names,
        train=train,
        val=val,
    )


def read_idx(path: Path, axes: int) -> np.ndarray:
    """The values of an IDX file of unsigned bytes; ValueError if it is missing, cut off or something else."""
    try:
        data = path.read_bytes()
        if path.suffix == ".gz":
            data = gzip.decompress(data)
        zeros, kind, count = struct.unpack_from(">HBB", data)
        if (zeros, kind, count) != (0, 8, axes):
            raise ValueError(f"it is not an IDX file of bytes with {axes} axes")
        shape = struct.unpack_from(f">{axes}I", data, 4)
        return np.frombuffer(data, np.uint8, offset=4 + 4 * axes).reshape(shape)
    except FileNotFoundError:
        raise ValueError(f"{path} is missing.") from None
    except (OSError, EOFError, zlib.error, struct.error, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {error}. Get the file again.") from None


def write_idx(path: Path, values: np.ndarray) -> None:
    """Write unsigned bytes as a gzipped IDX file; the same values make the same file."""
    header = struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape)
    with path.open("wb") as file, gzip.GzipFile("", "wb", 9, file, mtime=0) as packed:
        packed.write(header + values.astype(np.uint8).tobytes())


def _path(folder: Path, split: str, kind: str) -> Path:
    path = folder / f"{PREFIXES[split]}-{kind}-ubyte.gz"
    return path if path.is_file() else path.with_suffix("")
