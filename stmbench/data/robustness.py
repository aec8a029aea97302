"""Other test images for ImageNet's classes, in the folders in which they are published, checked before use.

- v2: Recht et al. 2019, arXiv:1902.10811; any one of its three sets of 10,000 images
- a: Hendrycks et al. 2021, arXiv:1907.07174; 200 classes
- r: Hendrycks et al. 2021, arXiv:2006.16241; 200 classes
- sketch: Wang et al. 2019, arXiv:1905.13549
- c: Hendrycks & Dietterich 2019, arXiv:1903.12261; corruptions in five severities

Class folders have the names of ImageNet's synsets, or in v2 the labels' numbers, which sorting as text would
shuffle: labels come from the name. A folder is refused unless it has every class, nothing else, and as many
images as were published; of the images only the names are read.
"""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib import resources
from itertools import product
from pathlib import Path

from timm.data.readers.img_extensions import get_img_extensions
from timm.data.readers.reader_image_folder import ReaderImageFolder

from stmbench.data.info import DataInfo, fingerprint
from stmbench.recipe import Robustness

CLASSES = 1000  # of ImageNet, in the order of their synsets' names
SEVERITIES = (1, 2, 3, 4, 5)
# name -> AlexNet's error in per cent, the mean over five severities: what a corruption error is relative to
# (Hendrycks & Dietterich 2019, table 1, with the digits of the sheet that its authors publish).
ALEXNET_ERRORS = {
    "gaussian_noise": 88.6428, "shot_noise": 89.4468, "impulse_noise": 92.2640,
    "defocus_blur": 81.9880, "glass_blur": 82.6268, "motion_blur": 78.5948, "zoom_blur": 79.8360,
    "snow": 86.6816, "frost": 82.6572, "fog": 81.9324, "brightness": 56.4592,
    "contrast": 85.3204, "elastic_transform": 64.6056, "pixelate": 71.7840, "jpeg_compression": 60.6500,
}  # fmt: skip
EXTRA_CORRUPTIONS = ("speckle_noise", "gaussian_blur", "spatter", "saturate")  # published beside the fifteen


@dataclass(frozen=True, slots=True)
class Published:
    """What a set has to hold."""

    title: str
    images: int  # of a corruption and severity, where there are some
    synsets: str = "imagenet"  # the list of its classes, among timm's


