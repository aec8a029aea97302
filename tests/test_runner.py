"""The runner commits what appears, in order, and writes down how a run ended."""

import dataclasses
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import stmbench.data
from stmbench import catalog, runner
from stmbench.plan import Request
from stmbench.recipe import Recipe
from stmbench.record import Artifact, Event, Job, Measurement
from stmbench.store import Store, open_store

Stage = Callable[[Job], Iterator[Event]]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with open_store(str(tmp_path / "results.db")) as store:
        yield store


@pytest.fixture
def stages(monkeypatch: pytest.MonkeyPatch) -> dict[str, Stage]:
    """Stages `one` and `two`, to be filled in by the test, instead of the real ones."""
    table: dict[str, Stage] = {}
    monkeypatch.setattr(catalog, "stages", lambda: {"one": "one", "two": "two"})
    monkeypatch.setattr(catalog, "resolve", lambda target: table[target])
    return table


@pytest.fixture
def job(store: Store, tiny_data: Path, tiny_recipe: Recipe) -> Job:
    asked = Request(
        mixers=("halo",),
        scale="micro",
        recipe=tiny_recipe,
        overrides=(),
        stages=("one", "two"),
        seed=3,
        info=stmbench.data.find(str(tiny_data)),
        device="cpu",
        weights=None,
    )
    return next(runner.start(asked, store))


def test_a_measurement_is_committed_before_it_is_handed_on(store: Store, stages, job: Job) -> None:
    stages["one"] = lambda _: iter([Measurement("one", "a", 1.0), Measurement("one", "b", 2.0)])
    stages["two"] = lambda _: iter([])
    run_id = job.folder.name
    seen = []
    for event in runner.execute(job, store):
        if isinstance(event, Measurement):
            seen.append([m.name for m in store.measurements(run_id)])
    assert seen == [["a"], ["a", "b"]]
    assert store.run(run_id).state == "done"
    assert [(s.name, s.state) for s in store.stages(run_id)] == [("one", "done"), ("two", "done")]


def test_a_failed_run_keeps_its_numbers_and_its_reason(store: Store, stages, job: Job) -> None:
    def fails(_: Job) -> Iterator[Event]:
        yield Measurement("one", "a", 1.0)
        raise RuntimeError("the sky fell")

    stages["one"] = fails
    with pytest.raises(RuntimeError, match="the sky fell"):
        list(runner.execute(job, store))
    run = store.run(job.folder.name)
    assert (run.state, "the sky fell" in run.reason) == ("failed", True)
    assert [m.value for m in store.measurements(run.id)] == [1.0]
    assert [(s.name, s.state) for s in store.stages(run.id)] == [("one", "failed")]


def test_ctrl_c_is_an_interruption_and_resume_skips_what_is_done(store: Store, stages, job: Job) -> None:
    taken = []

    def first(_: Job) -> Iterator[Event]:
        taken.append("one")
        return iter([])

    def interrupted(_: Job) -> Iterator[Event]:
        raise KeyboardInterrupt
        yield

    stages |= {"one": first, "two": interrupted}
    with pytest.raises(KeyboardInterrupt):
        list(runner.execute(job, store))
    run = store.run(job.folder.name)
    assert (run.state, run.reason) == ("interrupted", "stopped by the user")

    stages["two"] = lambda _: iter([Measurement("two", "b", 2.0)])
    again = runner.reopen(run.id, store)
    assert again == job
    list(runner.execute(again, store))
    assert taken == ["one"]
    assert store.run(run.id).state == "done"


def test_a_consumer_that_stops_listening_interrupts_the_run(store: Store, stages, job: Job) -> None:
    stages["one"] = lambda _: iter([Measurement("one", "a", 1.0), Measurement("one", "b", 2.0)])
    events = runner.execute(job, store)
    next(events)
    events.close()
    assert store.run(job.folder.name).state == "interrupted"


def test_a_run_says_that_it_is_alive(store: Store, stages, job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    before = store.run(job.folder.name).heartbeat
    beaten = threading.Event()
    beat = store.beat

    def beats(run_id: str) -> None:
        beat(run_id)
        beaten.set()

    def waits(_: Job) -> Iterator[Event]:
        assert beaten.wait(30)
        assert store.run(job.folder.name).heartbeat > before
        return iter([])

    monkeypatch.setattr(runner, "HEARTBEAT_S", 0.01)
    monkeypatch.setattr(store, "beat", beats)
    stages |= {"one": waits, "two": lambda _: iter([])}
    list(runner.execute(job, store))
    assert store.run(job.folder.name).state == "done"


def test_artifacts_are_stored_with_their_digest(store: Store, stages, job: Job) -> None:
    def writes(job: Job) -> Iterator[Event]:
        (job.folder / "map.bin").write_bytes(b"abc")
        yield Artifact("one", "map", job.folder / "map.bin")

    stages |= {"one": writes, "two": lambda _: iter([])}
    list(runner.execute(job, store))
    (artifact,) = store.artifacts(job.folder.name)
    assert (str(artifact.path), artifact.bytes) == ("map.bin", 3)


def test_resume_refuses_data_that_have_changed(
    store: Store, stages, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.end_run(job.folder.name, "interrupted")
    info = dataclasses.replace(stmbench.data.find(job.data), fingerprint="0" * 12)
    monkeypatch.setattr(stmbench.data, "find", lambda _: info)
    with pytest.raises(ValueError, match="have changed since"):
        runner.reopen(job.folder.name, store)


@pytest.mark.parametrize(("device", "current"), [("cuda:1", ["cuda:1"]), ("cuda", []), ("cpu", [])])
def test_a_chosen_gpu_is_the_current_one(
    store: Store, stages, job: Job, monkeypatch: pytest.MonkeyPatch, device: str, current: list[str]
) -> None:
    chosen: list[str] = []
    monkeypatch.setattr("torch.cuda.set_device", chosen.append)
    list(runner.execute(dataclasses.replace(job, device=device, stages=()), store))
    assert chosen == current
