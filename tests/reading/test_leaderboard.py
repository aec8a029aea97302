"""Ranking: what may be compared is, what may not is kept apart, and the numbers are those of the runs."""

import csv
import dataclasses
import io
import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import evaluated
import measured
import numpy as np
import pytest

from stmbench.measure.shares import wilson
from stmbench.reading import answers, formats, tables
from stmbench.reading.leaderboard import rank
from stmbench.reading.rows import SHARED, Group, Row
from stmbench.reading.selection import finished
from stmbench.record import Measurement, condition
from stmbench.store import NewRun, Store, open_store


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with open_store(str(tmp_path / "results.db")) as store:
        yield store


class Add:
    """Puts finished runs into the store: ``add("swin", top1=88.0, seed=1)``; None leaves a number out."""

    def __init__(self, store: Store, new_run: NewRun) -> None:
        self.store, self.new_run = store, new_run

    def __call__(
        self,
        mixer: str = "halo",
        *,
        top1: float | None = 88.0,
        ema: float | None = None,
        latency: float | None = 10.0,
        batch: int = 64,
        state: Any = "done",
        **fields: Any,
    ) -> str:
        run = self.store.create_run(dataclasses.replace(self.new_run, mixer=mixer, **fields))

        def put(stage: str, name: str, value: float | None, **under: object) -> None:
            if value is not None:
                self.store.record(run.id, Measurement(stage, name, value, "", condition(**under)))

        put("build", "parameters", 4_389_672)
        put("build", "macs", 0.86e9, height=224, width=224)
        put("build", "macs.level1.mixers", 1e6, height=224, width=224)
        for kind, value in (("plain", top1), ("ema", ema)):
            put("eval", "top1", value, weights=kind)
            put("eval", "images", None if value is None else 2000, weights=kind)
        put("profile", "latency", latency, batch=1, threads=run.threads)
        put("profile", "best_throughput", latency and 1000.0, batches=f"1+{batch}", threads=run.threads)
        self.store.end_run(run.id, state)
        return run.id


@pytest.fixture
def add(store: Store, new_run: NewRun) -> Add:
    return Add(store, new_run)


def one(groups: list[Group]) -> tuple[Row, ...]:
    [group] = groups
    return group.rows


# What is ranked with what


def test_rows_are_ranked_by_top1(store: Store, add: Add) -> None:
    for mixer, top1 in (("halo", 85.7), ("swin", 82.9), ("dwconv", 89.1)):
        add(mixer, top1=top1)
    rows = one(rank(store))
    assert [(row.rank, row.mixer, row.top1) for row in rows] == [
        (1, "dwconv", 89.1),
        (2, "halo", 85.7),
        (3, "swin", 82.9),
    ]
    assert (rows[0].parameters, rows[0].macs, rows[0].latency) == (4_389_672, 0.86e9, 10.0)
    assert (rows[0].throughput, rows[0].seeds, rows[0].images) == (1000.0, 1, 2000)


@pytest.mark.parametrize(
    "difference",
    [
        {"recipe_name": "fashion"},
        {"recipe_digest": "other"},
        {"data_name": "imagenet"},
        {"data_fingerprint": "other"},
        {"device": "cuda"},
        {"hardware": "Another CPU"},
        {"precision": "bf16"},
        {"threads": 1},
        {"batch": 128},
    ],
    ids=lambda difference: next(iter(difference)),
)
def test_unlike_rows_are_never_ranked_together(store: Store, add: Add, difference: dict[str, Any]) -> None:
    add("halo", top1=88.0)
    add("swin", top1=89.0, **difference)
    groups = rank(store)
    assert [[(row.rank) for row in group.rows] for group in groups] == [[1], [1]]
    assert len({tuple(getattr(g, f) for f in SHARED) for g in groups}) == 2


def test_a_run_without_times_joins_those_measured_last(store: Store, add: Add) -> None:
    add("halo", threads=1)
    add("swin", threads=2)
    add("sra", threads=4, latency=None)
    groups = {tuple(row.mixer for row in group.rows): group for group in rank(store)}
    assert set(groups) == {("halo",), ("sra", "swin")}
    assert groups["sra", "swin"].latency_condition == "batch=1,threads=2"


