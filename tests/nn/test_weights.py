"""Checkpoint files: ours and published ones, what is adapted, what is refused."""

import argparse
import os
import pickle
from pathlib import Path
from typing import Any

import published_weights
import pytest
import torch

import stmbench
from stmbench.nn.weights import kinds_of, load_weights, read_weights, save_weights


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A published file with everything that such files carry beside the weights."""
    path = tmp_path_factory.mktemp("published") / "unified_pvt_micro.pth"
    content = published_weights.make_checkpoint("unified_pvt_micro")
    other = published_weights.make_checkpoint("unified_pvt_micro", seed=1)["model"]
    optimizer = {"state": {0: {"step": 3, "exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 1e-3}]}
    args = argparse.Namespace(lr=1e-3, model="unified_pvt_micro")
    torch.save({**content, "model_ema": other, "optimizer": optimizer, "args": args}, path)
    return path


def test_ours_round_trip_with_metadata(tmp_path: Path) -> None:
    model = stmbench.create_model("halo", "micro", num_classes=10, in_channels=1)
    model = model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    path = tmp_path / "plain.safetensors"
    save_weights(path, model.state_dict(), {"mixer": "halo", "epoch": "4"})
    again = stmbench.create_model("halo", "micro", num_classes=10, in_channels=1)
    assert load_weights(again, path) == {"mixer": "halo", "epoch": "4"}
    for key, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[key], value), key
    assert [file.name for file in tmp_path.iterdir()] == ["plain.safetensors"]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "plain.safetensors"
    save_weights(path, {"a": torch.ones(2)}, {})

    def no_space(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(OSError, match="No space left"):
        save_weights(path, {"a": torch.zeros(2)}, {})
    assert torch.equal(read_weights(path)[0]["a"], torch.ones(2))
    assert [file.name for file in tmp_path.iterdir()] == ["plain.safetensors"]


def test_published_plain_weights_are_taken_with_their_epoch(published: Path) -> None:
    model = stmbench.create_model("sra", "micro")
    assert load_weights(model, published)["epoch"] == "299"
    want = published_weights.fill("head.bias", [1000], "float32")
    assert torch.equal(model.head.fc.bias, torch.from_numpy(want))


def test_averaged_weights_beside_plain_ones_are_found_and_told_apart(published: Path, tmp_path: Path) -> None:
    assert kinds_of(published) == ("plain", "ema")
    model = stmbench.create_model("sra", "micro")
    load_weights(model, published, ema=True)
    want = published_weights.fill("head.bias", [1000], "float32", seed=1)
    assert torch.equal(model.head.fc.bias, torch.from_numpy(want))
    for kind in ("plain", "ema"):
        save_weights(tmp_path / "ours.safetensors", model.state_dict(), {"weights": kind})
        assert kinds_of(tmp_path / "ours.safetensors") == (kind,)


def test_another_class_count_keeps_the_models_own_classifier(published: Path) -> None:
    torch.manual_seed(0)
    fresh = stmbench.create_model("sra", "micro", num_classes=7)
    torch.manual_seed(0)
    model = stmbench.create_model("sra", "micro", num_classes=7, weights=published)
    full = stmbench.create_model("sra", "micro", weights=published)
    assert torch.equal(model.head.fc.weight, fresh.head.fc.weight)
    assert torch.equal(model.head.conv.weight, full.head.conv.weight)
    without = stmbench.create_model("sra", "micro", num_classes=0, weights=published)
    images = torch.randn(2, 3, 64, 64)
    full.eval()
    without.eval()
    assert torch.equal(without(images), full.forward_head(full.forward_features(images), pre_logits=True))


def test_another_image_size_resizes_position_maps_alone(published: Path) -> None:
    full = stmbench.create_model("sra", "micro", weights=published).state_dict()
    small = stmbench.create_model("sra", "micro", image_size=64, weights=published).state_dict()
    assert small["levels.0.position_map"].shape == (1, 32, 16, 16)
    assert {key for key in full if full[key].shape != small[key].shape} == {
        f"levels.{i}.position_map" for i in range(4)
    }


def test_another_channel_count_adapts_the_first_convolution(published: Path) -> None:
    rgb = stmbench.create_model("sra", "micro", weights=published).eval()
    gray = stmbench.create_model("sra", "micro", in_channels=1, weights=published).eval()
    images = torch.randn(2, 1, 64, 64)
    torch.testing.assert_close(gray(images), rgb(images.expand(-1, 3, -1, -1)), rtol=1e-4, atol=1e-4)


def test_a_layer_with_two_names_is_saved_under_both(tmp_path: Path) -> None:
    layer = torch.nn.Linear(2, 2)
    state = torch.nn.ModuleDict({"one": layer, "other": layer}).state_dict()
    save_weights(tmp_path / "tied.safetensors", state, {})
    again, _ = read_weights(tmp_path / "tied.safetensors")
    assert again.keys() == state.keys()
    assert torch.equal(again["one.weight"], again["other.weight"])


def test_gray_weights_do_not_fit_colour(tmp_path: Path) -> None:
    path = tmp_path / "gray.safetensors"
    save_weights(path, stmbench.create_model("dwconv", "micro", in_channels=1).state_dict(), {})
    with pytest.raises(ValueError, match="images of 1 channels, the network for 3"):
        stmbench.create_model("dwconv", "micro", weights=path)


def test_another_network_is_named_by_its_keys(published: Path) -> None:
    with pytest.raises(ValueError, match=r"another network: (\d+) keys missing, (\d+) unexpected") as error:
        stmbench.create_model("swin", "micro", weights=published)
    assert str(error.value).count(",") == 2 + 4
    assert "\n" not in str(error.value)
    with pytest.raises(
        ValueError, match=r"0 keys missing, 0 unexpected, 1 of another shape.* levels\.0\.norm\.weight"
    ):
        stmbench.create_model("sra", "micro", weights=_rewritten(published, published.parent / "wide.pth"))


def _rewritten(published: Path, path: Path) -> Path:
    state = torch.load(published, weights_only=False)["model"]
    state["stage_norms.0.weight"] = torch.ones(64)
    torch.save(state, path)
    return path


class Malicious:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return (os.mkdir, (str(self.marker),))


def test_code_in_a_checkpoint_is_refused_and_never_runs(tmp_path: Path) -> None:
    marker, path = tmp_path / "executed", tmp_path / "bad.pth"
    content = {"model": {"a": torch.ones(2)}, "args": Malicious(marker)}
    torch.save(content, path)
    with pytest.raises(ValueError, match=r"refused: it contains code \(\w+\.mkdir\)"):
        read_weights(path)
    torch.save(content, path, _use_new_zipfile_serialization=False)
    with pytest.raises(ValueError, match="refused"):
        read_weights(path)
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(ValueError, match=r"refused: .* contains? code"):
        read_weights(path)
    assert not marker.exists()


def test_code_inside_the_arguments_is_refused_too(tmp_path: Path) -> None:
    marker, path = tmp_path / "executed", tmp_path / "bad.pth"
    torch.save({"model": {}, "args": argparse.Namespace(x=Malicious(marker))}, path)
    with pytest.raises(ValueError, match="refused"):
        read_weights(path)
    assert not marker.exists()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_damaged_files(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save({"model": {"a": torch.ones(1000)}}, path)
    else:
        save_weights(path, {"a": torch.ones(1000)}, {})
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], whole[:5], b"", b"no weights at all"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="damaged") as error:
            read_weights(path)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [torch.ones(3), {}, {"model": {}}, {"model": {"a": 1}}, [1, 2]], ids=str)
def test_files_without_weights(content: Any, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "odd.pth")
    with pytest.raises(ValueError, match="holds no weights"):
        read_weights(tmp_path / "odd.pth")


def test_weights_of_wrapped_networks(tmp_path: Path) -> None:
    model = stmbench.create_model("dwconv", "micro")
    torch.save({f"module.{key}": value for key, value in model.state_dict().items()}, tmp_path / "ddp.pth")
    again = stmbench.create_model("dwconv", "micro", weights=tmp_path / "ddp.pth")
    assert torch.equal(again.head.fc.weight, model.head.fc.weight)
