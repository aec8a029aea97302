"""The embedded data set is what its PROVENANCE.md says, and IDX files that are not are refused."""

import gzip
import hashlib
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from stmbench import data
from stmbench.data.fashion_mini import make
from stmbench.data.idx import IdxReader, read_idx, write_idx
from stmbench.data.sources import EMBEDDED

FILES = sorted(EMBEDDED.glob("*.gz"))


def test_fashion_mini_is_balanced() -> None:
    info = data.find("fashion-mini")
    assert (info.name, info.num_classes, info.num_train, info.num_val) == ("fashion-mini", 10, 10_000, 2_000)
    assert info.class_names[9] == "Ankle boot"
    for reader, count in ((info.train, 1000), (info.val, 200)):
        assert isinstance(reader, IdxReader)
        assert reader.images.shape[1:] == (28, 28)
        assert np.bincount(reader.labels).tolist() == [count] * 10
    assert sum(path.stat().st_size for path in FILES) < 8e6


def test_no_image_is_in_both_splits() -> None:
    info = data.find("fashion-mini")
    train, val = (
        {image.tobytes() for image in reader.images}
        for reader in (info.train, info.val)
        if isinstance(reader, IdxReader)
    )
    assert not train & val


def test_files_have_the_hashes_of_the_provenance() -> None:
    text = (EMBEDDED / "PROVENANCE.md").read_text()
    subset = text.split("subset, as packed")[1]
    rows = re.findall(r"\| (\S+\.gz) \| (\w{64}) \| (\w{64}) \|", subset)
    assert [name for name, *_ in sorted(rows)] == [path.name for path in FILES]
    for name, packed, unpacked in rows:
        content = (EMBEDDED / name).read_bytes()
        assert hashlib.sha256(content).hexdigest() == packed
        assert hashlib.sha256(gzip.decompress(content)).hexdigest() == unpacked


def test_the_licence_is_there() -> None:
    assert "Zalando SE" in (EMBEDDED / "LICENSE").read_text()


@pytest.mark.skipif(not make.SOURCE.is_dir(), reason="needs Debian's dataset-fashion-mnist")
def test_the_subset_follows_from_the_full_set() -> None:
    files = make.subset(make.SOURCE)
    assert sorted(files) == [path.name for path in FILES]
    for path in FILES:
        np.testing.assert_array_equal(files[path.name], read_idx(path, axes=files[path.name].ndim))


def test_the_first_images_of_each_class_are_kept_in_order() -> None:
    labels = np.array([1, 0, 1, 1, 0, 0])
    assert make.first_of_each_class(labels, 2).tolist() == [0, 1, 2, 4]


def test_idx_files_are_found_plain_gzipped_and_below_raw(tmp_path: Path) -> None:
    for path in FILES:  # as torchvision leaves them
        target = tmp_path / "FashionMNIST" / "raw" / path.stem
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(gzip.decompress(path.read_bytes()))
    plain = data.find(str(tmp_path / "FashionMNIST"))
    assert plain == data.find(plain.source)
    assert (plain.name, plain.num_train) == ("FashionMNIST", 10_000)
    assert plain.fingerprint == data.find("fashion-mini").fingerprint


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: path.unlink(), "is missing"),
        (lambda path: path.write_bytes(path.read_bytes()[:2000]), "cannot be read"),
        (lambda path: path.write_bytes(b"hello"), "cannot be read"),
        (lambda path: write_idx(path, np.zeros(3)), "not an IDX file of bytes with 3 axes"),
        (lambda path: write_idx(path, np.zeros((3, 28, 28))), "3 train images but 10000 labels"),
    ],
)
def test_spoilt_idx_files_are_refused(tmp_path: Path, spoil: object, message: str) -> None:
    for path in FILES:
        shutil.copy(path, tmp_path)
    images = tmp_path / "train-images-idx3-ubyte.gz"
    if message == "is missing":
        images = tmp_path / "t10k-images-idx3-ubyte.gz"
    assert callable(spoil)
    spoil(images)
    with pytest.raises(ValueError, match=message):
        data.find(str(tmp_path))


def test_written_idx_files_depend_on_the_values_alone(tmp_path: Path) -> None:
    values = np.arange(60, dtype=np.uint8).reshape(3, 4, 5)
    for name in ("a.gz", "b.gz"):
        write_idx(tmp_path / name, values)
    assert (tmp_path / "a.gz").read_bytes() == (tmp_path / "b.gz").read_bytes()
    np.testing.assert_array_equal(read_idx(tmp_path / "a.gz", axes=3), values)


def test_the_fingerprint_covers_every_value(tmp_path: Path) -> None:
    images, labels = np.zeros((4, 5, 5), np.uint8), np.array([0, 1, 0, 1], np.uint8)

    def mark(name: str, images: np.ndarray, labels: np.ndarray) -> str:
        (tmp_path / name).mkdir()
        for prefix in ("train", "t10k"):
            write_idx(tmp_path / name / f"{prefix}-images-idx3-ubyte.gz", images)
            write_idx(tmp_path / name / f"{prefix}-labels-idx1-ubyte.gz", labels)
        return data.find(str(tmp_path / name)).fingerprint

    pixel = images.copy()
    pixel[3, 4, 4] = 1
    first = mark("first", images, labels)
    assert mark("same", images, labels) == first
    assert len({first, mark("pixel", pixel, labels), mark("label", images, labels[::-1])}) == 3


def test_unknown_names_help() -> None:
    with pytest.raises(ValueError, match="Did you mean 'fashion-mini'"):
        data.find("fashion-mni")
    with pytest.raises(ValueError, match="No data at /nowhere/images"):
        data.find("/nowhere/images")
