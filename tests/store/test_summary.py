"""What leaderboards read of a run: put together when it ends, made again when asked, newest last."""

import dataclasses
import math
from typing import Any

import pytest

from stmbench.record import Measurement
from stmbench.store import NewRun, Store
from stmbench.store.records import State

AT = "batch=1,execution=eager"


def _end(
    store: Store, new_run: NewRun, *measurements: Measurement, state: State = "done", **fields: Any
) -> str:
    run = store.create_run(dataclasses.replace(new_run, **fields)).id
    for measurement in measurements:
        store.record(run, measurement)
    store.end_run(run, state)
    return run


def test_a_finished_run_is_summarised_and_no_other(store: Store, new_run: NewRun) -> None:
    top1 = Measurement("eval", "top1", 88.0, "%", "weights=plain")
    _end(store, new_run, top1, state="failed")
    _end(store, new_run, top1, state="interrupted")
    store.create_run(new_run)
    assert store.summaries() == []
    run = _end(store, new_run, top1, Measurement("train", "top1", 50.0), seed=3)
    [found] = store.summaries()
    assert (found.run, found.seed, found.top1, found.latency) == (run, 3, 88.0, None)


def test_a_run_without_any_of_the_numbers_has_no_summary(store: Store, new_run: NewRun) -> None:
    _end(store, new_run, Measurement("train", "loss", 1.0, step=1), Measurement("eval", "loss", 1.0))
    assert store.summaries() == []


@pytest.mark.parametrize(
    "only",
    [
        Measurement("probe", "top1", 80.0, "%", "probe=knn,weights=plain"),
        Measurement("detect", "box_ap", 40.0, "%", "weights=plain"),
    ],
)
def test_a_run_that_was_only_probed_or_detects_has_one_all_the_same(
    store: Store, new_run: NewRun, only: Measurement
) -> None:
    run = _end(store, new_run, only)
    [found] = store.summaries()
    assert (found.run, found.top1, found.parameters) == (run, None, None)


def test_ema_weights_are_the_headline_and_the_best_throughput_counts(store: Store, new_run: NewRun) -> None:
    _end(
        store,
        new_run,
        Measurement("eval", "top1", 90.0, "%", "weights=plain"),
        Measurement("eval", "top1", 88.0, "%", "weights=ema"),
        Measurement("profile", "latency", 9.0, "ms", f"backend=sdpa,{AT}"),
        Measurement("profile", "best_throughput", 500.0, "images/s", "batches=1+8,execution=eager"),
        Measurement("profile", "disturbed", 0.0, "", AT),
        Measurement("profile", "disturbed", 1.0, "", "batch=8,execution=eager"),
        Measurement("build", "parameters", math.nan, reason="uncounted"),
    )
    [found] = store.summaries()
    assert (found.top1, found.latency, found.throughput, found.disturbed) == (88.0, 9.0, 500.0, 1.0)
    assert (found.latency_condition, found.parameters) == (AT, None)


def test_a_row_for_each_way_of_timing(store: Store, new_run: NewRun) -> None:
    times = {"eager": 9.0, "compiled": 6.0}
    numbers = [
        Measurement("profile", "latency", ms, "ms", f"batch=1,execution={how}") for how, ms in times.items()
    ]
    _end(store, new_run, Measurement("build", "parameters", 5e6), *numbers)
    found = store.summaries()
    assert {each.latency_condition.partition("execution=")[2]: each.latency for each in found} == times
    assert {each.parameters for each in found} == {5e6}


@pytest.mark.parametrize(
    ("field", "value", "kind"),
    [
        ("scale", "tiny", "network"),
        ("weights_sha256", "ab", "network"),
        ("preprocessing", {"mean": [0.5]}, "network"),
        ("backend", "plain", "network"),
        ("recipe_digest", "0", "protocol"),
        ("data_fingerprint", "0", "protocol"),
        ("hardware", "Another CPU", "protocol"),
        ("precision", "bf16", "protocol"),
        ("seed", 1, ""),
        ("threads", 1, ""),
    ],
)
def test_networks_and_protocols_are_told_apart(
    store: Store, new_run: NewRun, field: str, value: Any, kind: str
) -> None:
    size = Measurement("build", "parameters", 5e6)
    _end(store, new_run, size)
    _end(store, new_run, size, **{field: value})
    first, second = store.summaries()
    unlike = {name for name in ("network", "protocol") if getattr(first, name) != getattr(second, name)}
    assert unlike == {kind} - {""}


def test_summaries_come_oldest_first_and_of_chosen_runs(store: Store, new_run: NewRun) -> None:
    runs = [_end(store, new_run, Measurement("build", "parameters", 1.0)) for _ in range(4)]
    assert [each.run for each in store.summaries()] == runs
    assert [each.run for each in store.summaries([runs[2], runs[0]])] == [runs[0], runs[2]]


def test_made_again_they_are_what_the_measurements_say(store: Store, new_run: NewRun) -> None:
    runs = [_end(store, new_run, Measurement("build", "parameters", 1.0)) for _ in range(2)]
    for run in runs:
        store.record(run, Measurement("build", "parameters", 2.0))
    store.refresh_summaries(runs[:1])
    assert [each.parameters for each in store.summaries()] == [2.0, 1.0]
    store.refresh_summaries()
    assert [each.parameters for each in store.summaries()] == [2.0, 2.0]


def test_runs_are_found_by_name_or_fingerprint(store: Store, new_run: NewRun) -> None:
    runs = [store.create_run(dataclasses.replace(new_run, fingerprint=f"f{i}")).id for i in range(3)]
    assert set(store.named([*runs[:2], "nobody"])) == set(runs[:2])
    assert [run.id for run in store.runs(fingerprint="f2")] == [runs[2]]
