"""Detection data sets in COCO's format (Lin et al. 2014, arXiv:1405.0312), in the usual layouts.

- COCO's own: ``annotations/instances_train2017.json`` and ``..._val2017.json``, images in ``train2017/`` and
  ``val2017/``;
- ``train.json`` and ``val.json`` (also ``valid`` or ``test``) in the folder or in ``annotations/``, or one
  file in each of ``train/`` and ``val/``; images beside them, or in a folder named like them or ``images/``;
- a single JSON file: every fifth image, by name, is then a validation image.

What is broken in a file is named by image and annotation. A fingerprint covers the JSON files and every
image's name and size in bytes.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any

from stmbench.data import masks
from stmbench.data.detection import Annotation, DetectionInfo, Packed, Split, is_trained_on
from stmbench.data.images import MOST_UNREADABLE
from stmbench.data.info import FEW, SPLITS, few, fingerprint

LAYOUTS = (
    "annotations/instances_train2017.json and instances_val2017.json, train.json and val.json, "
    "or a single JSON file"
)
_WORDS = {"train": ("train", "training"), "val": ("val", "valid", "validation"), "test": ("test",)}
_FOLDERS = tuple(word for words in _WORDS.values() for word in words)
_OTHER_TASKS = ("captions_", "person_keypoints_", "image_info_", "stuff_", "panoptic_")
_FIFTH = 5  # a validation image for so many of a single file
_TRIED = 100  # images that are looked for in each folder


@dataclass(slots=True)
class _File:
    """One JSON file, checked."""

    path: Path
    content: str  # its digest
    names: list[str] = field(default_factory=list)  # of its images' files, in its order
    ids: list[int] = field(default_factory=list)
    sizes: list[tuple[int, int]] = field(default_factory=list)  # height and width
    categories: dict[int, str] = field(default_factory=dict)
    annotations: list[list[Annotation]] = field(default_factory=list)  # by image
    folder: Path = Path()  # of the images
    bytes: list[int] = field(default_factory=list)  # of each image; -1 for one that is missing

    def part(self, keep: Sequence[int]) -> "_File":
        """Some of its images."""
        lists = ("names", "ids", "sizes", "annotations", "bytes")
        return replace(self, **{name: [getattr(self, name)[i] for i in keep] for name in lists})


class Files:
    """The images of a split, as files under a folder."""

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        self.folder, self.names = folder, names

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> tuple[IO[bytes], int]:
        return (self.folder / self.names[index]).open("rb"), 0

    def filename(self, index: int) -> str:
        return self.names[index]


def find_coco(root: Path) -> DetectionInfo:
    """Find the annotations and the images under `root`, or beside it if it is a JSON file.

    Raises:
        ValueError: there are none, an annotation is broken, more than 1 % of the images are missing, a split
            has nothing to learn or to find, or the splits do not fit together.
    """
    root = root.resolve()
    paths = _layout(root)
    files, notes = {split: _read(path) for split, path in paths.items()}, []
    for split, file in files.items():
        notes += _locate(file, root if root.is_dir() else root.parent, split)
    if single := files.get(""):
        files = _divided(single)
        notes.append(f"{root.name} has one annotation file: every fifth image by name is for validation.")
    train, val = files["train"], files["val"]
    _check_together(train, val)
    notes += _never_seen(train, val)
    categories = sorted(train.categories)
    has_masks = _has_masks(train, val)
    labels = {category: label for label, category in enumerate(categories, 1)}
    return DetectionInfo(
        name=root.stem if root.is_file() else root.name,
        source=str(root),
        num_classes=len(categories),
        fingerprint=fingerprint(part for split in SPLITS for part in _contents(split, files[split])),
        class_names=tuple(train.categories[category] for category in categories),
        category_ids=tuple(categories),
        has_masks=has_masks,
        notes=tuple(notes),
        train=_split(train, labels, has_masks, training=True),
        val=_split(val, labels, has_masks, training=False),
    )


def _split(file: _File, labels: Mapping[int, int], has_masks: bool, *, training: bool) -> Split:
    return Split(
        reader=Files(file.folder, file.names),
        training=training,
        image_ids=file.ids,
        sizes=file.sizes,
        annotations=Packed(file.annotations),
        labels=labels,
        has_masks=has_masks,
    )


# Which files


def _layout(root: Path) -> dict[str, Path]:
    """The JSON file of each split; one for "" where there is a single one."""
    if root.is_file():
        return {"": root}
    folders = (root, root / "annotations", *(root / name for name in _FOLDERS))
    found = sorted(path for folder in folders for path in folder.glob("*.json"))
    found = [path for path in found if not path.name.startswith(_OTHER_TASKS)]
    found = [path for path in found if path.name.startswith("instances_")] or found
    of = {split: [path for path in found if _is_of(path, root, words)] for split, words in _WORDS.items()}
    chosen = {"train": of["train"], "val": of["val"] or of["test"]}
    for split, paths in chosen.items():
        if len(paths) > 1:
            names = ", ".join(str(path.relative_to(root)) for path in paths[:FEW])
            raise ValueError(f"{root} has several annotation files for {split}: {names}. Keep one of them.")
    if all(chosen.values()):
        return {split: paths[0] for split, paths in chosen.items()}
    if len(found) == 1 and not any(of.values()):
        return {"": found[0]}
    lacking = " and ".join(split for split, paths in chosen.items() if not paths)
    raise ValueError(f"{root} has no annotations for {lacking}. Known layouts: {LAYOUTS}.")


def _is_of(path: Path, root: Path, words: Sequence[str]) -> bool:
    """Whether the file's name, or that of the split's folder it is in, has one of the words."""
    name = path.stem if path.parent in (root, root / "annotations") else path.parent.name
    return not set(words).isdisjoint(re.split(r"[^a-z]+", name.lower()))


def _locate(file: _File, root: Path, split: str) -> Iterator[str]:
    """Find the images of a file; say which are missing, and raise ValueError where too many are."""
    named = [file.path.stem, file.path.stem.rpartition("_")[2], *_WORDS.get(split, ()), *_WORDS["test"]]
    inside = [base / name for base in (root, root / "images") for name in named]
    folders = dict.fromkeys([file.path.parent, root, root / "images", *inside])
    sample = file.names[:: max(1, len(file.names) // _TRIED)]
    file.folder = max(folders, key=lambda folder: sum((folder / name).is_file() for name in sample))
    file.bytes = [_bytes(file.folder / name) for name in file.names]
    missing = [name for name, size in zip(file.names, file.bytes, strict=True) if size < 0]
    if len(missing) > MOST_UNREADABLE * len(file.names):
        where = f"in {file.folder}" if len(missing) < len(file.names) else f"under {root}"
        raise ValueError(
            f"{len(missing)} of the {len(file.names)} images that {file.path} lists are not {where}, "
            f"the first being {missing[0]}."
        )
    if missing:
        yield f"Images that {file.path.name} lists are missing and left out: {few(missing)}."


def _bytes(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1


def _divided(single: _File) -> dict[str, _File]:
    """Every fifth image by name for validation, and at least one."""
    order = sorted(range(len(single.names)), key=lambda i: single.names[i])
    if len(order) < 2:
        raise ValueError(f"{single.path} has {len(order)} images: too few to train and to validate on.")
    val = order[_FIFTH - 1 :: _FIFTH] or order[-1:]
    return {"train": single.part(sorted(set(order) - set(val))), "val": single.part(val)}


def _contents(split: str, file: _File) -> Iterator[str]:
    yield f"{split} {file.content}\n"
    yield from sorted(f"{name} {size}\n" for name, size in zip(file.names, file.bytes, strict=True))


# What is in a file


def _read(path: Path) -> _File:
    content = path.read_bytes()
    try:
        values = json.loads(content)
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}.") from None
    for key in ("images", "annotations", "categories"):
        if not isinstance(values, dict) or not isinstance(values.get(key), list):
            raise ValueError(f"{path} has no list '{key}': it is not in COCO's format.")
    file = _File(path, fingerprint([content]))
    for category in values["categories"]:
        _add_category(file, category)
    for image in values["images"]:
        _add_image(file, image)
    place = {image: i for i, image in enumerate(file.ids)}
    for number, annotation in enumerate(values["annotations"], 1):
        if not isinstance(annotation, dict) or annotation.get("image_id") not in place:
            name = annotation.get("id") if isinstance(annotation, dict) else f"number {number}"
            raise ValueError(f"{path}: annotation {name} belongs to no image of the file.")
        _add_annotation(file, place[annotation["image_id"]], annotation)
    return file


def _add_category(file: _File, category: Any) -> None:
    if not isinstance(category, dict) or type(category.get("id")) is not int or "name" not in category:
        raise ValueError(f"{file.path}: a category needs a whole number 'id' and a 'name', not {category}.")
    if category["id"] in file.categories:
        raise ValueError(f"{file.path}: two categories have the id {category['id']}.")
    file.categories[category["id"]] = str(category["name"])


def _add_image(file: _File, image: Any) -> None:
    known = (
        isinstance(image, dict) and type(image.get("id")) is int and isinstance(image.get("file_name"), str)
    )
    if not known:
        raise ValueError(f"{file.path}: an image needs a whole number 'id' and a 'file_name', not {image}.")
    height, width = image.get("height"), image.get("width")
    if type(height) is not int or type(width) is not int or min(height, width) < 1:
        raise ValueError(f"{file.path}: image {image['id']} ({image['file_name']}) has no height and width.")
    file.names.append(image["file_name"])
    file.ids.append(image["id"])
    file.sizes.append((height, width))
    file.annotations.append([])


def _add_annotation(file: _File, place: int, found: dict[str, Any]) -> None:
    """Add an annotation to its image; ValueError names both if it is broken."""
    if broken := _broken(found, file.categories, *file.sizes[place]):
        where = f"annotation {found.get('id')} of image {file.ids[place]} ({file.names[place]})"
        raise ValueError(f"{file.path}: {where} {broken}.")
    _, _, width, height = found["bbox"]
    kept = {
        "id": found.get("id"),
        "category_id": found["category_id"],
        "bbox": found["bbox"],
        "area": found.get("area", width * height),
        "iscrowd": int(found.get("iscrowd", 0)),
    }
    if found.get("segmentation"):
        kept["segmentation"] = found["segmentation"]
    file.annotations[place].append(kept)


def _broken(found: Mapping[str, Any], categories: Mapping[int, str], height: int, width: int) -> str:
    """What is wrong with an annotation; "" for nothing."""
    if found.get("category_id") not in categories:
        return f"has the category {found.get('category_id')}, which the file does not list"
    box = found.get("bbox")
    if not isinstance(box, list) or len(box) != 4 or not all(map(_is_number, box)):
        return f"has no box of four numbers, but {box}"
    if not _is_number(found.get("area", 0)):
        return f"has an area that is no number, but {found['area']}"
    if found.get("iscrowd", 0) not in (0, 1):
        return f"has an iscrowd that is neither 0 nor 1, but {found['iscrowd']}"
    return _broken_mask(found.get("segmentation"), height, width)


def _broken_mask(segmentation: Any, height: int, width: int) -> str:
    if not segmentation:
        return ""
    if isinstance(segmentation, list):
        for polygon in segmentation:
            if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2:
                return "has a polygon that is no list of three corners or more"
            if not all(map(_is_number, polygon)):
                return "has a polygon with a corner that is no number"
        return ""
    if not isinstance(segmentation, dict) or not {"size", "counts"} <= segmentation.keys():
        return "has a mask that is neither polygons nor run lengths"
    if segmentation["size"] != [height, width]:
        return f"has a mask of {segmentation['size']} pixels on an image of [{height}, {width}]"
    counts = segmentation["counts"]
    if isinstance(counts, list):
        fits = all(type(each) is int and each >= 0 for each in counts) and sum(counts) == height * width
        return "" if fits else f"has run lengths that do not add up to {height * width} pixels"
    try:
        masks.decode([segmentation], height, width)
    except ValueError as error:
        return f"has run lengths that cannot be read: {str(error).rstrip('.')}"
    return ""


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


# What the splits are to each other


def _check_together(train: _File, val: _File) -> None:
    for file, split in ((train, "train"), (val, "val")):
        if not any(_objects(file)):
            raise ValueError(f"{file.path} has no annotated object for {split}: nothing to learn or to find.")
    for category, name in val.categories.items():
        if category not in train.categories:
            raise ValueError(
                f"{val.path} has the category {category} ({name}), which {train.path} lacks: "
                "both need the same categories."
            )
        if name != train.categories[category]:
            raise ValueError(
                f"The category {category} is '{train.categories[category]}' in {train.path} "
                f"and '{name}' in {val.path}."
            )


def _objects(file: _File) -> Iterator[int]:
    """The categories of the annotations that can be trained on."""
    for size, annotations in zip(file.sizes, file.annotations, strict=True):
        yield from (each["category_id"] for each in annotations if is_trained_on(each, *size))


def _never_seen(train: _File, val: _File) -> Iterator[str]:
    """Say which classes can only score 0; the mean over the classes has them all the same."""
    if wanted := sorted(set(_objects(val)) - set(_objects(train))):
        names = few([val.categories[category] for category in wanted])
        yield f"Classes in val that train never has, whose AP can only be 0: {names}."


def _has_masks(train: _File, val: _File) -> bool:
    """Whether every annotation has a mask; ValueError if only some have."""
    first: dict[bool, str] = {}
    for file in (train, val):
        for image, name, annotations in zip(file.ids, file.names, file.annotations, strict=True):
            for each in annotations:
                where = f"{file.path}: annotation {each['id']} of image {image} ({name})"
                first.setdefault("segmentation" in each, where)
    if len(first) == 2:
        raise ValueError(f"{first[False]} has no mask, where others have: give all of them one, or none.")
    return True in first
