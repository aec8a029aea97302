"""Small detection data sets in COCO's format: bright rectangles on dark images, with boxes and masks."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

CATEGORIES = [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}, {"id": 90, "name": "eel"}]  # with gaps
BRIGHT, DARK = 220, 20


def rectangle(box: Sequence[float]) -> list[list[float]]:
    """The polygon of a box."""
    left, top, width, height = box
    right, bottom = left + width, top + height
    return [[left, top, right, top, right, bottom, left, bottom]]


def annotated(
    number: int, image: int, box: Sequence[float], category: int = 3, *, masks: bool = True, **more: Any
) -> dict[str, Any]:
    """An annotation."""
    mask = {"segmentation": rectangle(box)} if masks else {}
    place = {"id": number, "image_id": image, "category_id": category, "bbox": list(box)}
    return {**place, "area": box[2] * box[3], "iscrowd": 0, **mask, **more}


def content(images: int, *, seed: int = 0, masks: bool = True) -> dict[str, Any]:
    """A whole file, of images with a rectangle each, all three categories in turns."""
    random = np.random.default_rng(seed)
    values: dict[str, Any] = {"images": [], "annotations": [], "categories": CATEGORIES}
    for i in range(images):
        width, height = (int(side) for side in random.integers(40, 80, 2))
        box = [
            int(random.integers(2, 10)),
            int(random.integers(2, 10)),
            *map(int, random.integers(12, 28, 2)),
        ]
        image = {"id": 100 + i, "file_name": f"{i:03}.png", "width": width, "height": height}
        values["images"].append(image)
        category = CATEGORIES[i % 3]["id"]
        values["annotations"].append(annotated(i + 1, 100 + i, box, category, masks=masks))
    return values


def paint(values: dict[str, Any], folder: Path) -> None:
    """Write the images of a file, with the boxes that it has."""
    folder.mkdir(parents=True, exist_ok=True)
    for image in values["images"]:
        pixels = np.full((image["height"], image["width"], 3), DARK, np.uint8)
        for each in values["annotations"]:
            if each["image_id"] == image["id"]:
                left, top, width, height = (round(side) for side in each["bbox"])
                pixels[top : top + height, left : left + width] = BRIGHT
        Image.fromarray(pixels).save(folder / image["file_name"])


def dump(values: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values))


def write(root: Path, train: dict[str, Any] | None = None, val: dict[str, Any] | None = None) -> Path:
    """A data set as COCO's own lies on a disk."""
    for split, values in (("train", train or content(6)), ("val", val or content(6, seed=1))):
        paint(values, root / f"{split}2017")
        dump(values, root / "annotations" / f"instances_{split}2017.json")
    return root
