"""Data sets by the names timm gives them: ``torch/``, ``hfds/``, ``hfids/``, ``wds/`` and ``tfds/``.

Options follow a question mark: ``torch/cifar10?root=/data``, ``hfds/NAME?val=test``,
``wds//data/shards?classes=1000``. The first two are read at random, the others as streams.
"""

from dataclasses import dataclass
from importlib.util import find_spec
from typing import IO, Any

from PIL import Image
from timm.data.dataset_factory import create_dataset
from timm.data.readers.reader_factory import create_reader

from stmbench.catalog import known
from stmbench.data.info import SPLITS, DataInfo, fingerprint

OPTIONS = ("root", "train", "val", "classes", "download")
STREAMS = ("hfids", "wds", "tfds")
# prefix -> the module it needs, and how to install it
NEEDS = {
    "torch": ("torchvision", "pip install torchvision"),
    "hfds": ("datasets", "pip install 'stmbench[hf]'"),
    "hfids": ("datasets", "pip install 'stmbench[hf]'"),
    "wds": ("webdataset", "pip install 'stmbench[webdataset]'"),
    "tfds": ("tensorflow_datasets", "pip install tensorflow tensorflow-datasets"),
}


@dataclass(frozen=True, slots=True)
class Named:
    """A data set's prefixed name taken apart."""

    source: str
    name: str  # prefix and all, without options
    options: dict[str, str]

    @property
    def prefix(self) -> str:
        return self.name.partition("/")[0].lower()

    @property
    def root(self) -> str | None:
        """The folder timm is told; of webdataset shards the name is the folder."""
        return self.name.partition("/")[2] if self.prefix == "wds" else self.options.get("root")

    def split(self, split: str) -> str:
        return self.options.get(split, {"train": "train", "val": "validation"}[split])


class TimmReader:
    """One of timm's or torchvision's data sets with random access, and its labels where known."""

    def __init__(self, items: Any, labels: list[int], class_names: tuple[str, ...]) -> None:
        self.items, self.labels, self.class_names = items, labels, class_names

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[IO[bytes] | Image.Image, int]:
        return self.items[index]

    def filename(self, index: int) -> str:
        return f"image {index}"


class TimmStream:
    """One split of a data set that is read in sequence; opened once for each loader."""

    def __init__(self, named: Named, split: str) -> None:
        self.named, self.split = named, split
        reader = self.open()
        self.num_samples: int = reader.num_samples
        self.class_names = tuple(map(str, sorted(reader.class_to_idx, key=reader.class_to_idx.__getitem__)))

    def __len__(self) -> int:
        return self.num_samples

    def open(self, **options: Any) -> Any:
        """timm's iterable reader, with its options for training."""
        named = self.named
        download = bool(named.options.get("download"))
        return create_reader(
            named.name, root=named.root, split=named.split(self.split), download=download, **options
        )


def is_prefixed(source: str) -> bool:
    """Whether the source is one of timm's prefixed names."""
    return "/" in source and source.partition("/")[0].lower() in NEEDS


def find_prefixed(source: str) -> DataInfo:
    """Open both splits of a data set that timm knows by name.

    Raises:
        ValueError: an unknown option, a package that is not installed, or data that cannot be opened.
    """
    named = _parse(source)
    module, install = NEEDS[named.prefix]
    if find_spec(module) is None:
        raise ValueError(f"'{named.name}' needs a package that is not installed: {install}")
    try:
        train, val = (_open(named, split) for split in SPLITS)
    except Exception as error:  # each library behind timm has its own errors
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(
            f"timm cannot open '{source}': {lines[0]} (Options go as {named.name}?val=test&root=FOLDER; "
            f"there are {', '.join(OPTIONS)}.)"
        ) from error
    return _info(named, train, val)


def _parse(source: str) -> Named:
    name, _, query = source.partition("?")
    options = {}
    for part in filter(None, query.split("&")):
        key, _, value = part.partition("=")
        options[known("data option", key, OPTIONS)] = value
    if not options.get("classes", "1").isdigit():
        raise ValueError(f"classes must be a number, not '{options['classes']}'.")
    return Named(source, name, options)


def _open(named: Named, split: str) -> Any:
    if named.prefix in STREAMS:
        return TimmStream(named, split)
    if named.prefix == "hfds":
        reader: Any = create_reader(named.name, root=named.root, split=named.split(split))
        names = sorted(reader.class_to_idx, key=reader.class_to_idx.__getitem__)
        return TimmReader(reader, list(map(int, reader.dataset[reader.label_key])), tuple(map(str, names)))
    if named.root is None:
        raise ValueError("it needs the folder of the data")
    download = bool(named.options.get("download"))
    items: Any = create_dataset(named.name, root=named.root, split=named.split(split), download=download)
    return TimmReader(items, list(map(int, items.targets)), tuple(map(str, items.classes)))


def _info(named: Named, train: Any, val: Any) -> DataInfo:
    if not len(train):
        raise ValueError(f"'{named.source}' has no training images.")
    num_classes = int(named.options.get("classes", 0)) or len(train.class_names)
    parts = [named.name.lower(), f" {len(train)} {len(val)}"]
    if isinstance(train, TimmReader):
        num_classes = num_classes or max(train.labels) + 1
        if lacking := sorted(set(val.labels) - set(train.labels)):
            raise ValueError(f"'{named.source}': no training image has the validation label {lacking[0]}.")
        parts += [f" {label}" for label in (*train.labels, *val.labels)]
    if not num_classes:
        raise ValueError(f"'{named.source}' does not say its number of classes: add ?classes=N.")
    return DataInfo(
        name=named.name,
        source=named.source,
        num_classes=num_classes,
        fingerprint=fingerprint(parts),
        class_names=train.class_names,
        train=train,
        val=val,
    )
