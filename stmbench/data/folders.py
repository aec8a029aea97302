"""Image data sets on a disk, in the usual layouts.

- class folders: ``train/CLASS/*.jpg`` and ``val/CLASS/*.jpg`` (also ``validation/`` or ``test/``);
- lists: ``meta/train.txt`` and ``meta/val.txt``, a line ``relative/path.JPEG label`` for each image, the
  images under ``train/`` and ``val/`` (ImageNet-1k, Russakovsky et al. 2015, arXiv:1409.0575);
- tars: ``train.tar`` and ``val.tar`` that hold class folders, or ``train/`` and ``val/`` with a tar a class.

A fingerprint here covers every image's name and size, and its label in a list, but not its contents.
"""

import copy
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from timm.data.readers.reader_image_folder import ReaderImageFolder
from timm.data.readers.reader_image_in_tar import ReaderImageInTar
from timm.utils.misc import natural_key

from stmbench.data.info import SPLITS, DataInfo, few, fingerprint

VAL_NAMES = ("val", "validation", "test")
LAYOUTS = (
    "train/CLASS/ and val/CLASS/ folders, meta/train.txt and meta/val.txt lists, "
    "train.tar and val.tar, or the IDX files of MNIST's family"
)
MISSING_SHARE = 0.01  # of the images of a list, from which on the list is taken to be wrong


def find_images(root: Path) -> DataInfo:
    """Find the images under `root` in whichever of the layouts it has.

    Raises:
        ValueError: `root` has none of them, a split is empty, or the splits do not fit together.
    """
    root = root.resolve()
    if (root / "meta" / "train.txt").is_file():
        return _find_lists(root)
    if root.is_file() and root.suffix == ".tar":
        root = root.parent
    paths = {"train": _split(root, ("train",)), "val": _split(root, VAL_NAMES)}
    for split, path in paths.items():
        if path is None:
            raise ValueError(f"{root} has no {split}/ folder or {split}.tar. Known layouts: {LAYOUTS}.")
    return _find_classes(root, paths["train"], paths["val"])  # pyright: ignore[reportArgumentType]


class TarReader(ReaderImageInTar):
    """timm's reader of tars; safe to share with loader processes, ordered, and free of pickled caches."""

    def __init__(self, root: str, class_map: Any = None) -> None:
        super().__init__(root, class_map, cache_tarinfo=False)
        # timm sorts by the name inside a tar alone; ties stay in the order the file system lists the tars
        order = sorted(range(len(self)), key=lambda index: natural_key(self.filename(index)))
        self.samples, self.targets = self.samples[order], self.targets[order]
        self._closed = copy.deepcopy(self.tar_state)
        self._process = os.getpid()

    def __getitem__(self, index: int) -> Any:
        if self._process != os.getpid():  # a forked file shares its parent's position: open our own
            self.tar_state, self._process = copy.deepcopy(self._closed), os.getpid()
        return super().__getitem__(index)

    def filename(self, index: int, basename: bool = False, absolute: bool = False) -> Any:
        """The path inside the tar, after the names of the tars it is in."""
        info, tar, inner = self.samples[index]
        return "/".join([*filter(None, (tar, inner and inner.name)), info.path])

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"tar_state": copy.deepcopy(self._closed)}

    def __del__(self) -> None:
        states = self.__dict__.get("tar_state", {})
        for state in states.values() if isinstance(states, dict) else [states]:
            if state.tf is not None:
                state.tf.close()


class ListReader:
    """The images that the lines ``relative/path label`` of a list name, under `folder`."""

    def __init__(self, folder: Path, path: Path) -> None:
        self.folder = folder
        self.samples = [_sample(path, number, line) for number, line in _lines(path)]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[IO[bytes], int]:
        name, label = self.samples[index]
        return (self.folder / name).open("rb"), label

    def filename(self, index: int) -> str:
        return self.samples[index][0]


def _split(root: Path, names: tuple[str, ...]) -> Path | None:
    candidates = [path for name in names for path in (root / name, root / f"{name}.tar")]
    return next((path for path in candidates if path.is_dir() or path.is_file()), None)


