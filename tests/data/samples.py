"""Small image data sets on a disk, for the tests beside this file."""

import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

from stmbench import data
from stmbench.data import Images

CLASSES = ("ant", "bee", "cow")


def write_image(path: Path, seed: int) -> None:
    """A 12x10 RGB image whose first pixel's red is `seed`."""
    pixels = np.random.default_rng(seed).integers(0, 256, (10, 12, 3), dtype=np.uint8)
    pixels[:4, :4, 0] = seed
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def truncate(path: Path) -> None:
    """Keep the first half of a file: the header is fine, the image is not."""
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def pack(folder: Path, target: Path) -> None:
    """Put a folder's contents into a tar and remove nothing."""
    with tarfile.open(target, "w") as tar:
        for path in sorted(folder.iterdir()):
            tar.add(path, path.name)


def images_of(source: object, split: str = "train", *, channels: int = 3, training: bool = True) -> Images:
    """The images of one split of a data set with random access."""
    return Images(getattr(data.find(str(source)), split), channels=channels, training=training)
