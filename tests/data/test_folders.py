"""Class folders, lists and tars hold the same images, and layouts that do not fit are refused."""

import shutil
from pathlib import Path

import pytest
from PIL import Image
from samples import CLASSES, images_of, pack, write_image

from stmbench import data
from stmbench.data.folders import MISSING_SHARE, TarReader
from stmbench.data.info import DataInfo


def to_lists(root: Path) -> Path:
    """The same images as lists under meta/, with the labels of the sorted class names."""
    (root / "meta").mkdir()
    for split in ("train", "val"):
        paths = sorted((root / split).rglob("*.png"))
        lines = [f"{p.relative_to(root / split)} {CLASSES.index(p.parent.name)}\n" for p in paths]
        (root / "meta" / f"{split}.txt").write_text("".join(lines))
    return root


def to_tars(root: Path) -> Path:
    """train.tar and val.tar instead of the folders."""
    for split in ("train", "val"):
        pack(root / split, root / f"{split}.tar")
        shutil.rmtree(root / split)
    return root


def to_class_tars(root: Path) -> Path:
    """A tar for each class."""
    for split in ("train", "val"):
        for name in CLASSES:
            pack(root / split / name, root / split / f"{name}.tar")
            shutil.rmtree(root / split / name)
    return root


def contents(info: DataInfo, split: str) -> list[tuple[bytes, int]]:
    images = images_of(info.source, split)
    return [(image.tobytes(), label) for image, label in (images[i] for i in range(len(images)))]


@pytest.mark.parametrize("layout", [to_lists, to_tars, to_class_tars])
def test_layouts_hold_the_same_images(folder: Path, layout: object, tmp_path: Path) -> None:
    other = tmp_path / "other" / folder.name
    shutil.copytree(folder, other)
    assert callable(layout)
    expected, info = data.find(str(folder)), data.find(str(layout(other)))
    assert (info.name, info.num_classes, info.num_train, info.num_val) == ("animals", 3, 12, 6)
    assert [label for _, label in contents(info, "train")] == [0] * 4 + [1] * 4 + [2] * 4
    for split in ("train", "val"):
        assert contents(info, split) == contents(expected, split)
    assert info.class_names == (() if layout is to_lists else CLASSES)


@pytest.mark.parametrize("name", ["validation", "test"])
def test_the_validation_folder_goes_by_three_names(folder: Path, name: str) -> None:
    (folder / "val").rename(folder / name)
    assert data.find(str(folder)).num_val == 6


def test_a_tar_stands_for_its_folder(folder: Path) -> None:
    assert data.find(str(to_tars(folder) / "train.tar")).num_train == 12


@pytest.mark.parametrize("layout", [lambda root: root, to_lists, to_tars, to_class_tars])
def test_the_fingerprint_covers_names_and_sizes(folder: Path, tmp_path: Path, layout: object) -> None:
    assert callable(layout)

    def copy(name: str) -> Path:
        return Path(shutil.copytree(folder, tmp_path / name))

    moved, renamed, resized, fewer = map(copy, "abcd")
    (renamed / "train/ant/0.png").rename(renamed / "train/ant/9.png")
    with (resized / "val/cow/1.png").open("ab") as file:
        file.write(b"!")
    (fewer / "train/bee/3.png").unlink()
    original = data.find(str(layout(folder))).fingerprint
    assert data.find(str(layout(moved))).fingerprint == original
    others = {data.find(str(layout(path))).fingerprint for path in (renamed, resized, fewer)}
    assert len(others | {original}) == 4


def test_classes_are_numbered_as_in_training(folder: Path) -> None:
    shutil.rmtree(folder / "val" / "ant")
    assert [label for _, label in contents(data.find(str(folder)), "val")] == [1, 1, 2, 2]


@pytest.mark.parametrize("layout", [lambda root: root, to_tars])
def test_a_validation_class_that_training_lacks_is_refused(folder: Path, layout: object) -> None:
    write_image(folder / "val" / "dog" / "0.png", 1)
    assert callable(layout)
    with pytest.raises(ValueError, match=r"has classes that .* lacks: dog"):
        data.find(str(layout(folder)))


