"""Runs in processes of this machine: where they run, what is timed alone, and that a crash takes one run."""

import os
import pickle
import queue
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import psutil
import pytest
import torch
import typer
from sweep_files import new_run_of, write_sweep

from stmbench import evidence
from stmbench.cli import app
from stmbench.cli.run import resolved
from stmbench.plan import request
from stmbench.record import Measurement
from stmbench.store import Store, open_store
from stmbench.sweep import (
    Ended,
    Item,
    Outcome,
    Plan,
    Started,
    Sweep,
    Task,
    Told,
    executors,
    load,
    planned,
    pool,
)
from stmbench.sweep.pool import Slot, slots
from stmbench.sweep.work import work


@pytest.fixture
def db(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    return str(tmp_path / "results.db")


@pytest.fixture
def store(db: str) -> Iterator[Store]:
    with open_store(db) as store:
        yield store


@pytest.fixture
def plan_of(tmp_path: Path, tiny_recipe_file: Path, tiny_data: Path, store: Store) -> Callable[..., Plan]:
    def made(**values: Any) -> Plan:
        return planned(load(str(write_sweep(tmp_path, tiny_recipe_file, tiny_data, **values))), store)

    return made


# Places


def test_threads_are_divided_where_the_cpu_computes() -> None:
    assert slots("cpu", [], None, 8) == [Slot("cpu", 8)]
    assert slots("cpu", [], 3, 8) == [Slot("cpu", 2)] * 3
    assert slots("cpu", [], 4, 2) == [Slot("cpu", 1)] * 4


def test_each_gpu_is_a_place_or_several() -> None:
    assert slots("cuda", [0, 2], None, 8) == [Slot("cuda:0", 8), Slot("cuda:2", 8)]
    assert [slot.device for slot in slots("cuda", [0, 2], 3, 8)] == ["cuda:0", "cuda:2", "cuda:0"]
    assert slots("cuda", [], 2, 8) == [Slot("cuda", 8)] * 2


def test_gpus_are_named_or_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)

    def read(text: str) -> list[int]:
        return executors.check(Sweep(), "local", jobs=None, gpus=text)

    assert (read(""), read("3"), read("0,2"), read("0,")) == ([], [0, 1, 2], [0, 2], [0])
    for wrong, line in (
        ("0", "is no GPU at all"),
        ("a", "how many"),
        ("1,7", "No device 'cuda:7' here"),
        ("9", "No device 'cuda:4' here"),
    ):
        with pytest.raises(ValueError, match=line):
            read(wrong)
    with pytest.raises(ValueError, match="the cluster chooses"):
        executors.check(Sweep(), "slurm", jobs=None, gpus="2")
    with pytest.raises(ValueError, match=r"cpus and gpus in \[ray\]"):
        executors.check(Sweep(), "ray", jobs=2, gpus="")


class FakeWorker:
    """Ends at once: as put off where stages are, else as done."""

    started: ClassVar[list[tuple[str, str, int, tuple[str, ...]]]] = []

    def __init__(self, number: int, task: Task, slot: Slot, heard: "queue.SimpleQueue[Told | int]") -> None:
        self.slot, self.later = slot, task.later
        FakeWorker.started.append((task.asked["mixer"], slot.device, slot.threads, task.later))
        heard.put(number)

    def stop(self) -> None: ...

    def close(self, patience: float) -> Outcome:
        return Outcome("later" if self.later else "done", "id")


