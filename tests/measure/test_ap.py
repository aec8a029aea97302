"""Average precision is what COCO's own tools say, on the same objects and the same detections."""

import contextlib
import copy
import io
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from coco_set import annotated, content, write
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from stmbench import data
from stmbench.data import DetectionInfo, masks, sources
from stmbench.measure import ap
from stmbench.measure.ap import Found

Make = Callable[..., DetectionInfo]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """A data set with many objects of all sizes on each validation image, crowds and odd boxes among them."""

    def make(*, masks: bool = True, objects: int = 8) -> DetectionInfo:
        sources.find_detection.cache_clear()
        random = np.random.default_rng(1)
        values = content(12, seed=1, masks=masks)
        for image in values["images"]:
            image |= {"width": 320, "height": 240}
            for _ in range(objects):
                size = random.choice([10, 50, 120]) * random.uniform(0.7, 1.3, 2)
                box = [*random.uniform(-5, 200, 2), *size]
                number, category = len(values["annotations"]), int(random.choice([3, 7]))  # 0 is a number too
                crowd = int(random.random() < 0.15)
                new = annotated(number, image["id"], box, category, masks=masks, iscrowd=crowd)
                values["annotations"].append(new)
        values["annotations"].append(annotated(500, 100, [5, 5, 0, 4], masks=masks))
        del values["annotations"][2]  # the third image's eel
        return data.find_detection(str(write(tmp_path, content(6, masks=masks), values)))

    return make


def guesses(info: DetectionInfo, seed: int = 0) -> list[dict[str, Any]]:
    """What a middling detector might find: objects moved, of another class, twice, or out of thin air."""
    random, detections = np.random.default_rng(seed), []
    for index in range(info.num_val):
        target, (height, width) = info.val.target(index), info.val.sizes[index]
        kept = random.random(len(target["labels"])) < 0.8
        boxes = np.concatenate([target["boxes"].numpy()[kept]] * 2 + [random.uniform(0, 200, (3, 4))])
        boxes += random.normal(0, 3, boxes.shape)
        boxes = np.concatenate([boxes[:, :2], np.maximum(boxes[:, 2:], boxes[:, :2])], 1)
        labels = np.concatenate([target["labels"].numpy()[kept]] * 2 + [random.integers(1, 4, 3)])
        labels = np.where(random.random(len(labels)) < 0.1, 1 + labels % 3, labels)
        scores = random.random(len(labels)).astype(np.float32).round(2)  # some are equal
        found = {"image_id": target["image_id"], "boxes": boxes, "labels": labels, "scores": scores}
        if info.has_masks:
            planes = np.zeros((len(boxes), height, width), np.uint8)
            for plane, (left, top, right, bottom) in zip(planes, boxes.clip(0).astype(int), strict=True):
                plane[top:bottom, left:right] = 1
            found["masks"] = masks.encode(planes)
        detections.append(found)
    return detections