def test_a_run_timed_in_two_ways_stands_in_two_groups(store: Store, add: Add) -> None:
    for mixer in ("halo", "swin"):
        run = add(mixer, latency=None)
        for execution, latency in (("eager", 9.0), ("compiled", 6.0)):
            at = {"batch": 1, "execution": execution}
            store.record(run, Measurement("profile", "latency", latency, "ms", condition(**at)))
    store.record(run, Measurement("profile", "latency", math.nan, "ms", "batch=1,execution=cudagraph"))
    store.refresh_summaries()
    groups = rank(store)
    assert [(g.latency_condition, {r.latency for r in g.rows}) for g in groups] == [
        ("batch=1,execution=compiled", {6.0}),
        ("batch=1,execution=eager", {9.0}),
    ]
    assert {row.top1 for group in groups for row in group.rows} == {88.0}


def test_disturbed_times_are_marked(store: Store, add: Add) -> None:
    run = add("halo")
    store.record(run, Measurement("profile", "disturbed", 0, "", "batch=1,threads=2"))
    store.refresh_summaries([run])
    assert "!" not in formats.to_markdown(rank(store))
    store.record(run, Measurement("profile", "disturbed", 1, "", "batch=64,threads=2"))
    store.refresh_summaries([run])
    add("swin")
    shown = formats.to_markdown(rank(store))
    assert [row.disturbed for row in one(rank(store, sort="latency"))] == [True, False]
    assert "| 10 ms! | 1,000! |" in shown
    assert "! the machine was disturbed" in shown


def test_only_finished_runs_count(store: Store, add: Add) -> None:
    add("halo")
    for state in ("failed", "interrupted", "running"):
        add("swin", state=state)
    assert [row.mixer for row in one(rank(store))] == ["halo"]
    assert [row.mixer for row in one(rank(store, only=[add("dwconv")]))] == ["dwconv"]


# One network's numbers


def test_seeds_are_averaged_and_the_newest_run_of_a_seed_counts(store: Store, add: Add) -> None:
    add(top1=10.0, latency=99.0, seed=0)
    ids = [add(top1=88.0, latency=10.0, seed=0), add(top1=89.0, latency=12.0, seed=1)]
    [row] = one(rank(store))
    assert (row.top1, row.latency, row.seeds) == (88.5, 11.0, 2)
    assert row.top1_sd == pytest.approx(math.sqrt(0.5))
    assert (row.top1_low, row.top1_high) == wilson(88.5, 2000)  # seeds share their test images
    assert set(row.runs) == set(ids)


def test_a_newer_run_replaces_only_what_it_measured(store: Store, add: Add) -> None:
    old, new = add(top1=88.0, latency=10.0), add(top1=None, latency=9.0)
    [row] = one(rank(store))
    assert (row.top1, row.latency, row.seeds) == (88.0, 9.0, 1)
    assert set(row.runs) == {old, new}


def test_ema_weights_are_the_headline_where_there_are_any(store: Store, add: Add) -> None:
    add("halo", top1=88.0, ema=87.0)
    add("swin", top1=86.0)
    add("sra", top1=85.0, ema=math.nan)
    assert [(row.mixer, row.top1) for row in one(rank(store))] == [
        ("halo", 87.0),
        ("swin", 86.0),
        ("sra", None),
    ]


def test_starting_weights_make_another_network(store: Store, add: Add) -> None:
    add(top1=88.0)
    add(top1=90.0, weights="weights/pretrained.pth", weights_sha256="ab")
    tuned, scratch = one(rank(store))
    assert (tuned.weights, scratch.weights) == ("weights/pretrained.pth", "")
    assert tables.cells(tuned)[1] == "halo from pretrained.pth"


# Who shares a rank


def ranks(store: Store, **options: Any) -> list[tuple[int | None, bool, str]]:
    return [(row.rank, row.tied, row.mixer) for row in one(rank(store, **options))]