def test_layouts_that_are_not_there_are_named(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"no train/ folder or train\.tar"):
        data.find(str(tmp_path / "empty"))
    shutil.rmtree(folder / "val")
    with pytest.raises(ValueError, match="no val/ folder"):
        data.find(str(folder))
    (folder / "val").mkdir()
    with pytest.raises(ValueError, match=f"No images can be read from {folder}/val"):
        data.find(str(folder))


def test_images_outside_class_folders_are_refused(folder: Path) -> None:
    write_image(folder / "train" / "stray.png", 1)
    with pytest.raises(ValueError, match="outside any class folder"):
        data.find(str(folder))


def test_a_broken_tar_is_refused(folder: Path) -> None:
    to_tars(folder)
    (folder / "val.tar").write_bytes(b"not a tar" * 100)
    with pytest.raises(ValueError, match=r"No images can be read from .*val\.tar"):
        data.find(str(folder))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "train.txt is empty"),
        ("ant/0.png\n", "train.txt, line 1: expected"),
        ("ant/0.png 0\nant/1.png one\n", "train.txt, line 2: expected"),
        ("ant/0.png -1\n", "train.txt, line 1: expected"),
        ("ant/0.png 0\nbee/0.png 1\nno.png 2\n", r"1 of the 3 images .* the first being no\.png"),
        ("ant/0.png 0\n", r"labels that train.txt lacks: 1, 2\."),
    ],
)
def test_lists_that_do_not_fit_are_refused(folder: Path, text: str, message: str) -> None:
    to_lists(folder)
    (folder / "meta" / "train.txt").write_text(text)
    with pytest.raises(ValueError, match=message):
        data.find(str(folder))


def test_a_list_without_its_other_half_is_refused(folder: Path) -> None:
    (to_lists(folder) / "meta" / "val.txt").unlink()
    with pytest.raises(ValueError, match=r"val\.txt is missing"):
        data.find(str(folder))


def test_a_rare_missing_file_of_a_list_is_left_to_the_loader(folder: Path) -> None:
    to_lists(folder)
    lines = ["ant/0.png 0\n", "bee/0.png 1\n", "cow/0.png 2\n"] * 40 + ["not/there.png 1\n"]
    assert 1 / len(lines) < MISSING_SHARE
    (folder / "meta" / "train.txt").write_text("".join(lines))
    images = images_of(folder)
    _, label = images[len(lines) - 1]
    assert (label, images.skipped, images.skipped_names()) == (0, 1, ["not/there.png"])


def test_names_may_hold_spaces(folder: Path) -> None:
    write_image(folder / "train" / "ant" / "an ant.png", 5)
    to_lists(folder)
    assert data.find(str(folder)).num_train == 13


def test_a_tar_reader_opens_its_own_file_in_another_process(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = data.find(str(to_tars(folder))).train
    assert isinstance(reader, TarReader)
    with reader[0][0] as file, Image.open(file) as image:
        image.load()
    parent = reader.tar_state.tf
    monkeypatch.setattr("os.getpid", lambda: -1)
    with reader[0][0] as file, Image.open(file) as image:
        image.load()
    assert reader.tar_state.tf is not parent
    for tar in (parent, reader.tar_state.tf):
        tar.close()


def test_folders_within_class_folders_are_refused(folder: Path) -> None:
    image = next((folder / "train" / "bee").iterdir())
    (image.parent / "more").mkdir()
    image.rename(image.parent / "more" / image.name)
    with pytest.raises(ValueError, match="is not directly in a class folder"):
        data.find(str(folder))


def test_one_class_is_nothing_to_tell_apart(folder: Path) -> None:
    for name in CLASSES[1:]:
        for split in ("train", "val"):
            shutil.rmtree(folder / split / name)
    with pytest.raises(ValueError, match="one class only"):
        data.find(str(folder))
