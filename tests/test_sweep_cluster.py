"""Runs on clusters: watched through the database, submitted once, handed to schedulers as the file says."""

import os
import pickle
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sweep_files import new_run_of, write_sweep

from stmbench.record import Measurement
from stmbench.runner import StageDone
from stmbench.store import Store, open_store
from stmbench.sweep import Ended, Outcome, Plan, Started, Sweep, Told, cluster, load, planned, rays, slurm
from stmbench.sweep.work import Task, work

Planner = Callable[..., tuple[Sweep, Plan]]


@pytest.fixture
def db(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(cluster, "POLL_S", 0.2)
    return str(tmp_path / "results.db")


@pytest.fixture
def store(db: str) -> Iterator[Store]:
    with open_store(db) as store:
        yield store


@pytest.fixture
def plan_of(tmp_path: Path, tiny_recipe_file: Path, tiny_data: Path, store: Store) -> Planner:
    def made(**values: Any) -> tuple[Sweep, Plan]:
        values = {"mixers": ["pool"], "stages": ["build"]} | values
        sweep = load(str(write_sweep(tmp_path, tiny_recipe_file, tiny_data, **values)))
        return sweep, planned(sweep, store, elsewhere=True)

    return made


def ended(events: Iterator[Told | Ended]) -> dict[int, Outcome]:
    return {event.task: event.outcome for event in events if isinstance(event, Ended)}


def test_what_happens_elsewhere_is_told_once_and_in_order(plan_of: Planner, store: Store) -> None:
    _, plan = plan_of(stages=["build", "train"], mixers=["pool", "dwconv"])
    old = store.create_run(new_run_of(plan.items[0]))
    store.start_stage(old.id, "build")
    store.record(old.id, Measurement("build", "parameters", 5.0))
    store.end_stage(old.id, "build")
    store.end_run(old.id, "interrupted")
    _, plan = plan_of(stages=["build", "train"], mixers=["pool", "dwconv"])
    answers: list[Outcome | None] = [None, None, Outcome("done", old.id)]
    steps = [
        lambda: store.reopen(old.id),
        lambda: (
            store.start_stage(old.id, "train"),
            store.record(old.id, Measurement("train", "seconds", 2.0, step=1)),
            store.record(old.id, Measurement("train", "top1", 50.0, condition="weights=plain", step=1)),
            store.end_stage(old.id, "train"),
        ),
    ]
    events = list(cluster.watch(plan.items, {0: lambda: answers.pop(0)}, store, lambda _: steps.pop(0)()))
    assert [event.event for event in events if isinstance(event, Told)] == [
        Started(old.id, old.folder),
        Measurement("train", "top1", 50.0, condition="weights=plain", step=1),
        Measurement("train", "seconds", 2.0, step=1),
        StageDone("train", events[-2].event.seconds),  # pyright: ignore
    ]
    assert events[-1] == Ended(0, Outcome("done", old.id))


# Slurm


class QueuedJob:
    """What submitit gives for a job that waits."""

    def done(self, force_check: bool = False) -> bool:
        return not force_check  # it waits when it is asked first, and has ended when it is watched

    def result(self) -> Outcome:
        return Outcome("done", "the queued one")


def test_what_is_queued_already_is_not_submitted_again(
    plan_of: Planner, store: Store, db: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep, plan = plan_of(mixers=["pool", "dwconv"], slurm={"time": 5})
    folder = store.folder / "sweeps" / "sweep"
    folder.mkdir(parents=True)
    file = folder / f"{plan.items[0].fingerprint[:16]}.job"
    file.write_bytes(pickle.dumps(QueuedJob()))
    (folder / f"{plan.items[1].fingerprint[:16]}.job").write_bytes(file.read_bytes()[:9])  # half written
    submitted: list[Task] = []

    class Executor:
        def map_array(self, function: Any, tasks: list[Task]) -> list[QueuedJob]:
            submitted.extend(tasks)
            return [QueuedJob() for _ in tasks]

    monkeypatch.setattr(slurm, "_executor", lambda *_: Executor())
    found = ended(slurm.follow(plan.items, sweep, store, db, retry=False, jobs=None))
    assert [task.asked["mixer"] for task in submitted] == ["dwconv"]
    assert found == {i: Outcome("done", "the queued one") for i in (0, 1)}
    assert not list(folder.glob("*.job"))


@pytest.fixture
def fake_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Slurm's commands as far as submitit needs them: jobs are queued, numbered, and never run."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, text in {
        "srun": "exit 1",
        "sbatch": f"cp $1 {folder}/submitted.sh; echo x >> {folder}/count; echo Submitted batch job 42",
        "sacct": f"echo 'JobID|State|NodeList'; echo \"42|$(cat {folder}/state)|\"",
    }.items():
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)
    (folder / "state").write_text("PENDING")
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return folder