def test_networks_that_cannot_be_told_apart_share_a_rank(store: Store, new_run: NewRun) -> None:
    """900 right, of 1,000: 15 of 20 unlike answers tell two apart (p = 0.041), 14 do not (p = 0.12)."""
    best = np.arange(1000) < 900
    worse = {
        "swin": best & ~at(range(14)) | at(range(900, 906)),
        "sra": best & ~at(range(100)),
        "dwconv": best & ~at(range(101)),
        "pool": np.zeros(1000, bool),
    }
    for mixer, hits in {"halo": best, **worse}.items():
        evaluated.add(store, new_run, hits, mixer=mixer)
    assert ranks(store) == [
        (1, True, "halo"),
        (1, True, "swin"),
        (3, True, "sra"),
        (3, True, "dwconv"),
        (5, False, "pool"),
    ]
    assert ranks(store, limit=1) == [(1, True, "halo")]


def at(images: Iterable[int]) -> np.ndarray:
    return np.isin(np.arange(1000), list(images))


def test_the_answers_decide_and_not_the_scores(store: Store, new_run: NewRun) -> None:
    """10 images of difference: decided where they are all there is, not where the two differ on many."""
    best = np.arange(1000) < 900
    evaluated.add(store, new_run, best, mixer="halo")
    evaluated.add(store, new_run, best & ~at(range(10)), mixer="swin")
    assert ranks(store) == [(1, False, "halo"), (2, False, "swin")]
    evaluated.add(store, new_run, (best & ~at(range(60))) | at(range(900, 950)), mixer="swin")
    assert ranks(store) == [(1, True, "halo"), (1, True, "swin")]


def test_more_rows_need_clearer_differences(store: Store, new_run: NewRun) -> None:
    """6 of 6 unlike answers (p = 0.031) tell two networks apart, and not in the company of a third."""
    best = np.arange(1000) < 900
    evaluated.add(store, new_run, best, mixer="halo")
    evaluated.add(store, new_run, best & ~at(range(6)), mixer="swin")
    assert [row[0] for row in ranks(store)] == [1, 2]
    evaluated.add(store, new_run, best & ~at(range(5)), mixer="sra")
    assert [row[0] for row in ranks(store)] == [1, 1, 1]


def test_seeds_are_tested_as_seeds(store: Store, new_run: NewRun) -> None:
    """Two seeds each that vary by 3 points: means that lie 2 apart say nothing, 20 apart they do."""
    for mixer, scores in {"halo": (92, 89), "swin": (90, 87), "sra": (72, 69)}.items():
        for seed, score in enumerate(scores):
            evaluated.add(store, new_run, np.arange(1000) < 10 * score, mixer=mixer, seed=seed)
    assert ranks(store) == [(1, True, "halo"), (1, True, "swin"), (3, False, "sra")]


@pytest.mark.parametrize("harm", ["missing", "changed", "other images"])
def test_without_predictions_networks_are_tested_by_their_counts(
    store: Store, new_run: NewRun, harm: str
) -> None:
    """90 % and 87 % of 1,000 images are told apart either way, 90 % and 88.5 % only image by image."""
    best = np.arange(1000) < 900
    labels = np.zeros(1000, int) if harm == "other images" else None
    evaluated.add(store, new_run, best, mixer="halo")
    runs = [
        evaluated.add(store, new_run, best & ~at(range(30)), mixer="swin", labels=labels),
        evaluated.add(store, new_run, best & ~at(range(15)), mixer="sra", labels=labels),
    ]
    for run in runs if labels is None else ():
        path = store.run(run).folder / "predictions_plain.npz"
        path.unlink() if harm == "missing" else path.write_bytes(b"")
    assert ranks(store, mixer="halo,swin") == [(1, False, "halo"), (2, False, "swin")]
    assert ranks(store, mixer="halo,sra") == [(1, True, "halo"), (1, True, "sra")]


def test_the_headlines_predictions_decide(store: Store, new_run: NewRun) -> None:
    best = np.arange(1000) < 900
    evaluated.add(store, new_run, best, mixer="halo")
    run = evaluated.add(store, new_run, best & ~at(range(100)), mixer="swin")
    assert [row[0] for row in ranks(store)] == [1, 2]
    evaluated.answer(store, run, best & ~at(range(1)), kind="ema")
    assert [row[0] for row in ranks(store)] == [1, 1]