def by_coco(info: DetectionInfo, found: Found, kind: str) -> dict[str, float]:
    """The same numbers by pycocotools, of -1 where there is nothing to find."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth: Any = COCO()
        truth.dataset = copy.deepcopy(ap.annotations(info, found.images))
        truth.createIndex()
        results = copy.deepcopy(found.results)
        for each in results if kind == "segm" else ():
            del each["bbox"]  # an object's size is that of its mask
        guessed = truth.loadRes(results)
        evaluation = COCOeval(truth, guessed, kind)  # pyright: ignore[reportArgumentType]
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    numbers: dict[str, float] = dict(zip(ap.NUMBERS, evaluation.stats.tolist(), strict=False))
    for name, of_class in zip(
        info.class_names, evaluation.eval["precision"].transpose(2, 0, 1, 3, 4), strict=True
    ):
        valid = of_class[:, :, 0, -1][of_class[:, :, 0, -1] > -1]
        numbers[f"ap.{name}"] = float(valid.mean()) if len(valid) else -1.0
    return numbers


@pytest.mark.parametrize("has_masks", [True, False])
@pytest.mark.parametrize("seed", range(3))
def test_it_is_what_pycocotools_says(make: Make, has_masks: bool, seed: int) -> None:
    info = make(masks=has_masks)
    found = ap.found(info, guesses(info, seed))
    ours = ap.average_precision(info, found)
    kinds = {"box": "bbox", "mask": "segm"} if has_masks else {"box": "bbox"}
    theirs = {
        f"{kind}_{name}": 100 * value
        for kind, theirs in kinds.items()
        for name, value in by_coco(info, found, theirs).items()
        if value >= 0
    }
    assert ours.keys() == theirs.keys()
    assert {unit for _, unit in ours.values()} == {"%"}
    assert {name: value for name, (value, _) in ours.items()} == pytest.approx(theirs, abs=1e-6)
    assert 5 < ours["box_ap"][0] < 95
    assert {"box_ap_small", "box_ap_medium", "box_ap_large", "box_ap.eel"} <= ours.keys()


def test_masks_and_boxes_are_measured_apart(make: Make) -> None:
    """Masks of nothing are worth nothing, however right their boxes are."""
    info = make()
    detections = guesses(info)
    for each in detections:
        each["masks"] = masks.encode(np.zeros((len(each["labels"]), 240, 320), np.uint8))
    numbers = ap.average_precision(info, ap.found(info, detections))
    assert numbers["box_ap"][0] > 5
    assert numbers["mask_ap"] == (0.0, "%")


def test_nothing_found_is_worth_nothing(make: Make) -> None:
    info = make()
    empty = {"boxes": np.zeros((0, 4)), "scores": np.zeros(0), "labels": np.zeros(0, int), "masks": []}
    found = ap.found(info, [{"image_id": image} | empty for image in info.val.image_ids])
    numbers = ap.average_precision(info, found)
    assert set(numbers.values()) == {(0.0, "%")}
    assert {"box_ap", "mask_ap.dog"} <= numbers.keys()


def test_what_a_detector_was_not_shown_is_not_held_against_it(make: Make) -> None:
    info = make(masks=False, objects=0)
    targets = [info.val.target(i) for i in range(1, 7)]
    perfect = [target | {"scores": np.ones(len(target["labels"]))} for target in targets]
    numbers = ap.average_precision(info, ap.found(info, perfect))
    assert {numbers[f"box_ap{name}"][0] for name in ("", ".cat", ".dog", ".eel")} == {100}
    none = {"boxes": np.zeros((0, 4)), "scores": np.zeros(0), "labels": np.zeros(0, int)}
    shown = [*perfect, {"image_id": info.val.image_ids[7]} | none]
    assert ap.average_precision(info, ap.found(info, shown))["box_ap"][0] < 90


def test_a_class_without_objects_has_no_number(make: Make) -> None:
    info = make()
    found = ap.found(info, guesses(info)[:2])  # the first eel is on the sixth image
    assert "box_ap.eel" not in ap.average_precision(info, found)


def test_results_have_the_data_sets_own_ids(make: Make) -> None:
    info = make(masks=False)
    boxes, labels = np.array([[1, 2, 11.234, 22], [0, 0, 5, 5]]), np.array([3, 1])
    detection = {"image_id": 104, "boxes": boxes, "labels": labels, "scores": np.array([0.5, 0.25])}
    assert ap.found(info, [detection]).results == [
        {"image_id": 104, "category_id": 90, "bbox": [1, 2, 10.23, 20], "score": 0.5},
        {"image_id": 104, "category_id": 3, "bbox": [0, 0, 5, 5], "score": 0.25},
    ]


def test_what_is_kept_gives_the_same_numbers(make: Make, tmp_path: Path) -> None:
    info = make()
    found = ap.found(info, guesses(info))
    ap.save(tmp_path / "one.json.gz", found)
    ap.save(tmp_path / "two.json.gz", found)
    assert (tmp_path / "one.json.gz").read_bytes() == (tmp_path / "two.json.gz").read_bytes()
    again = ap.load(tmp_path / "one.json.gz")
    assert again == found
    assert ap.average_precision(info, again) == ap.average_precision(info, found)


@pytest.mark.parametrize("broken", [b"", b"{}", None])
def test_what_cannot_be_read_says_so(broken: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "detections.json.gz"
    if broken is not None:
        path.write_bytes(broken)
    with pytest.raises(ValueError, match=r"The detections in .*detections\.json\.gz cannot be read"):
        ap.load(path)


def test_without_the_library_it_says_how_to_get_it(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    info = make(masks=False)
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    with pytest.raises(ValueError, match=r"pip install 'stmbench\[detection\]'"):
        ap.average_precision(info, Found([], []))
