"""The paper's numbers beside ours: which they are, where they may stand, and the difference."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import measured
import pytest
from measured import IMAGES, TOP1

from stmbench import catalog
from stmbench.measure.shares import wilson
from stmbench.reading import formats, published, tables
from stmbench.reading.columns import Number
from stmbench.reading.leaderboard import rank
from stmbench.reading.rows import Group, records
from stmbench.store import NewRun, Store, open_store

PROTOCOL = {"data": {"image_size": 224}, "schedule": {"epochs": 300}}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with open_store(str(tmp_path / "results.db")) as store:
        yield store


@pytest.fixture
def imagenet(new_run: NewRun) -> NewRun:
    return dataclasses.replace(new_run, scale="tiny", recipe_values=PROTOCOL, data_name="imagenet")


def add(store: Store, new: NewRun, top1: float = 83.5, images: int = 50_000, **fields: Any) -> None:
    measured.add(store, new, {TOP1: top1, IMAGES: images}, **fields)


def only(store: Store, **options: Any) -> Group:
    [group] = rank(store, published=True, **options)
    return group


def test_every_published_row_is_there() -> None:
    results = published.results()
    assert len(results) == 30
    assert results["halo", "unified", "tiny"] == 83.0
    assert results["swin", "original", "base"] == 83.5
    ours = {(name, scale) for name, row in catalog.mixers().items() if row.published for scale in row.scales}
    assert {(mixer, scale) for mixer, _, scale in results} <= ours


def test_ours_less_theirs_with_our_interval(store: Store, imagenet: NewRun) -> None:
    add(store, imagenet)
    [row] = only(store).rows
    low, high = wilson(83.5, 50_000)
    assert row.more == {
        "published": Number(83.0),
        "original": Number(80.5),
        "difference": Number(0.5, None, 1, low - 83.0, high - 83.0),
    }


@pytest.mark.parametrize(
    "fields",
    [{"mixer": "pool"}, {"mixer": "dcnv3", "scale": "large"}, {"mixer": "timm:resnet18", "scale": ""}],
)
def test_what_was_not_published_has_nothing_beside_it(
    store: Store, imagenet: NewRun, fields: dict[str, Any]
) -> None:
    add(store, imagenet, **fields)
    group = only(store)
    assert [row.more for row in group.rows] == [{}]
    assert "published" not in tables.shown(group)


@pytest.mark.parametrize(
    ("fields", "ours"),
    [
        ({"recipe_values": PROTOCOL | {"data": {"image_size": 28}}}, "imagenet, 28 px, 300 epochs, 50,000"),
        ({"recipe_values": PROTOCOL | {"schedule": {"epochs": 4}}}, "imagenet, 224 px, 4 epochs, 50,000"),
        ({"images": 2000, "data_name": "fashion_mini"}, "fashion_mini, 224 px, 300 epochs, 2,000"),
    ],
)
def test_other_protocols_are_not_comparable_and_said_so_in_a_line(
    store: Store, imagenet: NewRun, fields: dict[str, Any], ours: str
) -> None:
    add(store, imagenet, **fields)
    group = only(store)
    assert [row.more for row in group.rows] == [{}]
    assert tables.notes(group) == [
        f"not comparable with the published results (ImageNet-1k, 224 px, 300 epochs): {ours} test images"
    ]
    assert "83.0" not in formats.to_markdown([group])
    assert {record["difference"] for record in records([group])} == {None}


def test_people_and_machines_read_it(store: Store, imagenet: NewRun) -> None:
    add(store, imagenet)
    add(store, imagenet, mixer="pool", top1=79.0)
    group = only(store)
    names = tables.shown(group)
    assert names[-3:] == ("published", "original", "difference")
    assert [tables.cells(row, group, names)[-3:] for row in group.rows] == [
        ("83.0", "80.5", "+0.50 (+0.2 to +0.8)"),
        (tables.NONE,) * 3,
    ]
    assert tables.notes(group)[0].startswith("published: arXiv:2211.05781, ImageNet-1k, 224 px, 300 epochs")
    halo, _ = records([group])
    assert (halo["published"], halo["original"], halo["difference"]) == (83.0, 80.5, 0.5)
    assert halo["difference_low"] == pytest.approx(0.17, abs=0.01)
    assert "published_n" not in halo


def test_rows_are_filtered_and_ranked_by_the_difference(store: Store, imagenet: NewRun) -> None:
    for mixer, top1 in (("halo", 82.0), ("swin", 82.5), ("sra", 82.0), ("pool", 90.0)):
        add(store, imagenet, mixer=mixer, top1=top1)
    ranked = only(store, sort="difference").rows
    assert [(row.rank, row.mixer) for row in ranked] == [(1, "swin"), (2, "sra"), (3, "halo"), (None, "pool")]
    assert [row.mixer for row in only(store, where="difference>0").rows] == ["swin"]
    with pytest.raises(ValueError, match="Unknown column 'difference'"):
        rank(store, where="difference>0")
