"""Detectors on the leaderboard: known by their AP, apart from classifiers, the paper's AP beside."""

import csv
import dataclasses
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import measured
import pytest

from stmbench.reading import formats, published, tables
from stmbench.reading.columns import Number
from stmbench.reading.leaderboard import rank
from stmbench.reading.rows import Group
from stmbench.store import NewRun, Store, open_store

COCO = {
    "stages": ("build", "detect", "profile"),
    "detect": {"short_side": 800, "long_side": 1333},
    "schedule": {"epochs": 12},
}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with open_store(str(tmp_path / "results.db")) as store:
        yield store


@pytest.fixture
def coco(new_run: NewRun) -> NewRun:
    return dataclasses.replace(
        new_run, scale="tiny", recipe_name="coco_1x", recipe_values=COCO, data_name="coco", stages=("detect",)
    )


def add(store: Store, new: NewRun, box: float, mask: float | None = None, **fields: Any) -> str:
    """A finished run of the stage detect, and nothing else."""
    at, images = fields.pop("weights_kind", "plain"), fields.pop("images", 5000)
    numbers = {f"detect.box_ap@weights={at}": box, f"detect.images@weights={at}": images}
    numbers |= {} if mask is None else {f"detect.mask_ap@weights={at}": mask}
    return measured.add(store, new, numbers, {"box_ap": "%", "mask_ap": "%"}, **fields)


def one(store: Store, **options: Any) -> Group:
    [group] = rank(store, **options)
    return group


def test_detectors_are_ranked_by_box_ap(store: Store, coco: NewRun) -> None:
    for mixer, box in (("halo", 41.0), ("swin", 46.9), ("dwconv", 44.25)):
        add(store, coco, box, box - 4, mixer=mixer)
    group = one(store)
    assert [(row.rank, row.mixer, row.value("box_ap"), row.value("mask_ap")) for row in group.rows] == [
        (1, "swin", 46.9, 42.9),
        (2, "dwconv", 44.25, 40.25),
        (3, "halo", 41.0, 37.0),
    ]
    assert group.ranked_by == "box_ap"
    names = tables.shown(group)
    assert tables.headers(group, names)[-3:] == ("box AP", "mask AP", "seeds")
    assert tables.cells(group.rows[1], group, names)[-3:] == ("44.25", "40.25", "1")
    assert not {"top1", "interval"} & set(names)
    assert [row.mixer for row in one(store, sort="-box_ap").rows] == ["halo", "dwconv", "swin"]


def test_without_masks_there_is_no_column_of_them(store: Store, coco: NewRun) -> None:
    add(store, coco, 41.0)
    assert "mask_ap" not in tables.shown(one(store))


def test_seeds_are_averaged_and_averaged_weights_count(store: Store, coco: NewRun) -> None:
    add(store, coco, 41.0, seed=0)
    add(store, coco, 42.0, seed=1)
    [row] = one(store).rows
    assert row.more["box_ap"] == Number(41.5, pytest.approx(0.70710678), 2)  # pyright: ignore
    assert tables.cells(row, one(store), ("box_ap",))[1] == "41.50 ±0.71"
    both = {"detect.box_ap@weights=plain": 30.0, "detect.box_ap@weights=ema": 33.0}
    measured.add(store, coco, both, mixer="swin")
    assert [row.value("box_ap") for row in one(store).rows] == [41.5, 33.0]


def test_detectors_and_classifiers_stand_apart_in_every_format(store: Store, coco: NewRun) -> None:
    add(store, coco, 41.0, 37.0)
    classifier = dataclasses.replace(coco, recipe_name="quick", recipe_digest="other", recipe_values={})
    measured.add(store, classifier, {measured.TOP1: 88.0, measured.IMAGES: 2000})
    groups = rank(store)
    assert sorted(group.ranked_by for group in groups) == ["box_ap", "top1"]
    [plain] = [group for group in groups if not group.detects]
    assert tables.shown(plain) == tables.SHOWN
    rows = {row["recipe"]: row for row in csv.DictReader(io.StringIO(formats.to_csv(groups)))}
    assert (rows["coco_1x"]["box_ap"], rows["coco_1x"]["top1"]) == ("41.0", "")
    assert (rows["quick"]["box_ap"], rows["quick"]["top1"]) == ("", "88.0")
    assert formats.to_parquet(groups)


@pytest.mark.parametrize("name", ["box_ap", "box AP"])
def test_filters_and_columns_name_it(store: Store, coco: NewRun, name: str) -> None:
    add(store, coco, 41.0, mixer="halo")
    add(store, coco, 46.9, mixer="swin")
    group = one(store, where=f"'{name}' > 45", columns=("mixer", name))
    assert [row.mixer for row in group.rows] == ["swin"]
    assert tables.shown(group, ("mixer", name)) == ("mixer", "box_ap")
    with pytest.raises(ValueError, match="Did you mean 'box_ap'"):
        rank(store, columns=("box_app",))


def test_the_front_is_of_box_ap(store: Store, coco: NewRun) -> None:
    for mixer, box, cost in (("halo", 41.0, 5.0), ("swin", 46.9, 9.0), ("sra", 40.0, 7.0)):
        numbers = {"detect.box_ap@weights=plain": box, "build.macs": cost}
        measured.add(store, coco, numbers, mixer=mixer)
    group = one(store, pareto="macs")
    assert [row.mixer for row in group.rows] == ["swin", "halo"]
    assert "the Pareto front of box AP against macs: 2 of 3" in group.notes


# Beside the paper's


def test_published_ap_stands_beside_ours(store: Store, coco: NewRun) -> None:
    add(store, coco, 47.5, 42.0)
    group = one(store, published=True)
    [row] = group.rows
    assert (row.more["published_box_ap"], row.more["published_mask_ap"]) == (Number(46.9), Number(42.4))
    assert row.more["difference"].value == pytest.approx(0.6)
    names = tables.shown(group)
    cells = dict(zip(tables.headers(group, names), tables.cells(row, group, names), strict=True))
    assert (cells["published box AP"], cells["published mask AP"], cells["difference"]) == (
        "46.9",
        "42.4",
        "+0.60",
    )
    assert group.notes[0].startswith("published: arXiv:2211.05781, COCO, Mask R-CNN, 800/1333 px, 12 epochs")


@pytest.mark.parametrize(
    ("fields", "ours"),
    [
        ({"recipe_values": COCO | {"schedule": {"epochs": 36}}}, "coco, 800/1333 px, 36 epochs, 5,000"),
        ({"recipe_values": COCO | {"detect": {"short_side": 256, "long_side": 256}}}, "coco, 256/256 px"),
        ({"images": 20}, "coco, 800/1333 px, 12 epochs, 20 test images"),
    ],
)
def test_another_protocol_is_not_compared(
    store: Store, coco: NewRun, fields: dict[str, Any], ours: str
) -> None:
    add(store, coco, 47.5, **fields)
    group = one(store, published=True)
    assert group.notes[0].startswith("not comparable with the published results (COCO, Mask R-CNN")
    assert ours in group.notes[0]
    assert not set(group.rows[0].more) & {column.text for column in published.DETECTION}


def test_every_published_ap_is_there() -> None:
    box, mask = published.results("box_ap"), published.results("mask_ap")
    assert len(box) == len(mask) == 20
    assert box["dcnv3", "unified", "base"] == 48.7
    assert mask["sra", "unified", "micro"] == 34.2