def test_a_run_is_read_once(store: Store, new_run: NewRun, monkeypatch: pytest.MonkeyPatch) -> None:
    read = []
    monkeypatch.setattr(
        answers, "read", lambda run, file, real=answers.read: read.append(run.id) or real(run, file)
    )
    for mixer in ("halo", "swin"):
        evaluated.add(store, new_run, np.arange(1000) < 900, mixer=mixer)
        newest = evaluated.add(store, new_run, np.arange(1000) < 901, mixer=mixer)
        for batch in (1, 2):  # timed in two ways: in two groups
            at = condition(batch=batch, execution=str(batch))
            store.record(newest, Measurement("profile", "latency", 9.0, "ms", at))
        store.refresh_summaries([newest])
    groups = rank(store)
    assert len(groups) == 2
    assert sorted(read) == sorted(row.runs[-1] for row in groups[0].rows)


def test_in_other_columns_equal_values_share_a_rank(store: Store, add: Add) -> None:
    for mixer, latency in (("halo", 12.0), ("swin", 5.0), ("dwconv", 12.0), ("sra", 13.0), ("pool", None)):
        add(mixer, latency=latency)
    assert ranks(store, sort="latency") == [
        (1, False, "swin"),
        (2, True, "dwconv"),
        (2, True, "halo"),
        (4, False, "sra"),
        (None, False, "pool"),
    ]


def test_a_shared_rank_is_marked_and_the_mark_explained(store: Store, add: Add) -> None:
    add("halo", top1=90.0, latency=9.0)
    add("swin", top1=89.9, latency=9.0)
    add("sra", top1=50.0)
    groups = rank(store)
    assert [tables.cells(row)[0] for row in one(groups)] == ["1=", "1=", "3"]
    assert tables.conditions(groups[0]).endswith("; = not told apart from the first of this rank, at 5 %")
    for text in (formats.to_markdown(groups), formats.to_latex(groups)):
        assert "told apart" in text
    records = json.loads(formats.to_json(groups))
    assert [(one["rank"], one["tied"], one["ranked_by"]) for one in records] == [
        (1, True, "top1"),
        (1, True, "top1"),
        (3, False, "top1"),
    ]
    lines = list(csv.DictReader(io.StringIO(formats.to_csv(groups))))
    assert [(line["rank"], line["tied"]) for line in lines] == [("1", "True"), ("1", "True"), ("3", "False")]
    assert tables.conditions(rank(store, sort="latency")[0]).endswith("; = equal")
    assert "=" not in tables.conditions(rank(store, mixer="halo")[0]).partition("threads=2")[2]


# Asking for less, or in another order


def test_columns_sort_in_their_sensible_direction(store: Store, add: Add) -> None:
    add("halo", latency=12.0)
    add("swin", latency=None, top1=99.0)
    add("dwconv", latency=5.0, top1=80.0)
    rows = one(rank(store, sort="latency"))
    assert [(row.rank, row.mixer) for row in rows] == [(1, "dwconv"), (2, "halo"), (None, "swin")]
    assert [row.mixer for row in one(rank(store, sort="mixer"))] == ["dwconv", "halo", "swin"]
    assert [row.mixer for row in one(rank(store, sort="top1", limit=2))] == ["swin", "halo"]
    with pytest.raises(ValueError, match=r"'latancy': nobody measured it. Did you mean 'latency'\\?"):
        rank(store, sort="latancy")


def test_filters(store: Store, add: Add) -> None:
    add("halo")
    add("sra", scale="tiny")
    add("swin", recipe_name="fashion", data_name="other", device="cuda")

    def mixers(**options: Any) -> list[str]:
        return sorted(row.mixer for group in rank(store, **options) for row in group.rows)

    assert mixers(mixer="pvt") == ["sra"]  # an alias
    assert mixers(mixer="halo, swin") == ["halo", "swin"]
    assert mixers(scale="tiny") == ["sra"]
    assert mixers(recipe_name="fashion") == mixers(data="other") == mixers(device="cuda") == ["swin"]
    assert mixers(mixer="halo", scale="tiny") == mixers(mixer="dwconv") == []


@pytest.mark.parametrize(
    ("filters", "message"),
    [
        ({"mixer": "hallo"}, "Unknown mixer 'hallo'. Did you mean 'halo'?"),
        ({"mixer": "convnxt"}, "Did you mean 'convnext'?"),
        ({"scale": "micr"}, "Unknown scale 'micr'. Did you mean 'micro'?"),
        ({"recipe_name": "quik"}, "Unknown recipe 'quik'. Did you mean 'quick'?"),
        ({"data": "fashion-mini"}, "Unknown data set 'fashion-mini'. Did you mean 'fashion_mini'?"),
        ({"device": "gpu"}, "Unknown device 'gpu'. Did you mean 'cpu'?"),
    ],
)
def test_an_unknown_filter_value_names_the_nearest(
    store: Store, add: Add, filters: dict[str, Any], message: str
) -> None:
    add()
    with pytest.raises(ValueError, match=message.replace("?", r"\?")):
        rank(store, **filters)