@pytest.mark.parametrize(
    ("places", "expected"),
    [
        ([Slot("cpu", 4)], [("cpu", 4, ())] * 2),
        ([Slot("cpu", 2)] * 2, [("cpu", 2, ("profile",))] * 2 + [("cpu", 4, ())] * 2),
        ([Slot("cuda:0", 4), Slot("cuda:1", 4)], [("cuda:0", 4, ()), ("cuda:1", 4, ())]),
        (
            [Slot("cuda:0", 4), Slot("cuda:1", 4), Slot("cuda:0", 4)],
            [(f"cuda:{i}", 4, ("profile",)) for i in (0, 1)] + [(f"cuda:{i}", 4, ()) for i in (0, 1)],
        ),
    ],
)
def test_what_is_timed_is_timed_alone_on_its_device(
    plan_of: Callable[..., Plan],
    store: Store,
    monkeypatch: pytest.MonkeyPatch,
    places: list[Slot],
    expected: list[tuple[str, int, tuple[str, ...]]],
) -> None:
    monkeypatch.setattr(pool, "_Worker", FakeWorker)
    monkeypatch.setattr(FakeWorker, "started", [])
    items = plan_of(stages=["train", "profile"]).items
    events = list(pool.follow(items, places, store, "x.db", retry=False, threads=4))
    assert [rest for _, *rest in FakeWorker.started] == [list(each) for each in expected]
    assert [event.task for event in events if isinstance(event, Ended) and event.outcome.state == "done"] == [
        0,
        1,
    ]


# One run, in this process


def test_stages_are_put_off_and_taken_up(plan_of: Callable[..., Plan], store: Store, db: str) -> None:
    item = plan_of(stages=["build", "eval", "train"]).items[1]
    told: list[Any] = []
    outcome = work(item.task(db, later=["eval"]), told.append)
    run = store.run(outcome.run_id)
    assert (outcome.state, run.state, run.reason) == ("later", "interrupted", "still to come: eval")
    assert told[0] == Started(run.id, run.folder)
    assert [stage.name for stage in store.stages(run.id)] == ["build", "train"]
    again = plan_of().items[1]
    assert (again.state, again.left) == ("interrupted", ("eval",))
    assert work(again.task(db)) == Outcome("done", run.id)
    assert work(again.task(db)) == Outcome("done", run.id)  # nothing is made twice
    assert len(store.runs()) == 1


def test_what_has_changed_since_the_plan_is_not_run(
    plan_of: Callable[..., Plan], store: Store, db: str, tiny_recipe_file: Path, capsys: Any
) -> None:
    item = plan_of().items[0]
    tiny_recipe_file.write_text(tiny_recipe_file.read_text().replace("epochs = 2", "epochs = 1"))
    outcome = work(item.task(db))
    assert outcome.state == "failed"
    assert "no longer those of the plan" in outcome.reason
    assert store.runs() == []


def test_a_run_whose_files_are_gone_is_made_anew(plan_of: Callable[..., Plan], store: Store, db: str) -> None:
    item = plan_of(mixers=["pool"], stages=["train", "eval"]).items[0]
    first = work(item.task(db, later=["eval"])).run_id
    (store.run(first).folder / "plain.safetensors").unlink()
    (item,) = plan_of(mixers=["pool"], stages=["train", "eval"]).items
    outcome = work(item.task(db))
    assert (outcome.state, outcome.run_id != first) == ("done", True)
    assert (store.run(first).state, "are gone" in store.run(first).reason) == ("failed", True)
    (item,) = plan_of(mixers=["pool"], stages=["train", "eval"]).items
    assert item.state == "done"


def test_a_failed_run_is_left_alone_until_it_is_asked_for(
    plan_of: Callable[..., Plan], store: Store, db: str
) -> None:
    item = plan_of(mixers=["pool"], stages=["build"]).items[0]
    failed = store.create_run(new_run_of(item))
    store.end_run(failed.id, "failed", "the sky fell")
    assert work(item.task(db)) == Outcome("failed", failed.id, "the sky fell")
    assert work(item.task(db, retry=True)) == Outcome("done", failed.id)


