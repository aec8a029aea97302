"""What is read of many runs at once, the same from every kind of database: views, filters, chosen numbers."""

from collections.abc import Callable

import measured
import pytest

from stmbench.reading import where
from stmbench.reading.leaderboard import rank
from stmbench.store import NewRun, Store, reading, views
from stmbench.store.reading import Kind

NUMBERS = {
    "eval.top1@weights=plain": 88.5,
    "erf.area@level=1": 3.0,
    "erf.area@level=10": 30.0,
    "erf.side@level=1": float("nan"),
}


@pytest.fixture
def add(store: Store, new_run: NewRun) -> Callable[..., str]:
    return lambda numbers=NUMBERS, **fields: measured.add(store, new_run, numbers, {"top1": "%"}, **fields)


def read(store: Store, table: str, text: str | None = None) -> list[dict[str, object]]:
    condition = None if text is None else where.parse(text, views.fields(table))
    with views.rows(store, table, condition) as batches:
        return [dict(zip(views.columns(table), row, strict=True)) for batch in batches for row in batch]


def test_measurements_come_with_their_runs_facts_in_order(store: Store, add: Callable[..., str]) -> None:
    runs = sorted(add(mixer=mixer) for mixer in ("swin", "halo"))
    rows = read(store, "measurements")
    assert [row["run"] for row in rows] == [run for run in runs for _ in NUMBERS]
    assert [(row["name"], row["condition"], row["value"]) for row in rows[:4]] == [
        ("area", "level=1", 3.0),
        ("area", "level=10", 30.0),
        ("side", "level=1", None),
        ("top1", "weights=plain", 88.5),
    ]
    assert (rows[0]["mixer"], rows[0]["seed"], rows[0]["hardware"]) == ("halo", 0, "Some CPU (2 cores)")
    assert {name: type(rows[0][name]) for name in ("seed", "step", "value", "unit")} == {
        name: views.columns("measurements")[name] for name in ("seed", "step", "value", "unit")
    }


@pytest.mark.parametrize(
    ("text", "mixers"),
    [
        ("mixer=halo", ["halo"]),
        ("mixer!=halo", ["sra", "swin"]),
        ("mixer~S", ["sra", "swin"]),
        ("mixer~%", []),
        ("mixer in (halo, sra) and seed>=1", ["sra"]),
        ("seed<2 and not (mixer=halo or mixer=sra)", []),
        ("git_dirty=yes", ["swin"]),
        ("git_dirty!=yes", ["halo", "sra"]),
        ("created>2020-01-01", ["halo", "sra", "swin"]),
        ("created<2020-01-01T00:00:00+00:00 or threads>2", []),
        ("weights='' and recipe=quick and data~fashion", ["halo", "sra", "swin"]),
    ],
)
def test_filters_of_runs(store: Store, add: Callable[..., str], text: str, mixers: list[str]) -> None:
    for seed, mixer in enumerate(("halo", "sra", "swin")):
        add(mixer=mixer, seed=seed, git_dirty=mixer == "swin")
    assert sorted(str(row["mixer"]) for row in read(store, "runs", text)) == mixers
    assert sorted(run.mixer for run in store.runs(where=views.of_runs(text))) == mixers


def test_a_number_that_is_missing_passes_no_comparison(store: Store, add: Callable[..., str]) -> None:
    add()
    assert len(read(store, "measurements", "name=side")) == 1
    for text in ("name=side and value>0", "name=side and value!=1", "name=side and value<1e9"):
        assert read(store, "measurements", text) == []


def test_runs_have_their_tables_and_lists(store: Store, add: Callable[..., str]) -> None:
    run = add(mixer="halo")
    [row] = read(store, "runs")
    record = store.run(run)
    assert (row["recipe_values"], row["overrides"]) == (record.recipe_values, record.overrides)
    assert (row["created"], row["git_dirty"], row["state"]) == (record.created, False, "done")


def test_the_newest_runs_that_pass_and_no_more(store: Store, add: Callable[..., str]) -> None:
    runs = [add(seed=seed) for seed in range(5)]
    found = store.runs(limit=2, where=views.of_runs("seed<4"), mixer="halo")
    assert [run.id for run in found] == [runs[3], runs[2]]


# Chosen numbers


def test_kinds_values_and_names(store: Store, add: Callable[..., str]) -> None:
    runs = [add(), add({"erf.area@level=1": 5.0}), add()]
    some = runs[:2]
    area = Kind("erf", "area", "level=1", "")
    assert reading.kinds(store, some, ["area", "side"]) == [area, area._replace(condition="level=10")]
    assert dict(reading.values(store, some, area)) == {runs[0]: 3.0, runs[1]: 5.0}
    assert reading.names(store, runs[1:2]) == {("erf", "area")}
    assert reading.names(store, some) == {("erf", "area"), ("eval", "top1")}  # a failure is no number
    assert reading.kinds(store, [], ["area"]) == []


def test_more_runs_than_a_statement_takes(store: Store, add: Callable[..., str]) -> None:
    run = add({"erf.area": 5.0})
    asked = [*(f"none-{i}" for i in range(40_000)), run]
    assert dict(reading.values(store, asked, Kind("erf", "area", "", ""))) == {run: 5.0}


def test_a_leaderboard_with_columns_and_a_filter(store: Store, add: Callable[..., str]) -> None:
    for mixer, top1 in (("halo", 90.0), ("swin", 80.0), ("sra", 60.0)):
        add(NUMBERS | {"eval.top1@weights=plain": top1, "erf.area@level=10": top1 / 10}, mixer=mixer)
    [group] = rank(store, columns=["area@level=10"], where="top1>70", sort="area@level=10")
    assert [(row.rank, row.mixer, row.value("area@level=10")) for row in group.rows] == [
        (1, "swin", 8.0),
        (2, "halo", 9.0),
    ]
