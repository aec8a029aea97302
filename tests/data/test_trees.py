"""The aerial photos: tiles that do not overlap, with what of each box lies on them."""

import importlib.util
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from PIL import Image

from stmbench import data
from stmbench.data import sources, trees


def write_photo(folder: Path, boxes: list[tuple[int, int, int, int]], size: tuple[int, int]) -> Path:
    """A photo of noise, and its boxes as Pascal VOC has them."""
    path = folder / "photo"
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels).save(path.with_suffix(".png"))
    root = ET.Element("annotation")
    for box in boxes:
        place = ET.SubElement(ET.SubElement(root, "object"), "bndbox")
        for key, value in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True):
            ET.SubElement(place, key).text = str(value)
    ET.ElementTree(root).write(path.with_suffix(".xml"))
    return path


def test_tiles_make_up_the_photo(tmp_path: Path) -> None:
    path = write_photo(tmp_path, [], (700, 300))
    tiles = list(trees.cut(path))
    assert [tile.name for tile in tiles] == ["photo[0,0]", "photo[0,1]", "photo[0,2]"]
    whole = np.concatenate([np.asarray(tile.image) for tile in tiles], axis=1)
    assert np.array_equal(whole, np.asarray(Image.open(path.with_suffix(".png"))))


def test_a_box_is_cut_at_the_borders_of_tiles(tmp_path: Path) -> None:
    inside, across = (11, 21, 30, 40), (227, 1, 266, 20)  # the first and the last pixel, from 1
    left, right = trees.cut(write_photo(tmp_path, [inside, across], (512, 256)))
    assert [each["bbox"] for each in left.annotations] == [[10, 20, 20, 20], [226, 0, 30, 20]]
    assert [each["bbox"] for each in right.annotations] == [[0, 0, 10, 20]]
    assert [each["area"] for each in left.annotations] == [400, 600]


def test_a_small_part_of_a_crown_is_neither_right_nor_wrong_to_find(tmp_path: Path) -> None:
    left, right = trees.cut(write_photo(tmp_path, [(227, 1, 266, 20)], (512, 256)))
    assert (left.annotations[0]["iscrowd"], right.annotations[0]["iscrowd"]) == (0, 1)


def test_without_the_package_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    sources.find_detection.cache_clear()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install --no-deps deepforest"):
        data.find_detection("trees")


@pytest.mark.skipif(not importlib.util.find_spec("deepforest"), reason="needs the photos of deepforest")
def test_the_photos_are_read_without_importing_the_package() -> None:
    sources.find_detection.cache_clear()
    info = data.find_detection("trees")
    assert "deepforest" not in sys.modules
    assert (info.num_train, info.num_val, info.num_classes, info.has_masks) == (98, 20, 1, False)
    counts = [
        sum(len(split.target(i)["labels"]) for i in range(len(split))) for split in (info.train, info.val)
    ]
    assert counts == [664, 339]
    names = {
        split.filename(i).partition("[")[0] for split in (info.train, info.val) for i in range(len(split))
    }
    assert len(names) == 4
    for i in range(info.num_val):
        image, target = info.val[i]
        limits = np.array([image.width, image.height] * 2)
        assert (target["boxes"].numpy() <= limits).all()
    assert info.fingerprint == trees.find_trees().fingerprint
