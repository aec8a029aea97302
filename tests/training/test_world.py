"""Several processes that train together, as torchrun starts them: on CPUs, over gloo."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from stmbench import world
from stmbench.store import Store, open_store

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(tmp_path: Path, tiny_data: Path, tiny_recipe_file: Path) -> Start:
    """Start ``stmbench run`` of the tiny recipe, in some processes, with its own database."""

    def started(
        name: str, *options: str, processes: int = 1, under: tuple[str, ...] = ()
    ) -> "subprocess.Popen[str]":
        command = [
            *(sys.executable, *(under or ("-m", "stmbench")), "run"),
            *("--recipe", str(tiny_recipe_file), "--data", str(tiny_data), "--device", "cpu"),
            *("--stage", "train,eval", "--db", str(tmp_path / name / "results.db")),
            *(() if processes == 1 else ("--gpus", str(processes))),
            *options,
        ]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "200"}
        return subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
        )

    return started


def finish(process: "subprocess.Popen[str]", code: int = 0) -> str:
    said, _ = process.communicate(timeout=300)
    assert process.returncode == code, said
    return said


def results(tmp_path: Path, name: str) -> Store:
    return open_store(str(tmp_path / name / "results.db"), create=False)


def only_run(store: Store) -> Path:
    (run,) = store.runs()
    return run.folder


def numbers(store: Store) -> dict[tuple[str, str, str, int], float]:
    return {(m.stage, m.name, m.condition, m.step): m.value for m in store.measurements(store.runs()[0].id)}


def closest(one: Path, other: Path, most: float) -> None:
    first, second = load_file(one), load_file(other)
    assert first.keys() == second.keys()
    for name, value in first.items():
        atol = 10 * most if "running" in name else most  # statistics are no weights
        torch.testing.assert_close(
            second[name], value, atol=atol, rtol=0, msg=lambda text, name=name: f"{name}: {text}"
        )


# Augmentation of each image alone: what is drawn per micro-batch follows its number.
PARTS = ("--set", "train.ema_decay=0.9", "--set", "optimizer.name=sgd", "--set", "optimizer.lr=0.01")


def test_two_processes_train_the_weights_of_one(tmp_path: Path, start: Start) -> None:
    """Two with batches of 4, twice, are one with batches of 8, twice, in all that is computed."""
    one = start("one", *PARTS, "--set", "train.device_batch_size=8")
    finish(one)
    said = finish(start("two", *PARTS, "--set", "train.device_batch_size=4", processes=2))
    assert "2 processes of 4 images, 2 passes: 16 images an update." in said
    assert said.count("Next: `stmbench leaderboard") == 1  # only the first process speaks
    with results(tmp_path, "one") as alone, results(tmp_path, "two") as together:
        for kind in ("plain", "ema"):
            closest(only_run(alone) / f"{kind}.safetensors", only_run(together) / f"{kind}.safetensors", 1e-6)
            files = [np.load(only_run(store) / f"predictions_{kind}.npz") for store in (alone, together)]
            assert np.array_equal(files[0]["labels"], files[1]["labels"])  # each image once, in its order
            assert np.array_equal(files[0]["top5"], files[1]["top5"])
        wanted, found = numbers(alone), numbers(together)
        assert wanted.keys() == found.keys()
        for key in wanted:
            if key[1] in ("loss", "lr", "top1", "val_loss", "images"):
                assert found[key] == pytest.approx(wanted[key], abs=1e-5), key
        setting = {name: value for (_, name, _, step), value in found.items() if not step}
        assert (setting["processes"], setting["device_batch"], setting["accumulation"]) == (2, 4, 2)
        assert setting["norm_batch"] == 8
        assert setting["images"] == 20  # an odd share of them each


@pytest.mark.parametrize("victim", [1, pytest.param(0, marks=pytest.mark.slow)])
def test_killing_any_process_ends_the_run_and_the_same_command_goes_on(
    tmp_path: Path, start: Start, victim: int
) -> None:
    options = ("--resume", "--set", "schedule.epochs=3", "--set", "train.ema_decay=0.9")
    finish(start("straight", *options, processes=2))
    name = "killed"
    process = start(name, *options, processes=2)
    folder = tmp_path / name
    while not list(folder.glob("*/checkpoint.pt")):  # after the first epoch
        assert process.poll() is None
    os.kill(_worker(process.pid, victim), signal.SIGKILL)
    said, _ = process.communicate(timeout=300)
    assert process.returncode > 0, said
    with results(tmp_path, name) as store:
        assert store.runs()[0].state in ("interrupted", "running")
    said = finish(start(name, *options, processes=2))
    assert "Resuming after epoch" in said
    with results(tmp_path, "straight") as straight, results(tmp_path, name) as again:
        assert again.runs()[0].state == "done"
        closest(only_run(straight) / "ema.safetensors", only_run(again) / "ema.safetensors", 0)
        wanted, found = numbers(straight), numbers(again)
        for key in wanted:
            if key[1] in ("loss", "lr", "top1", "val_loss"):
                assert found[key] == wanted[key], key
    assert "is done already" in finish(start(name, *options, processes=2))


def _worker(launcher: int, rank: int) -> int:
    """The process id of one of the launcher's processes."""
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            environment = path.read_bytes().split(b"\0")
            parent = (path.parent / "stat").read_text().rpartition(")")[2].split()[1]
        except OSError:
            continue
        if int(parent) == launcher and f"RANK={rank}".encode() in environment:
            return int(path.parent.name)
    raise AssertionError(f"no process with rank {rank}")