PUBLISHED = {
    "v2": Published("ImageNet-V2", 10_000),
    "a": Published("ImageNet-A", 7_500, "imagenet_a"),
    "r": Published("ImageNet-R", 30_000, "imagenet_r"),
    "sketch": Published("ImageNet-Sketch", 50_889),
    "c": Published("ImageNet-C", 50_000),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RobustnessFolder:
    """Class folders of test images that were found complete: a whole set, or one corruption and severity."""

    set: str  # v2, a, r, sketch or c
    path: Path
    labels: Mapping[str, int] = field(repr=False)  # class folder -> ImageNet's label
    fingerprint: str  # of the images' names, class by class
    corruption: str = ""
    severity: int = 0

    def reader(self) -> ReaderImageFolder:
        """timm's reader of the images; its labels are ImageNet's."""
        return ReaderImageFolder(str(self.path), self.labels)  # pyright: ignore[reportArgumentType]


def find_robustness(settings: Robustness, info: DataInfo) -> tuple[RobustnessFolder, ...]:
    """Find and check every folder of the settings; a corruption's severities follow one another.

    Raises:
        ValueError: there are none, one is not what it should be, or the data set `info`, which the network
            answers for, has other classes than ImageNet or has them in another order.
    """
    chosen = {key: Path(path).expanduser() for key in PUBLISHED if (path := getattr(settings, key))}
    if not chosen:
        raise ValueError(
            f"Stage robustness needs a folder of test images: --set robustness.a=/data/imagenet-a, say; "
            f"there are {', '.join(f'robustness.{key}' for key in PUBLISHED)}."
        )
    _check_classes(info)
    for key, path in chosen.items():
        if not path.is_dir():
            raise ValueError(
                f"robustness.{key}: no folder at {path}. Give that of {PUBLISHED[key].title}, extracted."
            )
    return tuple(found for key, path in chosen.items() for found in _find(key, path.resolve()))


def _check_classes(info: DataInfo) -> None:
    if info.num_classes != CLASSES:
        raise ValueError(
            f"Stage robustness is for networks of ImageNet's {CLASSES:,} classes, and {info.name} has "
            f"{info.num_classes}: give the ImageNet that the network was trained on with --data."
        )
    names, expected = info.class_names, _synsets("imagenet")
    if not names or (list(names) != sorted(names) and not set(names) & set(expected)):
        return  # a list of labels, or descriptions in an order of their own, neither of which can be checked
    for label, (name, synset) in enumerate(zip(names, expected, strict=True)):
        if name != synset:
            raise ValueError(
                f"Stage robustness needs ImageNet's classes in their order, and in {info.name} class "
                f"{label} is '{name}', not {synset}: name its class folders by synset and train on that."
            )


def _synsets(name: str) -> list[str]:
    """The names of one of timm's lists of synsets, by label."""
    file = resources.files("timm.data") / "_info" / f"{name}_synsets.txt"
    return file.read_text(encoding="utf-8").split()


def _labels(key: str) -> dict[str, int]:
    """Each name that a class folder of the set has -> ImageNet's label."""
    if key == "v2":
        return {str(label): label for label in range(CLASSES)}
    everything = {name: label for label, name in enumerate(_synsets("imagenet"))}
    return {name: everything[name] for name in _synsets(PUBLISHED[key].synsets)}


def _find(key: str, root: Path) -> Iterator[RobustnessFolder]:
    labels = _labels(key)
    if key == "c":
        for corruption, severity, path in _corrupted(root):
            mark = _check(key, path, labels)
            yield RobustnessFolder(
                set=key, path=path, labels=labels, fingerprint=mark, corruption=corruption, severity=severity
            )
        return
    inside = _folders(root)
    if len(inside) == 1 and not inside.keys() & labels.keys() and _folders(*inside.values()):
        root = Path(*inside.values())  # extracted into a folder of its own name
    yield RobustnessFolder(set=key, path=root, labels=labels, fingerprint=_check(key, root, labels))


def _corrupted(root: Path) -> Iterator[tuple[str, int, Path]]:
    """Corruptions and severities with their folders, the corruptions in `root` or one level below."""
    outer = _folders(root)
    known = [*ALEXNET_ERRORS, *EXTRA_CORRUPTIONS]
    found = {name: path for folder in outer.values() for name, path in _folders(folder).items()} | outer
    if not any(name in found for name in known):
        there = f"its first folder is '{min(outer)}'" if outer else "it has no folders at all"
        raise ValueError(f"{root} is not ImageNet-C: {there}, not a corruption such as {known[0]}.")
    if lacking := [name for name in ALEXNET_ERRORS if name not in found]:
        raise ValueError(
            f"{root} lacks {len(lacking)} of the {len(ALEXNET_ERRORS)} corruptions of ImageNet-C, the first "
            f"being {lacking[0]}: extract all of its tars."
        )
    for name, severity in product([name for name in known if name in found], SEVERITIES):
        path = found[name] / str(severity)
        if not path.is_dir():
            raise ValueError(f"{found[name]} lacks severity {severity} of 1 to 5: extract its tar again.")
        yield name, severity, path


def _check(key: str, root: Path, labels: Mapping[str, int]) -> str:
    """The fingerprint of the set's class folders in `root`; ValueError where they are not complete."""
    published, inside = PUBLISHED[key], _folders(root)
    if unknown := sorted(inside.keys() - labels.keys()):
        raise ValueError(
            f"{root} is not {published.title}: its folder '{unknown[0]}' is none of the {len(labels)} "
            f"classes ({next(iter(labels))} ...). Give the folder that holds these for robustness.{key}."
        )
    if lacking := [name for name in labels if name not in inside]:
        raise ValueError(
            f"{root} lacks {len(lacking)} of the {len(labels)} class folders of {published.title}, the first "
            f"being {lacking[0]}: give robustness.{key} the extracted set, or extract it again."
        )
    images = {name: _images(inside[name]) for name in labels}
    count = sum(map(len, images.values()))
    if count != published.images:
        raise ValueError(
            f"{root} has {count:,} images, {published.title} has {published.images:,}: extract it again."
        )
    return fingerprint(f"{name} {' '.join(files)}\n" for name, files in images.items())


def _folders(root: str | Path) -> dict[str, Path]:
    with os.scandir(root) as entries:
        return {e.name: Path(e.path) for e in entries if not e.name.startswith(".") and e.is_dir()}


def _images(folder: Path) -> list[str]:
    """The names of the images in a folder, sorted."""
    extensions = tuple(get_img_extensions())
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.name.lower().endswith(extensions))
