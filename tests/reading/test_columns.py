"""Any measurement as a column: which number a name means, what it says of seeds, and what is refused."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import measured
import pytest
from measured import IMAGES, TOP1

from stmbench.reading import columns, formats, tables
from stmbench.reading.columns import Number
from stmbench.reading.leaderboard import rank
from stmbench.reading.rows import Group, records, types
from stmbench.record import Measurement
from stmbench.store import NewRun, Store, open_store

ERF = "erf.area@level={},precision=fp32,share={},weights={}"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with open_store(str(tmp_path / "results.db")) as store:
        yield store


class Add:
    """``add({"erf.cost@size=28": 2.0}, mixer="swin")``: a finished run with a top-1 and these numbers."""

    def __init__(self, store: Store, new: NewRun) -> None:
        self.store, self.new = store, new

    def __call__(self, numbers: dict[str, float] | None = None, top1: float = 88.0, **fields: Any) -> str:
        return measured.add(self.store, self.new, {TOP1: top1, IMAGES: 2000} | (numbers or {}), **fields)


@pytest.fixture
def add(store: Store, new_run: NewRun) -> Add:
    return Add(store, new_run)


def numbers(store: Store, column: str, **options: Any) -> list[Number | None]:
    """The column of the only group, in its order."""
    [group] = rank(store, columns=[column], **options)
    return [row.more.get(column) for row in group.rows]


def refused(store: Store, column: str, message: str, **options: Any) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        rank(store, columns=[column], **options)
    assert "\n" not in str(caught.value)


def test_a_text_of_columns_is_split_outside_conditions() -> None:
    text = "mixer, top1,side@level=4,share=50 ,erf.area@level=1,loss,"
    assert columns.split(text) == ["mixer", "top1", "side@level=4,share=50", "erf.area@level=1", "loss"]
    assert columns.split("") == []


# Which number


def test_a_number_is_found_by_its_name_with_or_without_its_stage(store: Store, add: Add) -> None:
    add({"erf.area@level=1": 3.5, "invariance.cost@size=28": 7.0})
    assert numbers(store, "area") == numbers(store, "erf.area") == [Number(3.5)]
    assert numbers(store, "invariance.cost") == [Number(7.0)]


def test_names_with_dots(store: Store, add: Add) -> None:
    add({"build.macs.level1.mixers@height=28": 5.0, "build.macs@height=28": 9.0})
    assert numbers(store, "macs.level1.mixers") == numbers(store, "build.macs.level1.mixers") == [Number(5.0)]


def test_one_name_of_two_stages_is_refused_until_the_stage_is_named(store: Store, add: Add) -> None:
    add({"erf.skipped": 1.0, "invariance.skipped": 2.0})
    refused(store, "skipped", "measured by several stages: choose one of erf.skipped, invariance.skipped.")
    assert numbers(store, "erf.skipped") == [Number(1.0)]


def test_parts_of_a_condition_choose_the_number(store: Store, add: Add) -> None:
    add({ERF.format(i, share, "plain"): 10.0 * i + share for i in (1, 4, 10) for share in (5, 50)})
    refused(
        store,
        "erf.area",
        "'erf.area' means several numbers. Choose by level (1, 4, 10) and share (5, 50), such as "
        "erf.area@level=1,share=5.",
    )
    refused(store, "area@share=50", "Choose by level (1, 4, 10), such as area@level=1.")
    refused(
        store,
        "area@share=60",
        "Nobody measured 'area@share=60'. Choose by level (1, 4, 10) and share (5, 50)",
    )
    refused(store, "area@share", "Cannot read the column 'area@share': it is NAME, or NAME@KEY=VALUE")
    assert numbers(store, "area@share=50,level=4") == [Number(90.0)]


def test_parts_that_only_some_have_tell_numbers_apart(store: Store, add: Add) -> None:
    add({"invariance.images@protocol=a": 500.0, "invariance.images@level=1,protocol=a": 200.0})
    refused(store, "invariance.images", "Choose by level (1), such as invariance.images@level=1.")


def test_the_weights_a_network_is_known_by_need_not_be_said(store: Store, add: Add) -> None:
    looks = {"ema": 3.0, "plain": 2.0, "random": 1.0}
    add({ERF.format(1, 50, kind): value for kind, value in looks.items()}, mixer="halo", top1=90.0)
    add({ERF.format(1, 50, kind): looks[kind] for kind in ("plain", "random")}, mixer="swin", top1=80.0)
    assert numbers(store, "area") == [Number(3.0), Number(2.0)]
    assert numbers(store, "area@weights=random") == [Number(1.0), Number(1.0)]


def test_backends_keep_no_numbers_apart(store: Store, add: Add) -> None:
    for mixer, backend, top1 in (("halo", "chunked", 90.0), ("swin", "plain", 80.0)):
        add({f"profile.memory@backend={backend},batch=1": top1}, mixer=mixer, top1=top1)
    assert numbers(store, "memory") == [Number(90.0), Number(80.0)]


def test_a_table_of_one_timing_has_its_numbers_alone(store: Store, add: Add) -> None:
    numbers_of = {"eager": 9.0, "compiled": 6.0}
    add(
        {
            f"profile.{name}@batch={batch},execution={execution}": factor * value
            for execution, value in numbers_of.items()
            for name, batch, factor in (("latency", 1, 1), ("memory", 1, 10), ("memory", 64, 100))
        }
    )
    found = {}
    for group in rank(store, columns=["memory@batch=64"]):
        [row] = group.rows
        found[group.latency_condition] = row.more["memory@batch=64"].value
    assert found == {"batch=1,execution=eager": 900.0, "batch=1,execution=compiled": 600.0}
    refused(store, "memory", "Choose by batch (1, 64), such as memory@batch=1.")


def test_points_of_curves_and_failures_are_no_columns(store: Store, add: Add) -> None:
    run = add({"erf.area": float("nan")})
    store.record(run, Measurement("train", "loss", 1.0, step=1))
    refused(store, "loss", "Unknown column 'loss': nobody measured it.")
    refused(store, "area", "Unknown column 'area': nobody measured it.")


def test_an_unknown_column_names_the_nearest(store: Store, add: Add) -> None:
    add({"erf.area": 1.0})
    refused(store, "erf.aera", "Unknown column 'erf.aera': nobody measured it. Did you mean 'erf.area'?")
    refused(store, "aera@level=4", "Did you mean 'area'?")
    refused(store, "paramters", "Did you mean 'parameters'?")
    refused(store, "qqqqq", "Unknown column 'qqqqq': nobody measured it. `stmbench show RUN` lists")
    refused(store, "top1", "Did you mean 'area'?", sort="arae")
    refused(store, "top1", "Did you mean 'latency'?", pareto="latencies")


def test_a_column_that_one_table_has_is_empty_in_the_other(store: Store, add: Add) -> None:
    add({"erf.area": 1.0})
    add(mixer="swin", recipe_name="fashion")
    found = {group.recipe: group.rows[0].more for group in rank(store, columns=["area"])}
    assert found == {"quick": {"area": Number(1.0)}, "fashion": {}}


def test_an_empty_leaderboard_knows_no_column_and_refuses_none(store: Store) -> None:
    assert rank(store, columns=["area"]) == []


# Seeds


def test_seeds_are_averaged_with_their_number(store: Store, add: Add) -> None:
    for seed, value in enumerate((10.0, 12.0)):
        add({"erf.area": value}, seed=seed)
    add(seed=2)  # which was not looked at
    assert numbers(store, "area") == [Number(11.0, 2**0.5, 2)]


def test_the_newest_run_of_a_seed_that_has_the_number_counts(store: Store, add: Add) -> None:
    for value in (1.0, 2.0):
        add({"erf.area": value})
    add()
    assert numbers(store, "area") == [Number(2.0)]


# Ranking by them, and telling of them


def order(store: Store, sort: str, **options: Any) -> list[tuple[int | None, str]]:
    [group] = rank(store, sort=sort, **options)
    return [(row.rank, row.mixer) for row in group.rows]


def test_the_best_stands_first_whatever_the_column(store: Store, add: Add) -> None:
    for i, mixer in enumerate(("halo", "swin", "sra")):
        add({"erf.cost": 1.0 + i, "invariance.consistency@strength=8": 50.0 + i}, mixer=mixer)
    add(mixer="pool")
    assert order(store, "cost") == [(1, "halo"), (2, "swin"), (3, "sra"), (None, "pool")]
    assert order(store, "consistency@strength=8") == [(1, "sra"), (2, "swin"), (3, "halo"), (None, "pool")]
    assert order(store, "-cost") == [(1, "sra"), (2, "swin"), (3, "halo"), (None, "pool")]
    assert order(store, "-mixer") == [(1, "swin"), (2, "sra"), (3, "pool"), (4, "halo")]


@pytest.mark.parametrize(
    ("name", "larger"),
    [("top5", True), ("throughput", True), ("auc.top1", True), ("consistency", True), ("matmul_share", True)]
    + [(name, False) for name in ("area", "loss", "latency_p95", "macs.mixers", "mce", "peak_memory")],
)
def test_which_end_is_the_best(name: str, larger: bool) -> None:
    assert columns.descending(name) == larger


def test_filters_and_fronts_take_measurements(store: Store, add: Add) -> None:
    for mixer, top1, cost in (
        ("halo", 90.0, 3.0),
        ("swin", 85.0, 2.0),
        ("sra", 84.0, 2.5),
        ("pool", 80.0, 1.0),
    ):
        add({"erf.cost": cost}, mixer=mixer, top1=top1)
    assert order(store, "top1", columns=["erf.cost"], where="erf.cost>=2 and not mixer=sra") == [
        (1, "halo"),
        (2, "swin"),
    ]
    [group] = rank(store, where="'erf.cost' > 2 and top1 > 86")
    assert [(row.mixer, row.more["erf.cost"].value) for row in group.rows] == [("halo", 3.0)]  # and is shown
    with pytest.raises(ValueError, match="Unknown column 'tpo1': nobody measured it"):
        rank(store, where="tpo1>70")
    with pytest.raises(ValueError, match="Unknown field 'mixr'"):
        rank(store, where="mixr=halo")
    [group] = rank(store, pareto="cost")
    assert [(row.rank, row.mixer) for row in group.rows] == [(1, "halo"), (2, "swin"), (4, "pool")]
    assert tables.notes(group)[-1] == "the Pareto front of top-1 against cost: 3 of 4"


def seeded(store: Store, add: Add) -> Group:
    units = {"memory": "bytes", "top5": "%"}
    for seed, value in enumerate((5.0e8, 5.2e8)):
        found = {"profile.memory@batch=1,size=28": value, "eval.top5@weights=plain": 99.0 + seed / 4}
        add(found, seed=seed, units=units)
    add({"profile.memory@batch=1,size=28": 3.0e8}, mixer="swin", top1=70.0, seed=0, units=units)
    add(mixer="swin", top1=70.0, seed=1)
    [group] = rank(store, columns=["mixer", "memory@batch=1", "top5"])
    return group


def test_people_read_mean_deviation_unit_and_condition(store: Store, add: Add) -> None:
    group = seeded(store, add)
    names = tables.shown(group, ["mixer", "memory@batch=1"])
    assert names == ("mixer", "memory@batch=1", "top5")  # a column of the group is never left out
    assert tables.headers(group, names) == ("#", "mixer", "memory MB, batch=1", "top5 %")
    assert [tables.cells(row, group, names)[1:3] for row in group.rows] == [
        ("halo", "510.0 ±14.1"),
        ("swin", "300 (n=1)"),
    ]
    assert tables.notes(group) == ["memory at size=28", "top5 at weights=plain"]
    markdown = formats.to_markdown([group], ["mixer", "memory@batch=1"])
    assert "| 1 | halo | 510.0 ±14.1 | 99.12 ±0.18 |" in markdown
    assert "_memory at size=28_" in markdown


def test_machines_read_raw_numbers(store: Store, add: Add) -> None:
    group = seeded(store, add)
    halo, swin = records([group])
    name = "memory@batch=1"
    assert (halo[name], halo[f"{name}_n"], halo[f"{name}_unit"]) == (5.1e8, 2, "bytes")
    assert halo[f"{name}_sd"] == pytest.approx(2e7 / 2**0.5)
    assert halo[f"{name}_condition"] == "batch=1,size=28"
    assert (swin[name], swin[f"{name}_n"], swin[f"{name}_sd"]) == (3.0e8, 1, None)
    assert (swin["top5"], swin["top5_n"]) == (None, None)
    assert list(types([group])) == list(halo)
    assert formats.to_csv([group]).splitlines()[0].endswith("top5,top5_sd,top5_n,top5_unit,top5_condition")


# Short names


def test_probes_have_short_names(store: Store, add: Add) -> None:
    add({"probe.top1@probe=linear,size=28": 80.0, "probe.top1@k=20,probe=knn,size=28": 70.0})
    assert numbers(store, "probe", sort="-probe") == [Number(80.0)]
    assert numbers(store, "knn") == numbers(store, "knn@k=20") == [Number(70.0)]
    assert columns.descending("probe.top1")
    refused(store, "knn@k=5", "Nobody measured 'knn@k=5'. It was measured under k=20,probe=knn,size=28.")
    add({"probe.top1@k=5,probe=knn,size=28": 60.0}, mixer="swin")
    refused(store, "knn", "The column 'knn' means several numbers. Choose by k (5, 20), such as knn@k=20.")


def test_what_stages_are_known_by() -> None:
    assert columns.known_by({"train", "probe"}) == ["probe", "knn"]
    assert columns.known_by({"train", "eval"}) == []
