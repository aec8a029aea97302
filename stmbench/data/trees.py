"""Aerial photos with the boxes of tree crowns, as the package deepforest ships them: a small real set.

Four photos from the air, of three sites in North America, with a box around every crown (Weinstein et al.
2019, doi:10.3390/rs11111309). They are cut into tiles of about 256 pixels, side by side; `val` is one photo,
13 km from the nearest of `train`. Of a crown that lies on several tiles each has its part; a part of less
than half of it is neither right nor wrong to find (a crowd, in COCO's terms). Dead or alive, it is a tree.

deepforest itself is never imported: its data alone is wanted.
"""

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree as ET

from PIL import Image

from stmbench.data.detection import Annotation, DetectionInfo, Packed, Split
from stmbench.data.info import fingerprint

PHOTOS = {
    "train": ("2019_YELL_2_528000_4978000_image_crop2", "OSBS_029", "SOAP_061"),
    "val": ("2019_YELL_2_541000_4977000_image_crop",),
}
TILE = 256  # pixels, about: a photo is cut into equal parts nearest to that
SHOWN = 0.5  # of a crown's box, from which on its part is an object
_CATEGORY = 1


class Tile(NamedTuple):
    name: str
    image: Image.Image
    annotations: list[Annotation]


class Tiles:
    """The tiles as a reader of images."""

    def __init__(self, tiles: list[Tile]) -> None:
        self.tiles = tiles

    def __len__(self) -> int:
        return len(self.tiles)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return self.tiles[index].image, 0

    def filename(self, index: int) -> str:
        return self.tiles[index].name


def find_trees() -> DetectionInfo:
    """Cut the photos of the installed package into tiles, always the same ones.

    Raises:
        ValueError: the package is not installed, or lacks the photos; the message says what to do.
    """
    folder = _folder()
    files = [
        folder / f"{name}{ending}" for each in PHOTOS.values() for name in each for ending in (".png", ".xml")
    ]
    if lacking := [path.name for path in files if not path.is_file()]:
        raise ValueError(f"{folder} lacks {lacking[0]}: pip install --no-deps 'deepforest>=2'.")
    content = [f"{TILE} {SHOWN}", *(path.read_bytes() for path in files)]
    return DetectionInfo(
        name="trees",
        source="trees",
        num_classes=1,
        fingerprint=fingerprint(content),
        class_names=("tree",),
        category_ids=(_CATEGORY,),
        has_masks=False,
        train=_split(folder, "train"),
        val=_split(folder, "val"),
    )


def _folder() -> Path:
    found = importlib.util.find_spec("deepforest")
    if found is None or not found.submodule_search_locations:
        raise ValueError("The data set 'trees' is in a package: pip install --no-deps deepforest")
    return Path(found.submodule_search_locations[0]) / "data"


def _split(folder: Path, split: str) -> Split:
    tiles = [tile for name in PHOTOS[split] for tile in cut(folder / name)]
    return Split(
        reader=Tiles(tiles),
        training=split == "train",
        image_ids=range(1, len(tiles) + 1),
        sizes=[(tile.image.height, tile.image.width) for tile in tiles],
        annotations=Packed(tile.annotations for tile in tiles),
        labels={_CATEGORY: 1},
        has_masks=False,
    )


def cut(photo: Path) -> Iterator[Tile]:
    """The tiles of a photo, row by row, with what its boxes, in Pascal VOC's XML, leave on each."""
    with Image.open(photo.with_suffix(".png")) as opened:
        image = opened.convert("RGB")
    boxes = list(_boxes(photo.with_suffix(".xml")))
    rows, columns = (max(1, round(side / TILE)) for side in (image.height, image.width))
    for row in range(rows):
        top, bottom = (image.height * i // rows for i in (row, row + 1))
        for column in range(columns):
            left, right = (image.width * i // columns for i in (column, column + 1))
            window = (left, top, right, bottom)
            annotations = [part for box in boxes if (part := _part(box, window))]
            yield Tile(f"{photo.name}[{row},{column}]", image.crop(window), annotations)


def _boxes(path: Path) -> Iterator[tuple[float, float, float, float]]:
    """Left, top, right and bottom; Pascal VOC counts pixels from 1, and the last one is inside."""
    for box in ET.parse(path).getroot().iterfind("object/bndbox"):
        left, top, right, bottom = (
            float(box.findtext(key, "nan")) for key in ("xmin", "ymin", "xmax", "ymax")
        )
        yield left - 1, top - 1, right, bottom


def _part(box: tuple[float, float, float, float], window: tuple[int, int, int, int]) -> Annotation | None:
    """What of a box is in a window, as an annotation in the window's own pixels."""
    left, top = max(box[0], window[0]), max(box[1], window[1])
    width, height = min(box[2], window[2]) - left, min(box[3], window[3]) - top
    if width <= 0 or height <= 0:
        return None
    whole = (box[2] - box[0]) * (box[3] - box[1])
    return {
        "id": None,
        "category_id": _CATEGORY,
        "bbox": [left - window[0], top - window[1], width, height],
        "area": width * height,
        "iscrowd": int(width * height < SHOWN * whole),
    }
