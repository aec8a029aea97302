"""The plan of a sweep: every run once, what the database has of it, and what the rest will take."""

import dataclasses
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update
from sweep_files import new_run_of, write_sweep

from stmbench import evidence
from stmbench.store import NewRun, RunRecord, Store, claims, open_store, tables
from stmbench.store.records import StageTime, State
from stmbench.sweep import Item, Plan, load, planned
from stmbench.sweep.costs import Costs
from stmbench.sweep.planning import wall

Planner = Callable[..., Plan]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with open_store(str(tmp_path / "results.db")) as store:
        yield store


@pytest.fixture
def plan_of(tmp_path: Path, tiny_recipe_file: Path, tiny_data: Path, store: Store) -> Planner:
    """The plan of a sweep file with these values."""

    def made(elsewhere: bool = False, **values: Any) -> Plan:
        path = write_sweep(tmp_path, tiny_recipe_file, tiny_data, **values)
        return planned(load(str(path)), store, elsewhere=elsewhere)

    return made


def put(store: Store, new: NewRun, state: State, reason: str = "") -> RunRecord:
    """A run in the database that has ended so."""
    run = store.create_run(new)
    if state != "running":
        store.end_run(run.id, state, reason)
    return store.run(run.id)


def test_every_combination_is_a_run_and_first_seeds_come_first(plan_of: Planner) -> None:
    plan = plan_of(models=["timm:test_resnet"], scales=["micro", "tiny"], seeds=[4, 7])
    names = [(item.network, item.scale, item.seed) for item in plan.items]
    first = [
        ("dwconv", "micro"),
        ("pool", "micro"),
        ("timm:test_resnet", ""),
        ("dwconv", "tiny"),
        ("pool", "tiny"),
    ]
    assert names == [(*network, 4) for network in first] + [(*network, 7) for network in first]
    assert len({item.fingerprint for item in plan.items}) == len(plan.items)
    assert plan.device == "cpu"


def test_combinations_that_are_the_same_run_are_one(plan_of: Planner) -> None:
    plan = plan_of(overrides=[[], ["optimizer.lr=2e-3"], ["optimizer.lr=1e-3"]])  # 2e-3 is the recipe's
    assert (len(plan.items), plan.twice) == (4, 2)


@pytest.mark.parametrize("state", ["done", "failed", "interrupted", "running"])
def test_a_run_is_found_by_its_fingerprint(plan_of: Planner, store: Store, state: State) -> None:
    asked = plan_of().items[0]
    run = put(store, new_run_of(asked), state)
    found, other = plan_of().items
    assert (found.state, other.state) == (state, "new")
    assert found.run == run
    plan = plan_of(seeds=[0, 1])
    order = [(item.network, item.seed) for item in plan.to_run(retry=False)]
    rest = [("pool", 0), ("dwconv", 1), ("pool", 1)]
    expected = {"interrupted": [("dwconv", 0), *rest], "running": [*rest, ("dwconv", 0)]}
    assert sorted(order) == sorted(expected.get(state, rest))
    if state == "running":  # last, for it may have died by then
        assert order == expected["running"]
    assert (found in plan_of().to_run(retry=True)) == (state != "done")


def test_what_decides_a_result_tells_runs_apart_and_what_does_not_does_not(plan_of: Planner) -> None:
    first = plan_of().items[0].fingerprint
    assert plan_of(stages=["build"]).items[0].fingerprint == first
    assert plan_of(overrides=[["optimizer.lr=1e-4"]]).items[0].fingerprint != first
    assert plan_of(seeds=[1]).items[0].fingerprint != first
    assert plan_of(backend="plain").items[0].fingerprint != first


def test_a_run_of_fewer_stages_does_not_count(plan_of: Planner, store: Store) -> None:
    put(store, new_run_of(plan_of(stages=["build", "train"]).items[0]), "done")
    assert plan_of().items[0].state == "new"
    assert plan_of(stages=["train"]).items[0].state == "done"


def test_only_stages_that_are_not_done_are_left(plan_of: Planner, store: Store) -> None:
    run = store.create_run(new_run_of(plan_of().items[0]))
    store.start_stage(run.id, "build")
    store.end_stage(run.id, "build")
    store.end_run(run.id, "interrupted")
    item = plan_of().items[0]
    assert (item.state, item.left) == ("interrupted", ("train", "eval"))
    assert item.task("x.db", later=("eval", "profile")).later == ("eval",)


def test_a_combination_that_cannot_be_is_named(plan_of: Planner) -> None:
    with pytest.raises(
        ValueError, match=r"^dwconv huge by recipe .*tiny\.toml: Unknown scale of dwconv 'huge'"
    ):
        plan_of(scales=["micro", "huge"])
    with pytest.raises(
        ValueError, match=r"with optimizer\.lrr=1: recipe 'tiny': Unknown key 'optimizer\.lrr'"
    ):
        plan_of(grid={"optimizer.lrr": [1]})
    with pytest.raises(ValueError, match=r"Unknown mixer 'pol'"):
        plan_of(mixers=["pol"])


