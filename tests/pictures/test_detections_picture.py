"""The picture of detections: boxes where they are, beside those annotated, of the run's own files."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from coco_set import annotated, content, dump, write
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from typer.testing import CliRunner

from stmbench import data
from stmbench.cli import app
from stmbench.data import DetectionInfo, sources
from stmbench.measure import ap
from stmbench.pictures import detections
from stmbench.record import Artifact
from stmbench.store import RunRecord, Store

Detect = Callable[..., RunRecord]


@pytest.fixture
def info(tmp_path: Path) -> DetectionInfo:
    """Ten validation images with an object each; on the first of them a crowd too."""
    sources.find_detection.cache_clear()
    val = content(10, seed=1)
    val["annotations"].append(annotated(99, 100, [5, 5, 20, 20], iscrowd=1))
    return data.find_detection(str(write(tmp_path / "set", content(6), val)))


@pytest.fixture
def detect(info: DetectionInfo, store: Store, add: Callable[..., RunRecord]) -> Detect:
    """Add a run that found every object, two pixels too far to the right, and others with a low score."""

    def detect(kind: str = "plain", **fields: Any) -> RunRecord:
        of = {"data_source": info.source, "data_name": info.name, "data_fingerprint": info.fingerprint}
        run = add(("detect", "box_ap", 43.21, {"weights": kind}), **(of | fields))
        found = []
        for i in range(info.num_val):
            target = info.val.target(i)
            boxes = np.concatenate([target["boxes"][:1].numpy() + np.array([2, 0, 2, 0]), [[1, 1, 9, 9]]])
            labels, scores = [int(target["labels"][0]), 1], [0.9, 0.3]
            height, width = info.val.sizes[i]
            mask = {"size": [height, width], "counts": [height * width]}  # of nothing
            image = target["image_id"]
            found.append(
                {"image_id": image, "boxes": boxes, "labels": labels, "scores": scores, "masks": [mask] * 2}
            )
        path = run.folder / f"detections_{kind}.json.gz"
        ap.save(path, ap.found(info, found))
        store.attach(run.id, Artifact("detect", "detections", path, f"weights={kind}"), run.folder)
        return run

    return detect


def boxes(axes: Axes) -> list[tuple[float, ...]]:
    found = [patch for patch in axes.patches if isinstance(patch, Rectangle)]
    return [(*patch.get_xy(), patch.get_width(), patch.get_height()) for patch in found]


def one(store: Store, run: RunRecord, **options: Any) -> detections.Picture:
    [picture] = detections.read(store, run, **{"images": 5, "score": 0.5} | options)
    return picture


def test_what_was_found_stands_beside_what_is_annotated(
    store: Store, info: DetectionInfo, detect: Detect, drawn: list[Figure], tmp_path: Path
) -> None:
    detections.draw(one(store, detect()), tmp_path / "picture.png")
    panels = drawn[0].get_axes()
    assert len(panels) == 10
    for place, (left, right) in enumerate(zip(panels[::2], panels[1::2], strict=True)):
        truth = [tuple(each["bbox"]) for each in info.val.annotations[2 * place]]
        assert boxes(left) == truth
        [found] = boxes(right)
        assert found == pytest.approx((truth[0][0] + 2, *truth[0][1:]))
        height, width = info.val.sizes[2 * place]
        assert left.images[0].get_extent() == [0, width, height, 0]
        assert len(left.images) == 1 + len(truth)  # a mask each
    assert [text.get_text() for text in panels[0].texts] == ["cat", "cat"]
    assert [text.get_text() for text in panels[1].texts] == ["cat 0.90"]
    assert [patch.get_linestyle() for patch in panels[0].patches] == ["-", (0, (2, 2))]  # the crowd


def test_the_score_and_the_images_are_asked_for(store: Store, detect: Detect) -> None:
    run = detect()
    assert [len(shown.found) for shown in one(store, run, score=0.3).shown] == [2] * 5
    assert [len(shown.found) for shown in one(store, run, score=0.95).shown] == [0] * 5
    assert len(one(store, run, images=99).shown) == 10


def test_it_says_what_it_shows(store: Store, info: DetectionInfo, detect: Detect) -> None:
    text = detections.caption(one(store, detect(), images=3))
    for part in ("halo micro", "plain weights", "score of 0.5", "3 of 10", "box AP 43.2", info.fingerprint):
        assert part in text
    assert "Dashed" in text


def test_averaged_weights_come_first(store: Store, detect: Detect) -> None:
    run = detect("ema")
    assert one(store, run).weights == "ema"
    assert detections.read(store, run, images=1, score=0.5, weights="plain") == []


def test_other_data_are_refused(store: Store, info: DetectionInfo, detect: Detect) -> None:
    run = detect()
    path = Path(info.source) / "annotations" / "instances_val2017.json"
    values = json.loads(path.read_text())
    values["annotations"][0]["area"] += 1
    dump(values, path)
    sources.find_detection.cache_clear()
    with pytest.raises(ValueError, match=f"no longer those that {run.id} was evaluated on"):
        one(store, run)


def test_another_file_is_refused(store: Store, detect: Detect) -> None:
    run = detect()
    path = run.folder / "detections_plain.json.gz"
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(ValueError, match=f"is no longer the file that {run.id} wrote"):
        one(store, run)
    path.unlink()
    with pytest.raises(ValueError, match="cannot be read"):
        one(store, run)


def test_the_command_draws_or_says_what_is_missing(
    store: Store, detect: Detect, add: Callable[..., RunRecord], tmp_path: Path
) -> None:
    db, picture = str(tmp_path / "results.db"), tmp_path / "found.svg"
    run, other = detect(), add()
    runner = CliRunner()
    done = runner.invoke(app, ["plot", "detections", run.id, "--db", db, "-o", str(picture), "--images", "2"])
    assert done.exit_code == 0
    assert done.stdout.startswith(f"{picture}: Annotated (left) and found (right)")
    assert picture.is_file()
    done = runner.invoke(app, ["plot", "detections", other.id, "--db", db])
    assert "has such detections: stmbench run --recipe detect_quick" in done.stdout
