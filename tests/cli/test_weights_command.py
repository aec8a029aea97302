"""`stmbench weights`, and weights of other people's as runs take them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
from safetensors.torch import load_file
from timm.models import save_for_hf

from stmbench.nn import create_model
from stmbench.nn.weights import save_weights
from stmbench.store import open_store

Invoke = Callable[..., tuple[int, str, str]]
TIMM = ("run", "--model", "timm:test_resnet", "--stage", "eval")


@pytest.fixture
def hub(tmp_path: Path) -> Path:
    """A model of timm for the tiny data, as it is pushed to the hub."""
    model: Any = timm.create_model("test_resnet", num_classes=4, in_chans=1)
    model.pretrained_cfg["mean"], model.pretrained_cfg["std"] = (0.25,), (0.75,)
    save_for_hf(model, str(tmp_path / "hub"), safe_serialization=True)
    return tmp_path / "hub"


def test_a_hub_folder_is_told_and_evaluated(invoke: Invoke, hub: Path, tmp_path: Path) -> None:
    code, out, _ = invoke("weights", "inspect", str(hub))
    assert code == 0
    assert "timm:test_resnet" in out
    assert "4" in next(line for line in out.splitlines() if line.startswith("classes"))
    code, _, err = invoke(*TIMM, "--weights", str(hub))
    assert code == 0
    assert "mean = [0.25]" in err, "images are prepared as the folder says"
    with open_store(str(tmp_path / "runs/stmbench.db"), create=False) as store:
        (run,) = store.runs()
        assert Path(run.weights or "").name == "model.safetensors"
        assert run.preprocessing["mean"] == [0.25]


def test_weights_that_are_not_here_are_told_where_to_fetch(invoke: Invoke, tmp_path: Path) -> None:
    code, _, err = invoke("run", "--model", "timm:resnet18", "--stage", "eval", "--weights", "timm")
    assert code == 2
    assert "hf download timm/resnet18.a1_in1k model.safetensors --local-dir resnet18.a1_in1k" in err
    code, _, err = invoke("run", "--scale", "tiny", "--weights", "unified_halonet_tiny.pth")
    assert code == 2
    assert "unified_halonet_tiny.pth is halo tiny as published" in err
    assert len(err.strip().splitlines()) == 1
    assert not (tmp_path / "runs").exists()


def test_windows_of_another_side_are_said_and_said_again_in_inspect(invoke: Invoke, tmp_path: Path) -> None:
    model = create_model("swin", "micro", num_classes=4, in_channels=1, window=4)
    save_weights(tmp_path / "four.safetensors", model.state_dict(), {"mixer": "swin"})
    given = ("run", "--mixer", "swin", "--stage", "eval", "--weights", "four.safetensors", "--dry-run")
    code, _, err = invoke(*given)
    assert code == 0
    assert "has windows of 4, the network 7: positions are resized; --set model.window=4" in err
    assert invoke(*given, "--set", "model.window=4")[::2] == (0, "")
    assert "4 x 4" in invoke("weights", "inspect", "four.safetensors")[1]


def test_a_run_with_other_windows_trains_them(invoke: Invoke, tmp_path: Path) -> None:
    given = ("--mixer", "halo", "--stage", "build,train", "--set", "schedule.epochs=1")
    code, _, err = invoke("run", *given, "--set", "model.window=4")
    assert (code, err) == (0, "")
    with open_store(str(tmp_path / "runs/stmbench.db"), create=False) as store:
        (run,) = store.runs()
    assert load_file(run.folder / "plain.safetensors")["levels.0.blocks.0.mixer.height_rel"].shape == (19, 32)
    code, _, err = invoke("run", "--mixer", "dwconv", "--set", "model.window=4")
    assert code == 2
    assert "dwconv has no windows to choose: model.window is of halo and swin." in err


def test_a_sink_gets_a_copy_and_its_failure_is_a_warning(
    invoke: Invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from stmbench import sinks

    given = ("run", "--mixer", "pool", "--stage", "build")
    code, _, err = invoke(*given, "--sink", "tensorboard")
    assert (code, err) == (0, "")
    assert len(list(tmp_path.glob("runs/*/tensorboard/events*"))) == 1

    def full(self: sinks.TensorBoard, number: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(sinks.TensorBoard, "add", full)
    code, _, err = invoke(*given, "--sink", "tensorboard")
    assert code == 0
    assert err.count("Warning: The sink tensorboard failed") == 1
    code, _, err = invoke(*given, "--sink", "tensorbord")
    assert code == 2
    assert "Did you mean 'tensorboard'?" in err
