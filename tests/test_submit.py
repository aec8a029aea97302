"""Runs as jobs: what each node starts, and that a job which is stopped is queued again and goes on."""

import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from stmbench import submit
from stmbench.store import open_store

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="submitit is for Unix")

# Stands for a run: stopped, it leaves a checkpoint, and goes on from there when it is started again.
RUN = """
import os, pathlib, signal, sys
here = pathlib.Path()
if (here / "checkpoint").exists():
    (here / "done").write_text(str(os.getpid()))
    sys.exit()
def stop(*_):
    (here / "checkpoint").touch()
    sys.exit(130)
signal.signal(signal.SIGTERM, stop)
(here / "pid.new").write_text(str(os.getpid()))
(here / "pid.new").rename("pid")
while True:
    signal.pause()
"""


def until(happened: Callable[[], Any], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.05)


def local(job: submit.Training, folder: Path) -> Any:
    """The job as a process of this machine, started as Slurm would start it."""
    asked = submit.options({"time": 60, "cluster": "local"}, nodes=1, gpus=0)
    return submit.submit(job, asked, str(folder / "results.db"))


def test_a_job_is_warned_lets_its_run_end_and_is_queued_again(tmp_path: Path) -> None:
    queued = local(submit.Training(words=("-c", RUN), folder=str(tmp_path)), tmp_path)
    until((tmp_path / "pid").exists)
    run = psutil.Process(int((tmp_path / "pid").read_text()))
    task = run.parent()
    assert task is not None
    run.send_signal(signal.SIGUSR2)  # Slurm warns all of a job, and who is deaf to it lives on
    task.send_signal(signal.SIGTERM)  # as Slurm does before it preempts
    until((tmp_path / "checkpoint").exists)
    run.wait()
    with pytest.raises(psutil.TimeoutExpired):  # whether the job was cancelled is not known yet
        task.wait(4 * submit.POLL_S)
    task.send_signal(signal.SIGUSR2)
    until((tmp_path / "done").exists)
    assert queued.result() is None
    assert (tmp_path / "done").read_text() != str(run.pid)
    assert "preempted" in queued.stderr()


def test_a_run_that_fails_fails_its_job(tmp_path: Path) -> None:
    words = ("-c", "import sys; print('no such thing'); sys.exit(3)")
    queued = local(submit.Training(words=words, folder=str(tmp_path)), tmp_path)
    with pytest.raises(Exception, match=r"`stmbench run` ended with exit code 3"):
        queued.result()
    assert queued.paths.stdout.parent.parent == tmp_path / "jobs"
    assert "no such thing" in queued.stdout()


def test_one_process_needs_no_torchrun_and_the_processes_of_a_node_need_no_address() -> None:
    alone = submit.training(["--mixer", "pool"], nodes=1, gpus=1)
    words = ["-m", "stmbench", "run", "--mixer", "pool", "--resume"]
    assert alone.command() == [sys.executable, *words]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "8"]
    eight = submit.training(["--mixer", "pool"], nodes=1, gpus=8)
    assert eight.command() == [sys.executable, *torchrun, *words]


def test_all_nodes_meet_at_the_first_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "SUBMITIT_EXECUTOR": "slurm",
        "SLURM_JOB_ID": "1234567",
        "SLURM_JOB_NODELIST": "gpu[07-08]",
        "SLURM_NODEID": "1",
        "SLURM_PROCID": "1",
    }.items():
        monkeypatch.setenv(name, value)
    command = submit.training([], nodes=2, gpus=4).command()
    meet = ["--rdzv-backend", "c10d", "--rdzv-endpoint", "gpu07:34567", "--rdzv-id", "1234567"]
    assert command[1:-4] == [
        "-m",
        "torch.distributed.run",
        "--nnodes",
        "2",
        *meet,
        "--nproc-per-node",
        "4",
    ]


def test_slurm_is_asked_for_what_was_given() -> None:
    given = {"time": 90, "cpus": 16, "memory_gb": 64, "partition": "gpu", "signal_delay_s": 300}
    job = submit.training(["--mixer", "pool"], nodes=2, gpus=8)
    text = submit.script(job, submit.options(given, nodes=2, gpus=8), "runs/stmbench.db")
    for line in (
        "--nodes=2",
        "--ntasks-per-node=1",
        "--gpus-per-node=8",
        "--cpus-per-task=16",
        "--mem=64GB",
        "--time=90",
        "--partition=gpu",
        "--signal=USR2@300",
        "--requeue",
        f"--output={Path.cwd()}/runs/jobs/%j/%j_0_log.out",
    ):
        assert f"#SBATCH {line}\n" in text
    assert "python -m torch.distributed.run --nnodes 2 ... --nproc-per-node 8 -m stmbench run" in text


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_a_run_is_preempted_and_done(
    processes: int, tmp_path: Path, tiny_recipe_file: Path, tiny_data: Path
) -> None:
    db = str(tmp_path / "results.db")
    words = ["--mixer", "pool", "--stage", "train", "--recipe", str(tiny_recipe_file)]
    words += ["--data", str(tiny_data), "--set", "schedule.epochs=20", "--device", "cpu", "--db", db]
    open_store(db).close()
    queued = local(submit.training(words, nodes=1, gpus=processes), tmp_path)
    with open_store(db, create=False) as store:
        until(lambda: store.runs() and store.measurements(store.runs()[0].id), 120)
        (run,) = store.runs()
        parents = psutil.Process(run.pid).parents()
        task = next(each for each in parents if "submitit.core._submit" in each.cmdline())
        task.send_signal(signal.SIGUSR2)
        queued.result()
        (again,) = store.runs()
        assert (again.id, again.state) == (run.id, "done")
        assert again.pid != run.pid
        losses = [m.step for m in store.measurements(run.id) if m.name == "loss"]
        assert losses == list(range(1, 21))
