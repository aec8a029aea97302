"""COCO's format: layouts hold the same objects, real ids are kept, and what is broken is named."""

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import coco_set
import numpy as np
import pytest
import torch
from coco_set import annotated, content, dump, paint, write
from samples import truncate

from stmbench import data
from stmbench.data import DetectionInfo, masks, sources


@pytest.fixture(autouse=True)
def fresh() -> None:
    """A data set that a test changes is read again."""
    sources.find_detection.cache_clear()


def find(root: Path) -> DetectionInfo:
    return data.find_detection(str(root))


def objects(info: DetectionInfo) -> list[Any]:
    splits = (info.train, info.val)
    return [(s[i][0].tobytes(), s.annotations[i]) for s in splits for i in range(len(s))]


# Layouts


def beside(root: Path) -> None:
    """train.json and val.json, the images of both in images/."""
    for split, seed in (("train", 0), ("val", 1)):
        values = content(6, seed=seed)
        for image in values["images"]:
            image["file_name"] = f"{split}{image['file_name']}"
        paint(values, root / "images")
        dump(values, root / f"{split}.json")


def inside(root: Path) -> None:
    """A file in each of train/ and valid/, beside its images."""
    for folder, seed in (("train", 0), ("valid", 1)):
        paint(content(6, seed=seed), root / folder)
        dump(content(6, seed=seed), root / folder / "_annotations.coco.json")


def with_paths(root: Path) -> None:
    """annotations/train.json and test.json, whose files are named from the root on."""
    for split, seed in (("train", 0), ("test", 1)):
        values = content(6, seed=seed)
        paint(values, root / split)
        for image in values["images"]:
            image["file_name"] = f"{split}/{image['file_name']}"
        dump(values, root / "annotations" / f"{split}.json")


@pytest.mark.parametrize("layout", [beside, inside, with_paths])
def test_layouts_hold_the_same_objects(layout: Callable[[Path], None], tmp_path: Path) -> None:
    layout(tmp_path / "other")
    ours, other = find(write(tmp_path / "coco")), find(tmp_path / "other")
    assert objects(other) == objects(ours)
    assert (other.num_classes, other.category_ids, other.has_masks) == (3, (3, 7, 90), True)
    assert other.notes == ()


def test_files_for_other_tasks_are_passed_over(tmp_path: Path) -> None:
    write(tmp_path)
    for name in ("captions_train2017", "person_keypoints_val2017", "image_info_test2017"):
        dump({}, tmp_path / "annotations" / f"{name}.json")
    assert find(tmp_path).num_train == 6


def test_of_a_single_file_every_fifth_image_validates(tmp_path: Path) -> None:
    paint(content(11), tmp_path)
    dump(content(11), tmp_path / "annotations.json")
    info = find(tmp_path)
    assert [info.val.filename(i) for i in range(info.num_val)] == ["004.png", "009.png"]
    assert info.num_train == 9
    assert not {info.train.filename(i) for i in range(9)} & {"004.png", "009.png"}
    assert "every fifth image" in info.notes[0]
    assert objects(find(tmp_path / "annotations.json")) == objects(info)


def test_a_few_real_photos_with_masks() -> None:
    folder = os.environ.get("STMBENCH_PHOTOS")  # labelme's examples/instance_segmentation/data_dataset_coco
    if not folder:
        pytest.skip("needs the folder data_dataset_coco of labelme's sdist in STMBENCH_PHOTOS")
    info = find(Path(folder))
    assert (info.num_train, info.num_val, info.num_classes, info.has_masks) == (2, 1, 21, True)
    for split in (info.train, info.val):
        for i in range(len(split)):
            image, target = split[i]
            assert target["masks"].shape == (len(target["labels"]), image.height, image.width)
            boxed = [masks_box(mask) for mask in target["masks"]]
            assert torch.allclose(torch.tensor(boxed), target["boxes"], atol=2)


def masks_box(mask: torch.Tensor) -> list[float]:
    rows, columns = mask.nonzero(as_tuple=True)
    return [float(columns.min()), float(rows.min()), float(columns.max()) + 1, float(rows.max()) + 1]


# What is in it


def test_ids_with_gaps_become_labels_from_1_and_are_kept(tmp_path: Path) -> None:
    info = find(write(tmp_path))
    labels = [info.train[i][1]["labels"].tolist() for i in range(6)]
    assert labels == [[1], [2], [3], [1], [2], [3]]
    assert info.class_names == ("cat", "dog", "eel")
    assert [info.train.annotations[i][0]["category_id"] for i in range(3)] == list(info.category_ids)
    assert [info.train[i][1]["image_id"] for i in range(3)] == [100, 101, 102]


def test_boxes_and_masks_are_where_the_objects_are(tmp_path: Path) -> None:
    info = find(write(tmp_path))
    for i in range(6):
        image, target = info.val[i]
        bright = torch.tensor(np.asarray(image)[..., 0] > 100)
        assert target["boxes"].tolist() == [masks_box(bright)]
        assert torch.equal(target["masks"][0].bool(), bright)