def test_a_device_elsewhere_is_not_looked_for_here(plan_of: Planner) -> None:
    with pytest.raises(ValueError, match="give --device cuda or cpu"):
        plan_of(elsewhere=True, device="auto")
    with pytest.raises(ValueError, match=r"set train\.precision=bf16"):
        plan_of(elsewhere=True, device="cuda")
    plan = plan_of(
        elsewhere=True, device="cuda", overrides=[["train.precision=bf16"]], stages=["train", "profile"]
    )
    assert (plan.device, plan.items[0].asked["device"]) == ("cuda", "cuda")
    with pytest.raises(ValueError, match="No cuda device here"):
        plan_of(device="cuda")


# Costs


TIMES = [
    StageTime("halo", "micro", "unified", "quick", "aaaa", "data", "cpu", 10, "train", 100.0),
    StageTime("halo", "micro", "unified", "quick", "aaaa", "data", "cpu", 10, "train", 120.0),
    StageTime("halo", "micro", "unified", "quick", "aaaa", "data", "cpu", 10, "train", 900.0),
    StageTime("halo", "micro", "unified", "quick", "bbbb", "data", "cpu", 10, "train", 10.0),
    StageTime("swin", "micro", "unified", "quick", "aaaa", "data", "cpu", 10, "eval", 4.0),
    StageTime("swin", "micro", "unified", "other", "aaaa", "data", "cpu", 10, "build", 7.0),
]


@pytest.mark.parametrize(
    ("like", "train", "likeness"),
    [
        ({}, 120.0, "same runs"),
        ({"recipe_digest": "cccc"}, 110.0, "like runs"),
        ({"hardware": "gpu"}, 110.0, "like runs"),
        ({"mixer": "dwconv"}, 110.0, "other networks"),
        ({"recipe_digest": "cccc", "epochs": 30}, 330.0, "like runs"),  # which is known by the epoch
    ],
)
def test_costs_are_medians_of_the_likest_runs(like: dict[str, str], train: float, likeness: str) -> None:
    asked = TIMES[0]._replace(**like)
    cost = Costs(TIMES).cost(asked, ["train"])
    assert (dict(cost.seconds), cost.likeness, cost.unknown) == ({"train": train}, likeness, ())


def test_a_cost_is_as_sure_as_its_least_sure_stage_and_says_what_it_lacks() -> None:
    cost = Costs(TIMES).cost(TIMES[0], ["build", "train", "eval"])
    assert (cost.likeness, cost.unknown) == ("other networks", ("build",))
    assert (cost.total(), cost.total(["train"])) == (124.0, 4.0)
    nothing = Costs([]).cost(TIMES[0], ["train"])
    assert (nothing.total(), nothing.unknown, nothing.likeness) == (0, ("train",), "")


def test_stage_times_come_from_finished_stages_of_such_recipes(plan_of: Planner, store: Store) -> None:
    run = store.create_run(new_run_of(plan_of().items[0]))
    for stage in ("build", "train"):
        store.start_stage(run.id, stage)
    store.end_stage(run.id, "build")
    began = datetime(2026, 1, 1, tzinfo=UTC)
    with store._write() as connection:
        times = {"started": began, "ended": began + timedelta(seconds=8)}
        connection.execute(update(tables.stage).where(tables.stage.c.name == "build").values(**times))
    (time,) = claims.stage_times(store, {"tiny"})
    assert (time.mixer, time.stage, time.seconds, time.epochs) == ("dwconv", "build", 8.0, 2)
    assert claims.stage_times(store, {"other"}) == []
    costs = [item.cost for item in plan_of(stages=["build"], seeds=[1]).items]
    assert [(dict(cost.seconds), cost.likeness) for cost in costs] == [
        ({"build": 8.0}, "same runs"),
        ({"build": 8.0}, "other networks"),
    ]


def test_the_wall_time_takes_what_is_timed_alone(plan_of: Planner) -> None:
    (item, _) = plan_of(stages=["train", "profile"]).items

    def costing(train: float, profile: float) -> Item:
        cost = dataclasses.replace(item.cost, seconds={"train": train, "profile": profile})
        return dataclasses.replace(item, cost=cost)

    items = [costing(10, 3), costing(20, 3), costing(30, 4)]
    assert wall(items, jobs=1, devices=1) == 70
    assert wall(items, jobs=2, devices=1) == 60 / 2 + 10
    assert wall(items, jobs=6, devices=1) == 30 + 10
    assert wall(items, jobs=2, devices=2) == 70 / 2


def test_fingerprints_of_plan_and_run_are_the_same(plan_of: Planner) -> None:
    (item, _) = plan_of(models=["timm:test_resnet"], mixers=["pool"]).items
    assert new_run_of(item).fingerprint == item.fingerprint
    assert new_run_of(item).hardware == evidence.hardware("cpu")


def test_designs_are_runs_of_their_own(plan_of: Planner) -> None:
    found = plan_of(mixers=["sra"], designs=["original", "unified"]).items
    assert [(item.name, item.asked["design"]) for item in found] == [
        ("sra@original", "original"),
        ("sra", "unified"),
    ]
    assert found[0].fingerprint != found[1].fingerprint
    with pytest.raises(
        ValueError, match=r"pool@original micro by recipe .*Unknown design of pool 'original'"
    ):
        plan_of(mixers=["pool"], scales=["micro"], designs=["original"])
