"""Is it the same again? Bit for bit where it can be, within what was stored where it cannot."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import evaluated
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from stmbench import reproduce
from stmbench.record import Artifact, Measurement
from stmbench.store import NewRun, RunRecord, Store, open_store

IMAGES = 1000
BEST = np.arange(IMAGES) < 900


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with open_store(str(tmp_path / "results.db")) as store:
        yield store


def _run(
    store: Store, new_run: NewRun, hits: np.ndarray = BEST, *numbers: Measurement, weight: float = 1.0
) -> RunRecord:
    """A finished run with these answers and numbers, and weights of this value."""
    run = store.run(evaluated.add(store, new_run, hits))
    for number in numbers:
        store.record(run.id, number)
    path = run.folder / "plain.safetensors"
    save_file({"weight": torch.full((2,), weight)}, path)
    store.attach(run.id, Artifact("train", "weights", path, "weights=plain"), run.folder)
    return run


def test_the_same_again_is_the_same(store: Store, new_run: NewRun) -> None:
    size = Measurement("build", "parameters", 5e6)
    then, now = (_run(store, new_run, BEST, size) for _ in range(2))
    found = reproduce.outcome(store, then, now)
    assert (found.weights, found.alike, found.images, found.reproduced) == (True, IMAGES, IMAGES, True)
    assert {(check.then.stage, check.then.name) for check in found.checks} >= {
        ("build", "parameters"),
        ("eval", "top1"),
    }
    assert reproduce.changed(then, now) == []


def test_weights_count_by_what_is_in_their_files(store: Store, new_run: NewRun) -> None:
    then, now = (_run(store, new_run) for _ in range(2))
    path = now.folder / "plain.safetensors"
    save_file({"weight": torch.ones(2)}, path, {"epoch": "2"})
    store.attach(now.id, Artifact("train", "weights", path, "weights=plain"), now.folder)
    assert reproduce.outcome(store, then, now).weights is True
    path.write_bytes(b"broken")
    assert reproduce.outcome(store, then, now).weights is False


def test_other_weights_within_the_uncertainty_reproduce_it(store: Store, new_run: NewRun) -> None:
    then = _run(store, new_run)
    now = _run(store, new_run, BEST & (np.arange(IMAGES) >= 10), weight=2.0)
    found = reproduce.outcome(store, then, now)
    assert (found.weights, found.alike, found.reproduced) == (False, IMAGES - 10, True)


def test_top1_outside_its_interval_does_not(store: Store, new_run: NewRun) -> None:
    then, now = _run(store, new_run), _run(store, new_run, BEST & (np.arange(IMAGES) >= 60))
    found = reproduce.outcome(store, then, now)
    assert not found.reproduced
    [check] = [check for check in found.checks if not check.holds and check.then.name == "top1"]
    assert check.now == pytest.approx(84.0)
    assert 87 < check.low < check.then.value < check.high < 92


def test_counts_must_be_equal(store: Store, new_run: NewRun) -> None:
    runs = [
        _run(store, new_run, BEST, Measurement("build", "macs", value, "MACs")) for value in (5e6, 5e6 + 1)
    ]
    assert not reproduce.outcome(store, *runs).reproduced


@pytest.mark.parametrize(("now", "holds"), [(47.0, True), (45.0, True), (51.0, False)])
def test_a_stored_interval_judges_but_does_not_decide(
    store: Store, new_run: NewRun, now: float, holds: bool
) -> None:
    area = [
        Measurement("erf", f"area{end}", value)
        for end, value in (("", 46.0), (".low", 44.0), (".high", 50.0))
    ]
    runs = [
        _run(store, new_run, BEST, *area),
        _run(store, new_run, BEST, dataclasses.replace(area[0], value=now)),
    ]
    found = reproduce.outcome(store, *runs)
    assert [check.holds for check in found.checks if check.then.stage == "erf"] == [holds]
    assert found.reproduced


@pytest.mark.parametrize(("hardware", "compared"), [("Some CPU (2 cores)", 1), ("Another CPU", 0)])
def test_times_are_judged_on_the_same_machine(
    store: Store, new_run: NewRun, hardware: str, compared: int
) -> None:
    names = {"latency": 5.0, "latency_min": 4.8, "latency_p95": 5.3}
    times = [Measurement("profile", name, value, "ms", "batch=1") for name, value in names.items()]
    then = _run(store, new_run, BEST, *times)
    now = _run(
        store,
        dataclasses.replace(new_run, hardware=hardware),
        BEST,
        Measurement("profile", "latency", 5.4, "ms", "batch=1"),
    )
    checks = [check for check in reproduce.outcome(store, then, now).checks if check.then.stage == "profile"]
    assert [check.holds for check in checks] == [False] * compared


def test_code_libraries_and_machine_are_told(store: Store, new_run: NewRun) -> None:
    other = dataclasses.replace(new_run, git_commit="ab" * 20, threads=1, versions={"torch": "2.7.0"})
    found = reproduce.changed(_run(store, new_run), _run(store, other))
    assert {change.name for change in found} == {"code", "threads", "torch"}


def test_only_a_finished_run_with_its_own_data_can_be_done_again(
    store: Store, new_run: NewRun, tiny_data: Path
) -> None:
    running = store.create_run(new_run)
    with pytest.raises(ValueError, match="is running: only a finished one"):
        reproduce.request(running)
    with pytest.raises(ValueError, match=r"are not those of .*Give --data"):
        reproduce.request(_run(store, dataclasses.replace(new_run, data_source=str(tiny_data))))