def test_a_run_under_torchrun_that_is_asked_to_stop_writes_a_checkpoint(tmp_path: Path, start: Start) -> None:
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "stmbench")
    options = ("--resume", "--set", "schedule.epochs=200", "--set", "train.batch_size=4")
    process = start("stopped", *options, under=torchrun)
    while not list((tmp_path / "stopped").glob("*/checkpoint.pt")):
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=300)
    assert process.returncode != 0
    assert "Stopped." in said
    with results(tmp_path, "stopped") as store:
        (run,) = store.runs()
        assert run.state == "interrupted"
        assert "asked to stop" in run.reason
        state = torch.load(run.folder / "checkpoint.pt", weights_only=True)
        assert f"{state['update']} updates into epoch {state['epoch'] + 1}" in run.reason


def test_mistakes_are_one_line_and_end_all(tmp_path: Path, start: Start) -> None:
    said = finish(start("wrong", "--set", "train.batch_size=15", processes=2), code=2)
    assert said.count("Error:") == 1
    assert "15 images cannot be dealt out to 2 processes" in said
    assert "Traceback" not in said


def test_alone_everything_means_what_it_says() -> None:
    assert (world.rank(), world.size(), world.is_main(), world.launched(), world.follows()) == (
        0,
        1,
        True,
        False,
        False,
    )
    assert world.gather("word") == ["word"]
    assert world.tell(json.dumps({})) == "{}"
    assert world.any_of(True)
    assert not world.any_of(False)
    assert torch.equal(world.total(torch.ones(2)), torch.ones(2))
    assert world.place("cuda") == "cuda"
    world.barrier()
    with world.joined("cpu"):
        assert world.size() == 1


@pytest.mark.parametrize(
    ("codes", "wanted"), [({0: 2, 1: -15}, 2), ({0: -15, 1: 1}, 1), ({0: 130, 1: 130}, 130), ({0: -15}, 1)]
)
def test_the_exit_code_is_that_of_the_process_that_spoke(codes: dict[int, int], wanted: int) -> None:
    assert world._exit_code(codes) == wanted


def test_a_process_that_was_killed_is_named() -> None:
    with pytest.raises(RuntimeError, match=r"Process 1 was killed \(SIGKILL\).*stmbench resume"):
        world._exit_code({0: -15, 1: -9})


def test_what_was_typed_is_what_processes_say_they_come_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STMBENCH_COMMAND", raising=False)
    assert world.command() is sys.argv
    monkeypatch.setenv("STMBENCH_COMMAND", '["stmbench", "run", "--gpus", "2"]')
    assert world.command() == ["stmbench", "run", "--gpus", "2"]