@pytest.mark.parametrize(
    "values", [{"scales": ["tiny"], "backend": "plain"}, {"models": ["timm:test_resnet"]}]
)
def test_a_run_says_which_command_makes_it_alone(
    plan_of: Callable[..., Plan], store: Store, db: str, values: dict[str, Any]
) -> None:
    values = {
        "mixers": ["pool"],
        "overrides": [["optimizer.lr=1e-3", 'stages=["build"]']],
        "stages": ["all"],
    } | values
    item = plan_of(**values).items[-1]
    work(item.task(db))
    (run,) = store.runs()
    assert run.argv[:2] == ["stmbench", "run"]
    command: Any = typer.main.get_command(app)
    given = command.commands["run"].make_context("run", [*run.argv[2:], "--dry-run"]).params
    renamed = {"recipe": "recipe_name", "set_": "overrides"}
    asked: dict[str, Any] = {
        renamed.get(str(name), str(name)): value
        for name, value in given.items()
        if name not in ("db", "dry_run", "seeds", "from_", "gpus", "resume", "sink")
    }
    asked = resolved(asked, None, db)
    assert evidence.fingerprint(request(**asked), item.network) == item.fingerprint


# Processes


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
def test_a_worker_that_is_killed_takes_its_run_alone(
    plan_of: Callable[..., Plan], store: Store, db: str
) -> None:
    plan = plan_of(stages=["train"])
    outcomes: dict[int, Outcome] = {}
    for event in pool.follow(plan.items, [Slot("cpu", 1)] * 2, store, db, retry=False, threads=1):
        if isinstance(event, Ended):
            outcomes[event.task] = event.outcome
        elif event.task == 0 and isinstance(event.event, Measurement) and event.event.name == "loss":
            (run,) = store.runs(mixer="dwconv")
            os.kill(run.pid, signal.SIGKILL)
    assert {i: outcome.state for i, outcome in outcomes.items()} == {0: "failed", 1: "done"}
    assert outcomes[0].reason.startswith("its process was killed by SIGKILL, most likely for its memory")
    assert store.run(outcomes[0].run_id).state == "interrupted"
    assert store.run(outcomes[1].run_id).threads == 1
    assert "train: done in" in (store.run(outcomes[1].run_id).folder / "log.txt").read_text()
    (item, _) = plan_of(stages=["train"]).items
    assert item.state == "interrupted"


def test_closing_it_stops_the_workers_and_writes_it_down(
    plan_of: Callable[..., Plan], store: Store, db: str
) -> None:
    plan = plan_of(mixers=["pool"], stages=["train"], overrides=[["schedule.epochs=1000"]])
    events = pool.follow(plan.items, [Slot("cpu", 1)], store, db, retry=False, threads=1)
    for event in events:
        if isinstance(event, Told) and isinstance(event.event, Measurement):
            break
    (run,) = store.runs()
    assert run.state == "running"
    events.close()
    assert not psutil.pid_exists(run.pid)
    assert (store.run(run.id).state, store.run(run.id).reason) == ("interrupted", "stopped by the user")


@pytest.mark.parametrize("end", ["stdin", "stdout"])
def test_a_worker_whose_parent_is_gone_ends_without_a_word(
    plan_of: Callable[..., Plan], store: Store, db: str, end: str
) -> None:
    plan = plan_of(mixers=["pool"], stages=["train"], overrides=[["schedule.epochs=1000"]])
    command = [sys.executable, "-P", "-c", pool._MAIN]
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    ) as process:
        assert process.stdin
        assert process.stdout
        pickle.dump(plan.items[0].task(db), process.stdin)
        process.stdin.flush()
        while not isinstance(pickle.load(process.stdout), Measurement):
            pass
        getattr(process, end).close()  # as the parent's death does to both, in no order
        assert process.wait(60) == 1
    (run,) = store.runs()
    assert (run.state, "is gone" in run.reason) == ("interrupted", True)


def test_a_worker_that_cannot_even_begin_says_why(
    plan_of: Callable[..., Plan], store: Store, db: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "_MAIN", "raise SystemExit('no torch here')")
    items: list[Item] = [plan_of().items[0]]
    (event,) = pool.follow(items, [Slot("cpu", 1)], store, db, retry=False, threads=1)
    assert isinstance(event, Ended)
    assert event.outcome == Outcome("failed", "", "its process ended with code 1\nno torch here")
