"""`stmbench sweep` as a user meets it: the plan, mistakes, failures, and being killed at any point."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file
from sweep_files import new_run_of, write_sweep

from stmbench.store import RunRecord, Store, open_store
from stmbench.sweep import load, planned

Sweep = Callable[..., tuple[int, str, str]]
STMBENCH = [sys.executable, "-c", "from stmbench.cli import main; main()"]


@pytest.fixture
def sweep(
    invoke: Callable[..., tuple[int, str, str]], tmp_path: Path, tiny_data: Path, tiny_recipe_file: Path
) -> Sweep:
    """Call `stmbench sweep` with a file of these values in an empty folder.

    Returns the exit code and what went to stdout and stderr.
    """

    def call(*arguments: str, **values: Any) -> tuple[int, str, str]:
        path = write_sweep(tmp_path, tiny_recipe_file, tiny_data, **values)
        return invoke("sweep", str(path), *arguments)

    return call


def results(folder: Path) -> Store:
    return open_store(str(folder / "runs/stmbench.db"), create=False)


def test_a_dry_run_shows_the_plan_and_stores_nothing(sweep: Sweep, tmp_path: Path) -> None:
    code, out, err = sweep("--dry-run", seeds=[0, 1, 2, 5], overrides=[[], ["optimizer.lr=1e-3"]])
    assert (code, err) == (0, "")
    assert "Sweep sweep: 16 runs, build → train → eval on cpu" in out
    assert "optimizer.lr=1e-3" in out
    assert "0\N{EN DASH}2, 5" in out
    assert "4 new" in out
    assert "To do: 16 runs; 16 of unknown length." in out
    assert not (tmp_path / "runs").exists()


def test_a_sweep_is_run_ranked_and_then_there_is_nothing_to_do(sweep: Sweep, tmp_path: Path) -> None:
    code, out, err = sweep("--jobs", "2")
    assert (code, err) == (0, "")
    assert "2 of 2 runs are done." in out
    assert "dwconv micro by recipe" in out
    assert "epoch 2" in out
    assert "Next: `stmbench leaderboard` ranks all runs" in out
    with results(tmp_path) as store:
        assert {(run.mixer, run.state) for run in store.runs()} == {("dwconv", "done"), ("pool", "done")}
    code, out, _ = sweep()
    assert (code, out.splitlines()[-1]) == (0, "Nothing to do: 2 of 2 runs are done.")
    code, out, _ = sweep("--dry-run", "--jobs", "2", seeds=[0, 1])
    assert "1 done, 1 new" in out
    assert "same runs" in out
    assert "To do: 2 runs" in out
    assert "of work" in out
    assert "by 2 at once." in out


def test_what_failed_before_is_reported_and_taken_up_when_asked_for(
    sweep: Sweep, tmp_path: Path, tiny_data: Path, tiny_recipe_file: Path
) -> None:
    values = {"mixers": ["pool"], "stages": ["build"]}
    path = write_sweep(tmp_path, tiny_recipe_file, tiny_data, **values)
    with open_store(str(tmp_path / "runs/stmbench.db")) as store:
        run = store.create_run(new_run_of(planned(load(str(path)), store).items[0]))
        store.end_run(run.id, "failed", "the sky fell")
    code, out, _ = sweep(**values)
    assert code == 1
    assert f"{run.id} failed before: the sky fell" in out
    assert "`--retry-failed` takes up what failed before." in out
    assert "0 of 1 runs are done; 1 failed." in out
    code, out, _ = sweep("--retry-failed", "--dry-run", **values)
    assert (code, "To do: 1 run" in out) == (0, True)


@pytest.mark.slow
def test_a_failure_does_not_keep_the_rest_from_running(sweep: Sweep, tmp_path: Path) -> None:
    code, out, _ = sweep(overrides=[["optimizer.lr=1e30"], []], mixers=["pool"], stages=["train"])
    assert code == 1
    assert "failed  DivergedError: The loss became" in out
    assert "1 of 2 runs are done; 1 failed." in out
    with results(tmp_path) as store:
        (failed,) = store.runs(state="failed")
        assert "DivergedError" in (failed.folder / "log.txt").read_text()


MISTAKES = [
    (["--gpus", "2"], {}, "No cuda device here."),
    (
        ["--executor", "slurm"],
        {"device": "auto", "slurm": {"cluster": "local", "time": 9}},
        "give --device cuda or cpu.",
    ),
    (["--executor", "slurm"], {}, "[slurm] needs time = MINUTES"),
    (["--executor", "slurm"], {"slurm": {"cluster": "local", "time": 9, "partitoin": "a"}}, "'partitoin'"),
    (["--executor", "ray"], {"ray": {"cpu": 1}}, "[ray]: Unknown key 'cpu'. Did you mean 'cpus'?"),
    ([], {"data": "nowhere/at/all"}, "No data at nowhere/at/all."),
    ([], {"scales": ["huge"]}, "Unknown scale of dwconv 'huge'"),
    ([], {"mixer": ["halo"]}, "Unknown key 'mixer'. Did you mean 'mixers'?"),
]


@pytest.mark.parametrize(("arguments", "values", "line"), MISTAKES, ids=[line for *_, line in MISTAKES])
def test_a_mistake_ends_in_one_line_and_exit_code_2(
    sweep: Sweep, arguments: list[str], values: dict[str, Any], line: str, tmp_path: Path
) -> None:
    code, _, err = sweep(*arguments, **values)
    assert code == 2
    assert line in err.splitlines()[-1]
    assert all(text.startswith("Warning") for text in err.splitlines()[:-1])
    assert not (tmp_path / "runs").exists()


# Killed and started again


def signalled_at(
    command: list[str], folder: Path, environment: dict[str, str], reached: str, what: signal.Signals
) -> tuple[int, str]:
    """Run the sweep and send it, but not its workers, a signal when a line says that something is reached.

    Returns its exit code and what it says from there on.
    """
    process = subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    with process.stdout:
        if not any(reached in line for line in process.stdout):
            pytest.fail(f"it never came to {reached!r}")
        process.send_signal(what)
        rest = process.stdout.read()
    return process.wait(), rest


def outcomes(folder: Path) -> dict[tuple[str, int], tuple[RunRecord, float, dict[str, torch.Tensor]]]:
    """The run of each network and seed, with its top-1 and its weights."""
    found = {}
    with results(folder) as store:
        for run in store.runs():
            assert (run.mixer, run.seed) not in found, "made twice"
            assert run.state == "done"
            (top1,) = [m.value for m in store.measurements(run.id) if (m.stage, m.name) == ("eval", "top1")]
            found[run.mixer, run.seed] = run, top1, load_file(run.folder / "plain.safetensors")
    return found


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
def test_a_sweep_killed_three_times_ends_as_one_never_interrupted(
    tiny_data: Path, tiny_recipe_file: Path, tmp_path: Path
) -> None:
    changes = ["schedule.epochs=3", "augment.mixup=0.5"]
    path = write_sweep(tmp_path, tiny_recipe_file, tiny_data, seeds=[0, 1], overrides=[changes])
    command = [*STMBENCH, "sweep", str(path)]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"}
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    for folder in (straight, killed):
        folder.mkdir()
    subprocess.run(command, cwd=straight, env=environment, check=True, capture_output=True)

    workers = set()
    for event in ("by recipe", "epoch 2", "done  1 of"):
        code, _ = signalled_at([*command, "--jobs", "2"], killed, environment, event, signal.SIGKILL)
        assert code == -signal.SIGKILL
        with results(killed) as store:
            workers |= {run.pid for run in store.runs()}
    last = subprocess.run(
        [*command, "--jobs", "2"], cwd=killed, env=environment, check=True, capture_output=True, text=True
    )
    assert "4 of 4 runs are done" in last.stdout

    one, other = outcomes(straight), outcomes(killed)
    assert one.keys() == other.keys() == {(mixer, seed) for mixer in ("dwconv", "pool") for seed in (0, 1)}
    for key, (run, top1, weights) in one.items():
        run_killed, top1_killed, weights_killed = other[key]
        assert (run.fingerprint, run.threads, top1) == (run_killed.fingerprint, 1, top1_killed)
        assert all(torch.equal(value, weights_killed[name]) for name, value in weights.items())
    assert not any(psutil.pid_exists(pid) for pid in workers)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGTERM that can be caught")
def test_a_terminated_sweep_writes_its_runs_down_and_goes_on(
    tiny_data: Path, tiny_recipe_file: Path, tmp_path: Path
) -> None:
    path = write_sweep(tmp_path, tiny_recipe_file, tiny_data, overrides=[["schedule.epochs=30"]])
    command = [*STMBENCH, "sweep", str(path), "--jobs", "2"]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"}
    code, rest = signalled_at(command, tmp_path, environment, "epoch 1", signal.SIGTERM)
    assert code == 130
    assert "0 of 2 runs are done" in rest
    assert "Stopped. The same command goes on from here." in rest
    with results(tmp_path) as store:
        for run in store.runs():
            assert (run.state, run.reason) == ("interrupted", "stopped by the user")
            assert not psutil.pid_exists(run.pid)