def test_crowds_and_boxes_without_an_inside_are_kept_for_evaluation_alone(tmp_path: Path) -> None:
    values = content(6)
    width = values["images"][0]["width"]
    odd = [
        annotated(21, 100, [4, 4, 9, 9], iscrowd=1),
        annotated(22, 100, [4, 4, 0, 9]),
        annotated(23, 100, [9, 9, -4, 5]),
        annotated(24, 100, [width + 5, 4, 9, 9]),  # outside the image
        annotated(25, 100, [width - 4, 4, 9, 9]),  # half of it
    ]
    values["annotations"] += odd
    info = find(write(tmp_path, values, values))
    trained = info.train.target(0)
    assert trained["boxes"].tolist()[1:] == [[width - 4, 4, width, 13]]
    assert trained["iscrowd"].tolist() == [0, 0]
    assert [each["id"] for each in info.val.annotations[0]] == [1, 21, 22, 23, 24, 25]
    assert info.val.target(0)["iscrowd"].tolist() == [0, 1, 0, 0, 0, 0]


def test_masks_outside_the_image_are_cut_off(tmp_path: Path) -> None:
    values = content(6)
    height, width = values["images"][0]["height"], values["images"][0]["width"]
    values["annotations"].append(annotated(21, 100, [-10, -10, 15, 15]))
    values["annotations"].append(annotated(22, 100, [width - 4, height - 4, 500, 500]))
    target = find(write(tmp_path, values)).train.target(0)
    first, second = target["masks"][1], target["masks"][2]
    assert target["masks"].shape == (3, height, width)
    assert masks_box(first) == target["boxes"][1].tolist() == [0, 0, 5, 5]
    assert masks_box(second) == target["boxes"][2].tolist() == [width - 4, height - 4, width, height]


def test_run_lengths_are_the_mask_that_polygons_are(tmp_path: Path) -> None:
    values = content(6)
    polygons = find(write(tmp_path / "polygons", values))
    for image, each in zip(values["images"], values["annotations"], strict=True):
        mask = polygons.train.target(image["id"] - 100)["masks"]  # (1, H, W)
        if image["id"] % 2:
            [each["segmentation"]] = masks.encode(mask.numpy())
        else:
            columns = mask[0].T.flatten()  # run lengths go down the columns
            ends = (columns.diff() != 0).nonzero().flatten() + 1
            counts = torch.cat([torch.tensor([0]), ends, torch.tensor([len(columns)])]).diff().tolist()
            each["segmentation"] = {"size": [image["height"], image["width"]], "counts": counts}
    lengths = find(write(tmp_path / "lengths", values))
    for i in range(6):
        assert torch.equal(lengths.train.target(i)["masks"], polygons.train.target(i)["masks"])


def test_an_image_without_annotations_is_one_without_objects(tmp_path: Path) -> None:
    values = content(6)
    del values["annotations"][2]
    target = find(write(tmp_path, values)).train.target(2)
    assert target["boxes"].shape == (0, 4)
    assert target["masks"].shape == (0, values["images"][2]["height"], values["images"][2]["width"])
    assert target["labels"].dtype == torch.int64


def test_boxes_alone_need_no_masks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    info = find(write(tmp_path, content(6, masks=False), content(6, masks=False, seed=1)))
    assert not info.has_masks
    assert "masks" not in info.train.target(0)
    with pytest.raises(ValueError, match=r"pip install 'stmbench\[detection\]'"):
        masks.decode([{"size": [1, 1], "counts": [1]}], 1, 1)


def test_a_class_that_only_val_has_is_said(tmp_path: Path) -> None:
    train = content(6)
    train["annotations"] = [each for each in train["annotations"] if each["category_id"] != 7]
    assert find(write(tmp_path, train)).notes == (
        "Classes in val that train never has, whose AP can only be 0: dog.",
    )


def test_the_fingerprint_is_that_of_the_content(tmp_path: Path) -> None:
    ours = find(write(tmp_path / "a")).fingerprint
    assert find(write(tmp_path / "b")).fingerprint == ours
    values = content(6)
    values["annotations"][0]["bbox"][0] += 1
    assert find(write(tmp_path / "c", values)).fingerprint != ours
    write(tmp_path / "d")
    truncate(tmp_path / "d" / "val2017" / "003.png")
    assert find(tmp_path / "d").fingerprint != ours


# What is missing or broken