@pytest.mark.skipif(sys.platform == "win32", reason="the commands are shell scripts")
def test_a_job_asks_slurm_for_what_the_file_says_and_is_found_again(
    plan_of: Planner, store: Store, db: str, fake_slurm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from submitit.core.core import Job

    section = {"time": 90, "gpus": 1, "cpus": 6, "memory_gb": 32, "partition": "short", "qos": "low"}
    sweep, plan = plan_of(slurm=section)

    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(slurm.time, "sleep", interrupt)
    for _ in range(2):  # submitted, left alone, and watched again
        with pytest.raises(KeyboardInterrupt):
            ended(slurm.follow(plan.items, sweep, store, db, retry=False, jobs=None))
    asked = (fake_slurm / "submitted.sh").read_text()
    for line in (
        "--job-name=stmbench-sweep",
        "--time=90",
        "--gpus-per-node=1",
        "--cpus-per-task=6",
        "--mem=32GB",
        "--partition=short",
        "--qos=low",
    ):
        assert f"#SBATCH {line}\n" in asked
    assert (fake_slurm / "count").read_text() == "x\n"

    (fake_slurm / "state").write_text("CANCELLED")
    monkeypatch.setattr(Job, "_results_timeout_s", 0)
    monkeypatch.setattr(slurm, "_queued", lambda file: pickle.loads(file.read_bytes()))
    slurm_job = pickle.loads(next((store.folder / "sweeps" / "sweep").glob("*.job")).read_bytes())
    assert slurm_job.done(force_check=True)
    found = ended(slurm.follow(plan.items, sweep, store, db, retry=False, jobs=None))
    assert found[0].state == "failed"
    assert "job 42" in found[0].reason


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="submitit is for Unix")
def test_jobs_of_submitit_make_the_runs(plan_of: Planner, store: Store, db: str) -> None:
    sweep, plan = plan_of(slurm={"cluster": "local", "time": 5}, seeds=[0, 1])
    found = ended(slurm.follow(plan.items, sweep, store, db, retry=False, jobs=None))
    assert {outcome.state for outcome in found.values()} == {"done"}
    assert {(run.seed, run.state) for run in store.runs()} == {(0, "done"), (1, "done")}
    assert all(run.pid != os.getpid() for run in store.runs())
    assert plan_of(seeds=[0, 1])[1].to_run(retry=False) == []


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="submitit is for Unix")
def test_a_job_that_is_preempted_is_queued_again_and_goes_on(plan_of: Planner, store: Store, db: str) -> None:
    section = {"cluster": "local", "time": 60}
    sweep, plan = plan_of(stages=["train"], overrides=[["schedule.epochs=20"]], slurm=section)
    pids = set()
    outcome = None
    for event in slurm.follow(plan.items, sweep, store, db, retry=False, jobs=None):
        if isinstance(event, Told) and isinstance(event.event, Measurement) and not pids:
            (run,) = store.runs()
            os.kill(run.pid, signal.SIGUSR2)  # as Slurm does before it takes the machine away
            pids.add(run.pid)
        outcome = event
    (run,) = store.runs()
    assert outcome == Ended(0, Outcome("done", run.id))
    assert pids
    assert run.pid not in pids
    assert [m.step for m in store.measurements(run.id) if m.name == "loss"] == list(range(1, 21))


# Ray


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Ray's own
def test_tasks_of_ray_make_the_runs(plan_of: Planner, store: Store, db: str) -> None:
    sweep, plan = plan_of(mixers=["pool", "dwconv"], seeds=[0, 1], ray={"cpus": 1})
    found = ended(rays.follow(plan.items, sweep, store, db, retry=False))
    assert {outcome.state for outcome in found.values()} == {"done"}
    runs = store.runs()
    assert len(runs) == len({run.pid for run in runs}) == 4  # each in a fresh process
    assert {(run.state, run.threads) for run in runs} == {("done", 1)}
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Ray's own
def test_a_ray_worker_that_dies_takes_its_run_alone(
    plan_of: Planner, store: Store, db: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep, plan = plan_of(seeds=[0, 1], ray={"cpus": 1})

    def dies(task: Task) -> Outcome:
        return work(task) if task.asked["seed"] else os._exit(1)  # pyright: ignore

    monkeypatch.setattr(rays, "work", dies)
    found = ended(rays.follow(plan.items, sweep, store, db, retry=False))
    assert {i: outcome.state for i, outcome in found.items()} == {0: "failed", 1: "done"}
    assert "died" in found[0].reason.lower()
