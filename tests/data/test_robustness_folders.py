"""Folders of other test sets: found in their usual layouts, labelled by name, refused unless complete."""

import dataclasses
import re
import shutil
from pathlib import Path

import pytest
from imagenet_sets import NUMBERS, SYNSETS, A, R, corrupted, fill, imagenet, label, publish, write

from stmbench import data
from stmbench.data import DataInfo, find_robustness
from stmbench.data.robustness import ALEXNET_ERRORS, EXTRA_CORRUPTIONS, PUBLISHED, SEVERITIES
from stmbench.recipe import Robustness


@pytest.fixture(scope="module")
def info(tmp_path_factory: pytest.TempPathFactory) -> DataInfo:
    return data.find(str(imagenet(tmp_path_factory.mktemp("imagenet"))))


@pytest.fixture(scope="module")
def complete(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sets v2 and a, and five severities with the classes of a, one image in each class."""
    root = tmp_path_factory.mktemp("sets")
    fill(root / "v2", NUMBERS, lambda label: label)
    fill(root / "a", A, lambda label: label)
    for severity in SEVERITIES:
        (root / "all" / str(severity)).parent.mkdir(exist_ok=True)
        (root / "all" / str(severity)).symlink_to(root / "a")
    return root


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the sets had been published with one image in each class, and C with the classes of A."""
    publish(monkeypatch, v2={"images": 1000}, a={"images": 200}, r={"images": 200}, sketch={"images": 1000})
    publish(monkeypatch, c={"images": 200, "synsets": "imagenet_a"})


def test_what_was_published() -> None:
    assert {key: each.images for key, each in PUBLISHED.items()} == {
        "v2": 10_000,
        "a": 7_500,
        "r": 30_000,
        "sketch": 50_889,
        "c": 50_000,
    }
    assert len(A) == len(R) == 200
    assert sorted(SYNSETS) == SYNSETS
    assert len(ALEXNET_ERRORS) == 15
    # table 1 of arXiv:1903.12261, rounded there
    assert [round(error) for error in ALEXNET_ERRORS.values()] == [
        *(89, 89, 92), *(82, 83, 79, 80), *(87, 83, 82, 56), *(85, 65, 72, 61)
    ]  # fmt: skip


@pytest.mark.usefixtures("small")
def test_labels_come_from_the_names_of_folders(info: DataInfo, complete: Path) -> None:
    settings = Robustness(v2=str(complete / "v2"), a=str(complete / "a"))
    v2, a = find_robustness(settings, info)
    for folder, count in ((v2, 1000), (a, 200)):
        samples = folder.reader().samples
        assert len(samples) == count
        for path, found in samples:
            assert found == label(Path(path).parent.name)
    assert (v2.set, a.set) == ("v2", "a")
    assert v2.fingerprint != a.fingerprint


@pytest.mark.usefixtures("small")
def test_one_more_folder_around_a_set(info: DataInfo, complete: Path, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "imagenet-a").symlink_to(complete / "a")
    (tmp_path / "a" / "README.txt").write_text("")
    (found,) = find_robustness(Robustness(a=str(tmp_path / "a")), info)
    (plain,) = find_robustness(Robustness(a=str(complete / "a")), info)
    assert len(found.reader()) == 200
    assert found.fingerprint == plain.fingerprint


@pytest.mark.usefixtures("small")
def test_corruptions_may_lie_in_the_folders_of_their_tars(
    info: DataInfo, complete: Path, tmp_path: Path
) -> None:
    severities = {"": complete / "all"}
    corrupted(tmp_path / "c" / "noise", severities, list(ALEXNET_ERRORS)[:3])
    corrupted(tmp_path / "c", severities, list(ALEXNET_ERRORS)[3:])
    corrupted(tmp_path / "c" / "extra", severities, ["saturate"])
    found = find_robustness(Robustness(c=str(tmp_path / "c")), info)
    names = [*ALEXNET_ERRORS, "saturate"]
    assert [(f.corruption, f.severity) for f in found] == [(n, s) for n in names for s in SEVERITIES]
    assert "saturate" in EXTRA_CORRUPTIONS


def test_the_fingerprint_is_of_the_names(info: DataInfo, tmp_path: Path, monkeypatch) -> None:
    publish(monkeypatch, a={"images": 201})
    settings = Robustness(a=str(fill(tmp_path / "a", A, lambda label: label)))
    marks = []
    for name in ("1.png", "2.JPEG"):
        write(tmp_path / "a" / A[7] / "1.png", 0)
        (tmp_path / "a" / A[7] / "1.png").rename(tmp_path / "a" / A[7] / name)
        marks.append(find_robustness(settings, info)[0].fingerprint)
        (tmp_path / "a" / A[7] / name).unlink()
    assert marks[0] != marks[1]


def refused(settings: Robustness, info: DataInfo, line: str) -> None:
    with pytest.raises(ValueError, match=line) as error:
        find_robustness(settings, info)
    assert "\n" not in str(error.value)


def test_no_folder_at_all(info: DataInfo, tmp_path: Path) -> None:
    refused(Robustness(), info, r"needs a folder .* robustness\.v2, robustness\.a, .*, robustness\.c\.$")
    gone = tmp_path / "gone"
    refused(Robustness(r=str(gone)), info, rf"robustness\.r: no folder at {re.escape(str(gone))}\. Give that")


def test_a_copy_with_too_few_images(info: DataInfo, complete: Path) -> None:
    """By the real counts."""
    v2, a = complete / "v2", complete / "a"
    refused(Robustness(v2=str(v2)), info, f"{v2} has 1,000 images, ImageNet-V2 has 10,000: extract it again")
    refused(Robustness(a=str(a)), info, f"{a} has 200 images, ImageNet-A has 7,500")


def test_a_folder_of_another_set(info: DataInfo, complete: Path) -> None:
    unknown = min(set(A) - set(R))
    refused(Robustness(r=str(complete / "a")), info, f"is not ImageNet-R: its folder '{unknown}' is none of")
    refused(Robustness(sketch=str(complete / "v2")), info, "is not ImageNet-Sketch: its folder '0' is none")
    lacking = next(name for name in SYNSETS if name not in A)
    line = f"lacks 800 of the 1000 class folders of ImageNet-Sketch, the first being {lacking}"
    refused(Robustness(sketch=str(complete / "a")), info, line)


def test_missing_classes(info: DataInfo, tmp_path: Path) -> None:
    root = fill(tmp_path / "v2", NUMBERS, lambda label: label)
    for name in ("17", "400"):
        shutil.rmtree(root / name)
    refused(Robustness(v2=str(root)), info, f"{root} lacks 2 of the 1000 class folders .* being 17:")
    refused(Robustness(a=str(tmp_path)), info, "its folder '0' is none of the 200 classes")  # one level down
    (tmp_path / "empty").mkdir()
    refused(Robustness(a=str(tmp_path / "empty")), info, "lacks 200 of the 200 class folders of ImageNet-A")


@pytest.mark.usefixtures("small")
def test_what_c_can_lack(info: DataInfo, complete: Path, tmp_path: Path, monkeypatch) -> None:
    root = corrupted(tmp_path / "c", {"": complete / "all"})
    settings = Robustness(c=str(root))
    assert len(find_robustness(settings, info)) == 75
    (root / "fog" / "3").rename(tmp_path / "3")
    refused(settings, info, f"{root}/fog lacks severity 3 of 1 to 5")
    shutil.rmtree(root / "fog")
    shutil.rmtree(root / "snow")
    refused(settings, info, f"{root} lacks 2 of the 15 corruptions of ImageNet-C, the first being snow")
    refused(Robustness(c=str(complete / "a")), info, f"is not ImageNet-C: its first folder is '{min(A)}'")
    corrupted(root, {"": complete / "all"}, ["fog", "snow"])
    publish(monkeypatch, c={"images": 201})
    refused(settings, info, "/gaussian_noise/1 has 200 images, ImageNet-C has 201")
    (tmp_path / "empty").mkdir()
    refused(Robustness(c=str(tmp_path / "empty")), info, "is not ImageNet-C: it has no folders at all")


def test_the_network_must_know_imagenets_classes(info: DataInfo, complete: Path) -> None:
    settings = Robustness(v2=str(complete / "v2"))
    refused(settings, data.find("fashion-mini"), "ImageNet's 1,000 classes, and fashion-mini has 10: give")
    swapped = (SYNSETS[1], SYNSETS[0], *SYNSETS[2:])
    line = f"class 0 is '{SYNSETS[1]}', not {SYNSETS[0]}"
    refused(settings, dataclasses.replace(info, class_names=swapped), line)
    words = tuple(sorted(f"word {name}" for name in SYNSETS))  # class folders in the order of the alphabet
    refused(settings, dataclasses.replace(info, class_names=words), "class 0 is 'word n01440764', not n0")


@pytest.mark.usefixtures("small")
def test_classes_that_nobody_can_check_are_believed(info: DataInfo, complete: Path) -> None:
    settings = Robustness(v2=str(complete / "v2"))
    for names in ((), ("tench, Tinca tinca", "goldfish", *map(str, range(998)))):
        assert find_robustness(settings, dataclasses.replace(info, class_names=names))