def kept(store: Store, where: str, **options: Any) -> list[tuple[int | None, str]]:
    return [(row.rank, row.mixer) for group in rank(store, where=where, **options) for row in group.rows]


def test_where_keeps_rows_before_they_are_ranked(store: Store, add: Add) -> None:
    add("halo", top1=90.0, seed=0)
    add("halo", top1=92.0, seed=1)
    add("swin", top1=85.0, latency=5.0)
    add("sra", top1=60.0, scale="tiny", latency=None)
    add("pool", top1=None)
    assert kept(store, "top1<86") == [(1, "swin"), (2, "sra")]
    assert kept(store, "seeds>=2") == [(1, "halo")]
    assert kept(store, "top1>90 and top1_sd>1") == [(1, "halo")]  # of means, not of seeds
    assert kept(store, "top-1>80 and latency<=5") == kept(store, "mixer=swin") == [(1, "swin")]
    assert kept(store, "latency!=10") == [(1, "swin")]  # of sra it is not known
    assert kept(store, "not latency>0") == [(1, "sra")]
    assert kept(store, "mixer in (sra, pool) or scale=tiny", sort="latency") == [(1, "pool"), (None, "sra")]
    assert rank(store, where="top1>99") == []


def test_where_knows_what_the_rows_of_a_group_share(store: Store, add: Add) -> None:
    add("halo")
    add("swin", recipe_name="fashion", device="cuda", hardware="Some GPU", precision="bf16")
    run = add("sra", data_name="other", weights="a.pth")
    store.record(run, Measurement("profile", "disturbed", 1, "", "batch=1,threads=2"))
    store.refresh_summaries()
    for where in ("recipe=fashion", "device=cuda and precision=bf16", "hardware~gpu", "recipe!=quick"):
        assert kept(store, where) == [(1, "swin")], where
    for where in ("data=other", "weights~A.PTH", "disturbed=yes", 'weights!=""'):
        assert kept(store, where) == [(1, "sra")], where
    assert len(kept(store, "latency_condition~threads")) == 3
    with pytest.raises(ValueError, match=r"Unknown field 'recipes'\. Did you mean 'recipe'\?"):
        rank(store, where="recipes=quick")
    with pytest.raises(ValueError, match="Unknown column 'rank'"):
        rank(store, where="rank=1")


def test_where_chooses_runs_too(store: Store, add: Add) -> None:
    ids = [
        add("halo", seed=seed, recipe_name=name) for seed, name in enumerate(("quick", "fashion", "quick"))
    ]
    add("swin", state="failed")

    def found(where: str) -> list[str]:
        return [run.id for run in finished(store, where=where)]

    assert found("recipe=quick and seed>0") == [ids[2]]
    assert found("created>2020-01-01 and threads=2 and git_dirty=no") == list(reversed(ids))
    assert found("run=" + ids[1]) == [ids[1]]
    assert found("created<2020-01-01") == []
    with pytest.raises(ValueError, match="not filtered by their state"):  # which is more than is written
        found("state=done")


def test_a_front_keeps_the_ranks_of_all(store: Store, add: Add) -> None:
    for mixer, top1, latency in (
        ("halo", 90.0, 9.0),
        ("swin", 85.0, 9.5),
        ("sra", 80.0, 5.0),
        ("pool", 70.0, 5.0),
    ):
        add(mixer, top1=top1, latency=latency)
    add("dwconv", latency=None)
    add("identity", top1=None, latency=1.0)
    assert kept(store, "top1>0", pareto="latency") == [(1, "halo"), (4, "sra")]
    assert kept(store, "top1>0", pareto="params", limit=1) == [(1, "halo")]
    [group] = rank(store, pareto="latency")
    assert tables.notes(group) == ["the Pareto front of top-1 against latency: 2 of 6"]
    for name in ("mixer", "recipe", "runs"):
        with pytest.raises(ValueError, match=f"Unknown column '{name}'"):
            rank(store, pareto=name)