def test_few_missing_images_are_named_and_many_are_an_error(tmp_path: Path) -> None:
    values = content(100)
    write(tmp_path, values)
    (tmp_path / "train2017" / "042.png").unlink()
    assert find(tmp_path).notes == (
        "Images that instances_train2017.json lists are missing and left out: 042.png.",
    )
    sources.find_detection.cache_clear()
    (tmp_path / "train2017" / "017.png").unlink()
    with pytest.raises(ValueError, match=r"2 of the 100 images .* are not in .*the first being 017\.png"):
        find(tmp_path)
    shutil.rmtree(tmp_path / "train2017")
    with pytest.raises(ValueError, match=r"100 of the 100 images .* are not under .*first being 000\.png"):
        find(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"category_id": 4}, "has the category 4, which the file does not list"),
        ({"bbox": [1, 2, 3]}, "has no box of four numbers"),
        ({"bbox": [1, 2, 3, float("nan")]}, "has no box of four numbers"),
        ({"bbox": None}, "has no box of four numbers"),
        ({"area": "large"}, "has an area that is no number"),
        ({"iscrowd": 2}, "has an iscrowd that is neither 0 nor 1"),
        ({"segmentation": [[1, 2, 3, 4]]}, "has a polygon that is no list of three corners"),
        ({"segmentation": [[1, 2, 3, 4, 5, None]]}, "has a polygon with a corner that is no number"),
        ({"segmentation": "mask"}, "has a mask that is neither polygons nor run lengths"),
        ({"segmentation": {"size": [9, 9], "counts": [81]}}, r"has a mask of \[9, 9\] pixels on an image of"),
        ({"segmentation": {"counts": [81]}}, "has a mask that is neither polygons nor run lengths"),
        ({"segmentation": []}, "has no mask, where others have"),
    ],
)
def test_a_broken_annotation_is_named(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    values = content(6)
    values["annotations"][4] |= change
    write(tmp_path)
    dump(values, tmp_path / "annotations" / "instances_train2017.json")
    with pytest.raises(ValueError, match=rf"annotation 5 of image 104 \(004\.png\) {message}"):
        find(tmp_path)


@pytest.mark.parametrize(
    ("counts", "message"),
    [([1, 2], "do not add up"), ("ab", "cannot be read"), ("zzzzzzzzzz", "cannot be read")],
)
def test_broken_run_lengths_are_named(counts: Any, message: str, tmp_path: Path) -> None:
    values = content(6)
    size = [values["images"][1]["height"], values["images"][1]["width"]]
    values["annotations"][1]["segmentation"] = {"size": size, "counts": counts}
    with pytest.raises(ValueError, match=rf"annotation 2 of image 101 .* run lengths that {message}"):
        find(write(tmp_path, values))


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda v: v["annotations"].clear(), "has no annotated object for train"),
        (
            lambda v: [each.update(iscrowd=1) for each in v["annotations"]],
            "has no annotated object for train",
        ),
        (lambda v: v["annotations"][0].update(image_id=5), "annotation 1 belongs to no image"),
        (lambda v: v["annotations"].append(1), "annotation number 7 belongs to no image"),
        (lambda v: v.pop("categories"), "has no list 'categories'"),
        (lambda v: v.update(categories=coco_set.CATEGORIES[:1] * 2), "two categories have the id 3"),
        (lambda v: v["images"][0].pop("height"), r"image 100 \(000.png\) has no height and width"),
        (lambda v: v["images"][0].pop("file_name"), "an image needs a whole number 'id' and a 'file_name'"),
    ],
)
def test_a_broken_file_says_what_is_wrong(
    break_it: Callable[[Any], Any], message: str, tmp_path: Path
) -> None:
    write(tmp_path)
    values = content(6)
    break_it(values)
    dump(values, tmp_path / "annotations" / "instances_train2017.json")
    with pytest.raises(ValueError, match=message):
        find(tmp_path)


def test_splits_need_the_same_categories(tmp_path: Path) -> None:
    train, val = content(6), content(6, seed=1)
    train["categories"] = train["categories"][:2]
    train["annotations"] = [each for each in train["annotations"] if each["category_id"] != 90]
    with pytest.raises(ValueError, match=r"val2017.json has the category 90 \(eel\), which .* lacks"):
        find(write(tmp_path / "lacking", train, val))
    train = content(6)
    train["categories"] = [{"id": 3, "name": "cow"}, *train["categories"][1:]]
    with pytest.raises(ValueError, match=r"category 3 is 'cow' in .* and 'cat' in"):
        find(write(tmp_path / "renamed", train, val))


def test_what_is_not_there_or_no_coco_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has no annotations for train and val"):
        find(tmp_path)
    write(tmp_path)
    shutil.copy(tmp_path / "annotations" / "instances_train2017.json", tmp_path / "instances_train.json")
    with pytest.raises(ValueError, match="several annotation files for train"):
        find(tmp_path)
    (tmp_path / "single.json").write_text("{")
    with pytest.raises(ValueError, match="is not valid JSON"):
        find(tmp_path / "single.json")
    (tmp_path / "single.json").write_text(json.dumps(content(1)))
    paint(content(1), tmp_path)
    with pytest.raises(ValueError, match="has 1 images: too few"):
        find(tmp_path / "single.json")
    with pytest.raises(ValueError, match="Did you mean 'trees'"):
        data.find_detection("treees")
    with pytest.raises(ValueError, match=r"No data at .*nowhere"):
        find(tmp_path / "nowhere")
