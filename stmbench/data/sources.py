"""From what a user calls a data set to the data set: embedded, installed, a folder, or a name of timm's."""

import functools
from pathlib import Path

from stmbench.catalog import known
from stmbench.data.coco import find_coco
from stmbench.data.detection import DetectionInfo
from stmbench.data.folders import find_images
from stmbench.data.idx import FASHION_CLASSES, find_idx, has_files
from stmbench.data.info import DataInfo
from stmbench.data.prefixed import find_prefixed, is_prefixed
from stmbench.data.trees import find_trees

EMBEDDED = Path(__file__).with_name("fashion_mini")
DEBIAN_FASHION = Path("/usr/share/datasets/fashion-mnist")  # Debian's dataset-fashion-mnist
NAMES = ("fashion-mini", "fashion")
DETECTION_NAMES = ("trees",)


@functools.lru_cache(maxsize=4)
def find(source: str) -> DataInfo:
    """Find a data set and read its directory; in one process, each source is scanned once.

    `source` is ``fashion-mini`` (embedded), ``fashion`` (the full Fashion-MNIST of Debian's package), the
    path of a folder with IDX files or in a layout of `stmbench.data.folders`, or a name with timm's prefix.

    Raises:
        ValueError: there is no such data set, or it is empty or corrupt; the message says what to do.
    """
    if source == "fashion-mini":
        return find_idx(EMBEDDED, source, source, FASHION_CLASSES)
    if source == "fashion":
        return _find_fashion()
    if is_prefixed(source):
        return find_prefixed(source)
    path = Path(source).expanduser()
    if not path.exists():
        if path.name == source:
            known("data set", source, NAMES)
        raise ValueError(f"No data at {path}. Give --data a folder, or one of {', '.join(NAMES)}.")
    for folder in (path, path / "raw"):  # torchvision keeps the files of FashionMNIST/ in raw/
        if has_files(folder):
            return find_idx(folder.resolve(), path.resolve().name, str(path.resolve()))
    return find_images(path)


@functools.lru_cache(maxsize=2)
def find_detection(source: str) -> DetectionInfo:
    """Find a data set with boxes; in one process, each source is read once.

    `source` is ``trees`` (aerial photos of the package deepforest), or the path of a folder or a JSON file in
    COCO's format, in a layout of `stmbench.data.coco`.

    Raises:
        ValueError: there is no such data set, or it is broken; the message says what to do.
    """
    if source == "trees":
        return find_trees()
    path = Path(source).expanduser()
    if not path.exists():
        if path.name == source:
            known("detection data set", source, DETECTION_NAMES)
        raise ValueError(f"No data at {path}. Give --data a folder in COCO's format, or trees.")
    return find_coco(path)


def _find_fashion() -> DataInfo:
    if not has_files(DEBIAN_FASHION):
        raise ValueError(
            "Fashion-MNIST is not installed: `apt install dataset-fashion-mnist`, "
            "or give --data torchvision's FashionMNIST/raw folder."
        )
    return find_idx(DEBIAN_FASHION, "fashion", "fashion", FASHION_CLASSES)