def test_of_throughput_more_is_cheaper(store: Store, new_run: NewRun) -> None:
    for mixer, top1, rate in (("halo", 90.0, 1000.0), ("swin", 85.0, 2000.0), ("sra", 80.0, 1500.0)):
        numbers = {measured.TOP1: top1, "profile.best_throughput@batches=1": rate}
        measured.add(store, new_run, numbers, mixer=mixer)
    assert kept(store, "top1>0", pareto="images/s") == [(1, "halo"), (2, "swin")]


def test_a_minus_turns_the_order_round(store: Store, add: Add) -> None:
    for mixer, top1 in (("halo", 90.0), ("swin", 50.0), ("sra", 89.9)):
        add(mixer, top1=top1)
    [group] = rank(store, sort="-top1")
    assert [(row.rank, row.tied, row.mixer) for row in group.rows] == [
        (1, False, "swin"),
        (2, True, "sra"),
        (2, True, "halo"),
    ]
    assert group.ranked_by == "top1"


def test_any_field_is_a_column(store: Store, add: Add) -> None:
    run = add("halo", backend="plain")
    [group] = rank(store, columns=["mixer", "recipe", "MACs", "runs", "images", "disturbed", "backend"])
    names = tables.shown(group, ["mixer", "recipe", "MACs", "runs", "images", "disturbed", "backend"])
    assert tables.headers(group, names)[1:4] == ("mixer", "recipe", "MACs")
    [row] = group.rows
    assert tables.cells(row, group, names) == (
        *("1", "halo (plain)", "quick", "0.86 G", run, "2,000", "no", "plain"),
    )


# Words and exports


def test_people_read_rounded_numbers_with_units(store: Store, add: Add) -> None:
    add(top1=88.7, latency=12.345, seed=0)
    add(top1=88.9, latency=12.345, seed=1)
    add("swin", top1=None, latency=None)
    halo, swin = map(tables.cells, one(rank(store)))
    dash = tables.NONE
    interval = f"87.3{dash}90.1"
    assert halo == (
        *("1", "halo", "micro", "4.39 M", "0.86 G", "12.3 ms", "1,000", "88.80 ±0.14", interval, "2"),
    )
    assert swin == (dash, "swin", "micro", "4.39 M", "0.86 G", dash, dash, dash, dash, "1")
    assert len(tables.HEADERS) == len(halo)
    assert tables.macs(13_470_000) == "13.5 M"


def test_machine_formats_hold_raw_numbers(store: Store, add: Add) -> None:
    run = add(top1=88.7)
    add("swin", top1=None)
    groups = rank(store)
    halo, swin = json.loads(formats.to_json(groups))
    assert (halo["top1"], halo["macs"], halo["runs"]) == (88.7, 0.86e9, [run])
    assert (halo["recipe_digest"], halo["latency_condition"]) == ("3f9c21aa8b10", "batch=1,threads=2")
    assert (swin["rank"], swin["top1"], swin["mixer"]) == (None, None, "swin")
    lines = list(csv.DictReader(io.StringIO(formats.to_csv(groups))))
    assert [(line["mixer"], line["top1"], line["parameters"]) for line in lines] == [
        ("halo", "88.7", "4389672.0"),
        ("swin", "", "4389672.0"),
    ]
    assert set(halo) == set(lines[0])


def test_markdown_and_latex(store: Store, add: Add) -> None:
    add(top1=88.7, data_name="my_data & more")
    groups = rank(store)
    markdown = formats.to_markdown(groups).splitlines()
    assert markdown[0].startswith("**recipe quick (3f9c21aa8b10), data my_data & more, Some CPU")
    assert {line.count("|") for line in markdown[2:5]} == {len(tables.HEADERS) + 1}
    assert "MACs" in markdown[2]
    latex = formats.to_latex(groups)
    assert r"data my\_data \& more" in latex
    assert latex.count("{") == latex.count("}")
    rows = latex.partition(r"\toprule")[2].partition(r"\bottomrule")[0].replace(r"\midrule", "").strip()
    assert [line.count(" & ") for line in rows.splitlines() if line] == [len(tables.HEADERS) - 1] * 2