def _find_classes(root: Path, train_path: Path, val_path: Path) -> DataInfo:
    train, classes = _open(train_path)
    val, val_classes = _open(val_path)
    if lacking := [name for name in val_classes if name not in classes]:
        raise ValueError(
            f"{val_path} has classes that {train_path} lacks: {few(lacking)}. Both need the same classes."
        )
    if len(classes) < 2:
        raise ValueError(f"{train_path} has one class only, {next(iter(classes))}: nothing to tell apart.")
    if val_classes != classes:
        val, _ = _open(val_path, classes)  # number its classes as in training
    names = tuple(sorted(classes, key=classes.__getitem__))
    return DataInfo(
        name=root.name,
        source=str(root),
        num_classes=len(classes),
        fingerprint=fingerprint([*_sizes("train", train), *_sizes("val", val)]),
        class_names=names,
        train=train,
        val=val,
    )


def _open(path: Path, classes: dict[str, int] | None = None) -> tuple[Any, dict[str, int]]:
    """timm's reader of one split, and its classes by name."""
    try:
        reader: Any
        if path.is_file() or next(path.glob("*.tar"), None):
            reader = TarReader(str(path), classes)
            found = reader.class_name_to_idx
        else:
            reader = ReaderImageFolder(str(path), classes)  # pyright: ignore[reportArgumentType]
            found = reader.class_to_idx
    except Exception as error:  # timm's own checks are asserts and bare errors; tarfile adds its own
        raise ValueError(f"No images can be read from {path}: {error or 'none found'}.") from None
    if "" in found or "." in found:
        raise ValueError(f"{path} has images outside any class folder; sort them into {path.name}/CLASS/.")
    if isinstance(reader, ReaderImageFolder):  # timm would take the innermost folder for the class
        nested = next((file for file, _ in reader.samples if Path(file).parent.parent != path), None)
        if nested:
            raise ValueError(
                f"{nested} is not directly in a class folder; {path.name}/CLASS/ holds its images."
            )
    return reader, found


def _sizes(split: str, reader: Any) -> Iterator[str]:
    """One line per image, names sorted: its name and its size in bytes."""
    if isinstance(reader, TarReader):
        lines = [f"{reader.filename(i)} {sample[0].size}" for i, sample in enumerate(reader.samples)]
    else:
        start = len(reader.root) + 1
        lines = [f"{path[start:]} {Path(path).stat().st_size}" for path, _ in reader.samples]
    return (f"{split} {line}\n" for line in sorted(lines))


def _find_lists(root: Path) -> DataInfo:
    readers = {split: ListReader(root / split, root / "meta" / f"{split}.txt") for split in SPLITS}
    labels = {split: {label for _, label in reader.samples} for split, reader in readers.items()}
    if lacking := sorted(labels["val"] - labels["train"]):
        raise ValueError(f"{root}/meta/val.txt has labels that train.txt lacks: {few(lacking)}.")
    return DataInfo(
        name=root.name,
        source=str(root),
        num_classes=max(labels["train"]) + 1,
        fingerprint=fingerprint(line for split in SPLITS for line in _list_sizes(split, readers[split])),
        train=readers["train"],
        val=readers["val"],
    )


def _list_sizes(split: str, reader: ListReader) -> list[str]:
    lines, missing = [], []
    for name, label in reader.samples:
        try:
            size = (reader.folder / name).stat().st_size
        except OSError:
            size = -1  # counted as unreadable when its turn comes
            missing.append(name)
        lines.append(f"{split} {name} {size} {label}\n")
    if len(missing) > MISSING_SHARE * len(reader):
        raise ValueError(
            f"{len(missing)} of the {len(reader)} images that meta/{split}.txt lists are not in "
            f"{reader.folder}, the first being {missing[0]}."
        )
    return sorted(lines)


def _lines(path: Path) -> list[tuple[int, str]]:
    if not path.is_file():
        raise ValueError(f"{path} is missing.")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not a text file: {error}.") from None
    lines = [(number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    if not lines:
        raise ValueError(f"{path} is empty.")
    return lines


def _sample(path: Path, number: int, line: str) -> tuple[str, int]:
    name, _, label = line.strip().rpartition(" ")
    if not name or not label.isascii() or not label.isdigit():
        raise ValueError(f"{path}, line {number}: expected 'relative/path.JPEG label', not '{line.strip()}'.")
    return name.strip(), int(label)
