"""The command line as a user meets it: runs, mistakes, interruptions."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file

from stmbench import cli
from stmbench.nn import create_model
from stmbench.nn.weights import save_weights
from stmbench.reading.tables import NONE
from stmbench.record import Event
from stmbench.store import open_store

Invoke = Callable[..., tuple[int, str, str]]


def test_a_run_ends_in_the_leaderboard(invoke: Invoke, tmp_path: Path) -> None:
    code, out, err = invoke("run", "--mixer", "dwconv,swin", "--stage", "eval,build,train")
    assert (code, err) == (0, "")
    assert out.count("epoch 2") == 2
    assert "Next: `stmbench leaderboard`" in out
    with open_store(str(tmp_path / "runs/stmbench.db"), create=False) as store:
        runs = store.runs()
        assert {run.mixer for run in runs} == {"dwconv", "swin"}
        assert all(run.state == "done" for run in runs)
        assert [stage.name for stage in store.stages(runs[0].id)] == ["build", "train", "eval"]
        assert {p.name for p in runs[0].folder.iterdir()} == {
            "best.safetensors",
            "checkpoint.before.pt",
            "checkpoint.pt",
            "plain.safetensors",
            "predictions_plain.npz",
        }
    code, out, _ = invoke("leaderboard")
    assert code == 0
    assert "dwconv" in out
    assert "swin" in out


def test_a_dry_run_shows_the_plan_and_stores_nothing(invoke: Invoke, tmp_path: Path) -> None:
    code, out, _ = invoke("run", "--mixer", "all", "--dry-run", "--set", "optimizer.lr=0.5")
    assert code == 0
    assert "lr=0.5" in out
    assert "48 training and 20 validation images, 4 classes" in out
    assert "build → train → eval → profile on cpu" in out
    assert not (tmp_path / "runs").exists()


MISTAKES = [
    (["--mixer", "hallo"], "Unknown mixer 'hallo'. Did you mean 'halo'?"),
    (["--scale", "tinny"], "Unknown scale of halo 'tinny'. Did you mean 'tiny'?"),
    (["--stage", "trian"], "Unknown stage 'trian'. Did you mean 'train'?"),
    (["--recipe", "quik"], "Unknown recipe 'quik'. Did you mean 'quick'?"),
    (["--recipe", "absent.toml"], "No recipe file at absent.toml."),
    (["--set", "optimizer.lrr=1"], "Unknown key 'optimizer.lrr'. Did you mean 'optimizer.lr'?"),
    (["--set", "optimizer.lr=fast"], "optimizer.lr must be a number, not 'fast'."),
    (["--set", "optimizer.name=adamx"], "Unknown optimizer 'adamx'."),
    (["--set", "schedule.name=cosin"], "'cosine', 'tanh', 'poly', 'multistep', not 'cosin'."),
    (["--set", "optimizer.lr=-1"], "optimizer.lr must be at least 0, not -1.0."),
    (["--set", "optimizer.lr=nan"], "optimizer.lr must be finite"),
    (["--set", "optimizer.name=adan"], "optimizer 'adan' cannot be used with this recipe"),
    (["--set", "model.drop_path=2"], "model.drop_path must be from 0 to 1, not 2.0."),
    (["--set", "data.std=[0]"], "data.std must be above 0"),
    (["--set", "stages=[]"], "there are no stages"),
    (["--db", "."], "is a folder: give --db a file in it."),
    (["--set", "lr"], "--set takes section.key=value, not 'lr'."),
    (["--device", "gpu"], "Unknown device 'gpu'."),
    (["--data", "nowhere/at/all"], "No data at nowhere/at/all."),
    (["--weights", "absent.pth"], "absent.pth."),
    (["--model", "timm:test_resne"], "Unknown timm model 'test_resne'. Did you mean 'timm:test_resnet'?"),
    (["--model", "timm:hf-hub:timm/resnet18"], "would be downloaded"),
    (["--model", "timm:test_vit"], "timm:test_vit does not take 28x28 images of 1 channel"),
    (["--model", "timm:test_resnet", "--scale", "tiny"], "--scale is of the mixers' backbone"),
    (["--model", "timm:test_resnet", "--stage", "eval"], "Nothing to evaluate"),
    (["--mixer", "pool", "--backend", "fast"], "Unknown backend of pool 'fast'. Known: plain."),
    (["--model", "timm:test_resnet", "--backend", "plain"], "timm:test_resnet has no backends to choose"),
    (["--mixer", ","], "--mixer, --model and --stage take names"),
    (["--stage", "eval"], "Nothing to evaluate"),
]


@pytest.mark.parametrize(("arguments", "line"), MISTAKES, ids=[line for _, line in MISTAKES])
def test_a_mistake_ends_in_one_line_and_exit_code_2(
    invoke: Invoke, arguments: list[str], line: str, tmp_path: Path
) -> None:
    code, _, err = invoke("run", *arguments)
    assert code == 2
    assert line in err
    assert len(err.strip().splitlines()) == 1
    assert not (tmp_path / "runs").exists()


def test_a_model_of_timm_is_run_and_ranked_beside_a_mixer(invoke: Invoke, tmp_path: Path) -> None:
    given = ("--mixer", "dwconv", "--model", "timm:test_resnet", "--stage", "build,train,eval")
    code, out, err = invoke("run", *given, "--set", "schedule.epochs=1")
    assert (code, err) == (0, "")
    with open_store(str(tmp_path / "runs/stmbench.db"), create=False) as store:
        (run,) = store.runs(mixer="timm:test_resnet")
        assert re.fullmatch(r"timm-test_resnet-[0-9a-f]{8}", run.id)
        assert run.folder.name == run.id
        assert [stage.name for stage in store.stages(run.id)] == ["build", "train", "eval"]
        assert {stage.state for stage in store.stages(run.id)} == {"done"}
        found = {m.name: m.value for m in store.measurements(run.id)}
        model = timm.create_model("test_resnet", num_classes=4, in_chans=1)
        assert found["parameters"] == sum(parameter.numel() for parameter in model.parameters())
        assert found["macs"] > 1e6
    assert "timm:test_resnet, recipe tiny" in out
    _, out, _ = invoke("leaderboard", "--format", "csv")
    assert [line.count(",timm:test_resnet,,") for line in out.splitlines()].count(1) == 1
    assert "dwconv" in out
    _, out, _ = invoke("leaderboard", "--mixer", "timm:test_resnet", "--format", "markdown")
    assert f"| timm:test_resnet | {NONE} |" in out
    assert "dwconv" not in out
    assert run.id in invoke("runs", "--mixer", "timm:test_resnet")[1]
    assert re.search(r"network\s+timm:test_resnet\s*\n", invoke("show", run.id)[1])


@pytest.mark.slow
def test_a_model_of_timm_is_profiled(invoke: Invoke, tmp_path: Path) -> None:
    code, _, err = invoke("run", "--model", "timm:test_resnet", "--stage", "profile")
    assert (code, err) == (0, "")
    with open_store(str(tmp_path / "runs/stmbench.db"), create=False) as store:
        names = {m.name for m in store.measurements(store.runs()[0].id)}
    assert {"latency", "throughput", "train_step"} <= names
    assert "mixer_cost" not in names  # there is no backbone of ours to put the identity into


def test_the_preprocessing_of_weights_is_shown_and_warned_of_once(invoke: Invoke, tmp_path: Path) -> None:
    save_weights(tmp_path / "w.safetensors", timm.create_model("test_resnet").state_dict(), {})
    tiny = (tmp_path / "tiny.toml").read_text().replace("channels = 1", "channels = 3")
    (tmp_path / "tiny.toml").write_text(tiny.replace("[0.5]", "[0.5, 0.25, 0.5]"))
    given = ("--model", "timm:test_resnet", "--weights", "w.safetensors", "--stage", "train,eval")
    code, out, err = invoke("run", *given, "--dry-run")
    assert (code, "Images prepared as the weights want: mean=[0.5, 0.5, 0.5]" in out) == (0, True)
    assert f"timm:test_resnet  {NONE}" in out
    assert err.startswith("Warning: The weights of timm:test_resnet want mean = [0.5, 0.5, 0.5], the")
    assert len(err.splitlines()) == 1
    code, out, again = invoke("run", *given)
    assert (code, again) == (0, err)
    run_id = out.split()[0]
    assert "images" in (shown := invoke("show", run_id)[1])
    assert "mean [0.5, 0.5, 0.5]" in shown


def test_broken_toml_is_named(invoke: Invoke, tmp_path: Path) -> None:
    (tmp_path / "broken.toml").write_text("[data\n")
    code, _, err = invoke("run", "--recipe", "broken.toml")
    assert code == 2
    assert "broken.toml is not valid TOML" in err


def test_weights_of_another_network_are_refused_before_a_run_is_made(invoke: Invoke, tmp_path: Path) -> None:
    other = create_model("swin", "micro", num_classes=4, in_channels=1, image_size=28)
    save_weights(tmp_path / "swin.safetensors", other.state_dict(), {})
    code, _, err = invoke("run", "--mixer", "halo", "--weights", "swin.safetensors")
    assert code == 2
    assert "holds another network" in err
    assert not (tmp_path / "runs").exists()


def test_given_weights_are_evaluated_plain_and_averaged(invoke: Invoke, tmp_path: Path) -> None:
    states = [
        create_model("dwconv", "micro", num_classes=4, in_channels=1, image_size=28).state_dict()
        for _ in "ab"
    ]
    torch.save({"model": states[0], "model_ema": states[1]}, tmp_path / "both.pth")
    code, _, err = invoke("run", "--mixer", "dwconv", "--stage", "eval", "--weights", "both.pth")
    assert (code, err) == (0, "")
    with open_store(str(tmp_path / "runs/stmbench.db"), create=False) as store:
        (run,) = store.runs()
        found = [m.condition for m in store.measurements(run.id) if m.name == "top1"]
        assert sorted(found) == ["weights=ema", "weights=plain"]
        assert len(store.artifacts(run.id)) == 2


def test_resume_refuses_what_is_no_longer_there(invoke: Invoke, tmp_path: Path) -> None:
    model = create_model("dwconv", "micro", num_classes=4, in_channels=1, image_size=28)
    save_weights(tmp_path / "given.safetensors", model.state_dict(), {})
    code, *_ = invoke("run", "--mixer", "dwconv", "--stage", "train,eval", "--weights", "given.safetensors")
    assert code == 0
    with open_store(str(tmp_path / "runs/stmbench.db")) as store:
        (run,) = store.runs()
        store.end_run(run.id, "interrupted")
    (run.folder / "plain.safetensors").unlink()
    code, _, err = invoke("resume", run.id)
    assert (code, "trained are gone" in err) == (2, True)
    save_weights(tmp_path / "given.safetensors", model.state_dict(), {"another": "file"})
    code, _, err = invoke("resume", run.id)
    assert (code, "no longer the file" in err) == (2, True)


def test_weights_of_other_classes_are_trained_before_they_are_evaluated(
    invoke: Invoke, tmp_path: Path
) -> None:
    other = create_model("dwconv", "micro", num_classes=7, in_channels=1, image_size=28)
    save_weights(tmp_path / "seven.safetensors", other.state_dict(), {})
    given = ("--mixer", "dwconv", "--weights", "seven.safetensors")
    code, _, err = invoke("run", *given, "--stage", "eval")
    assert (code, "tells 7 classes apart, raw has 4" in err) == (2, True)
    code, out, _ = invoke("run", *given, "--stage", "train,eval", "--set", "schedule.epochs=1")
    assert (code, "a new classifier is trained" in out) == (0, True)


def test_a_failed_run_is_kept_and_the_next_mixer_still_runs(
    invoke: Invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from stmbench.training import engine

    real = engine._train_epoch

    def breaks(trainer: engine.Trainer, epoch: int, asked: Callable[[], bool]):
        if trainer.job.mixer == "dwconv" and epoch == 2:
            raise RuntimeError("the sky fell")
        yield from real(trainer, epoch, asked)

    monkeypatch.setattr(engine, "_train_epoch", breaks)
    code, out, err = invoke("run", "--mixer", "dwconv,swin", "--stage", "train,eval")
    assert code == 1
    assert "the sky fell" in err
    with open_store(str(tmp_path / "runs/stmbench.db"), create=False) as store:
        states = {run.mixer: run for run in store.runs()}
        assert states["swin"].state == "done"
        assert states["dwconv"].state == "failed"
        assert any(m.name == "top1" and m.step == 1 for m in store.measurements(states["dwconv"].id))

    monkeypatch.setattr(engine, "_train_epoch", real)
    code, out, _ = invoke("resume", states["dwconv"].id)
    assert code == 0
    assert "Resuming after epoch 1 of 2." in out
    assert invoke("resume", states["dwconv"].id)[0] == 2  # it is done now


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_stopped_run_is_interrupted_and_no_other_is_begun(
    invoke: Invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    from stmbench.training import engine

    real = engine._train_epoch

    def stops(*arguments: Any) -> Iterator[Event]:
        os.kill(os.getpid(), number)
        yield from real(*arguments)

    monkeypatch.setattr(engine, "_train_epoch", stops)
    interrupt = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
    before = signal.getsignal(signal.SIGTERM)
    code, out, _ = invoke("run", "--mixer", "dwconv,swin", "--stage", "train")
    signal.signal(signal.SIGINT, interrupt)
    assert code == 130
    with open_store(str(tmp_path / "runs/stmbench.db"), create=False) as store:
        (run,) = store.runs()
        assert (run.mixer, run.state) == ("dwconv", "interrupted")
    assert f"stmbench resume {run.id}" in out
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_folder_that_cannot_be_written_is_one_line(invoke: Invoke, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    code, _, err = invoke("run", "--stage", "build", "--db", "file/stmbench.db")
    assert code in (1, 2)
    assert len(err.strip().splitlines()) == 1


def test_debug_shows_the_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["stmbench", "run", "--mixer", "hallo", "--debug"])
    with pytest.raises(ValueError, match="Did you mean 'halo'"):
        cli.main()


STMBENCH = [sys.executable, "-c", "from stmbench.cli import main; main()"]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
def test_a_run_killed_and_resumed_ends_as_one_never_interrupted(
    tiny_data: Path, tiny_recipe_file: Path, tmp_path: Path
) -> None:
    command = [*STMBENCH, "run", "--mixer", "halo", "--stage", "train", "--data", str(tiny_data)]
    command += ["--recipe", str(tiny_recipe_file), "--set", "schedule.epochs=3", "--set", "augment.mixup=0.5"]
    environment = os.environ | {"PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "2"}

    def weights(folder: Path) -> dict[str, torch.Tensor]:
        (path,) = folder.glob("runs/*/plain.safetensors")
        return load_file(path)

    straight, killed = tmp_path / "straight", tmp_path / "killed"
    for folder in (straight, killed):
        folder.mkdir()
    subprocess.run(command, cwd=straight, env=environment, check=True, capture_output=True)

    process = subprocess.Popen(command, cwd=killed, env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    for line in process.stdout:
        if "epoch 1" in line:
            process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    process.stdout.close()
    with open_store(str(killed / "runs/stmbench.db"), create=False) as store:
        (run,) = store.runs()
        assert run.state == "interrupted"
        assert "is gone" in run.reason
    subprocess.run(
        [*STMBENCH, "resume", run.id], cwd=killed, env=environment, check=True, capture_output=True
    )

    one, other = weights(straight), weights(killed)
    assert all(torch.equal(value, other[name]) for name, value in one.items())
    with open_store(str(killed / "runs/stmbench.db"), create=False) as store:
        assert store.run(run.id).state == "done"
        losses = [m for m in store.measurements(run.id) if m.name == "loss"]
        assert [m.step for m in losses] == [1, 2, 3]


@pytest.mark.parametrize("command", ["--help", "leaderboard", "runs", "mixers", "recipes", "doctor"])
def test_reading_never_imports_torch(command: str, tmp_path: Path) -> None:
    program = (
        "import sys, contextlib\n"
        "from stmbench.cli import main\n"
        f"sys.argv = ['stmbench', {command!r}]\n"
        "with contextlib.suppress(SystemExit): main()\n"
        "assert 'torch' not in sys.modules and 'pandas' not in sys.modules"
    )
    if command == "doctor":  # what it asks torch, it asks in another process
        program = program.replace(
            "import sys, contextlib", "import sys, contextlib, stmbench.cli.info as i\ni._probe = lambda: []"
        )
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True, capture_output=True)


def test_several_seeds_are_a_run_each_and_one_row(invoke: Invoke, tmp_path: Path) -> None:
    options = ("--mixer", "pool,identity", "--stage", "build", "--seeds", "0,5,0")
    assert "seeds 0, 5, for 2 models" in invoke("run", *options, "--dry-run")[1]
    assert "design stem, for 1 model" in invoke("run", "--mixer", "sra", "--design", "stem", "--dry-run")[1]
    assert invoke("run", *options)[0] == 0
    with open_store(str(tmp_path / "runs/stmbench.db"), create=False) as store:
        made = sorted((run.mixer, run.seed) for run in store.runs())
    assert made == [("identity", 0), ("identity", 5), ("pool", 0), ("pool", 5)]
    code, _, err = invoke("run", "--seeds", "0,-1")
    assert (code, err.count("\n")) == (2, 1)
    assert "A seed is from 0" in err
