"""Which network a file is of, and the same file under our names."""

from pathlib import Path

import pytest
import timm
import torch
from published_weights import make_checkpoint

import stmbench
from stmbench import catalog
from stmbench.nn import checkpoint
from stmbench.nn.identify import Network, identify
from stmbench.nn.weights import read_weights, save_weights

MADE = [
    Network(mixer, scale, design)
    for mixer, row in catalog.mixers().items()
    for scale in row.scales
    for design in (catalog.rungs(mixer, scale) if scale == "micro" else ["unified"])
]


@pytest.mark.parametrize("network", MADE, ids=str)
def test_every_network_is_told_by_its_weights(network: Network) -> None:
    with torch.device("meta"):
        options = {"design": network.design, "num_classes": 7, "in_channels": 1, "image_size": 96}
        state = stmbench.create_model(network.mixer, network.scale, **options).state_dict()
    alike = {"pool", "identity"}  # they have no weights of their own
    expected = (
        [network] if network.mixer not in alike else [network._replace(mixer=m) for m in ("pool", "identity")]
    )
    assert identify(state) == expected


def test_what_is_none_of_ours_is_nothing() -> None:
    with torch.device("meta"):
        assert identify(timm.create_model("resnet18").state_dict()) == []
    assert identify({}) == []


def test_a_timm_file_becomes_ours(tmp_path: Path) -> None:
    theirs = timm.create_model("convnext_tiny", num_classes=5).eval()
    torch.save(
        {"state_dict": theirs.state_dict(), "state_dict_ema": theirs.state_dict(), "epoch": 3},
        tmp_path / "a.pth",
    )
    found = checkpoint.inspect(tmp_path / "a.pth")
    assert (found.networks, found.kinds, found.classes) == (
        (Network("dwconv", "tiny", "original"),),
        ("plain", "ema"),
        5,
    )
    assert found.parameters == sum(p.numel() for p in theirs.parameters())
    for ema in (False, True):
        output = tmp_path / f"{ema}.safetensors"
        checkpoint.convert_file(tmp_path / "a.pth", output, ema=ema)
        assert (
            read_weights(output)[1].items() >= {"mixer": "dwconv", "design": "original", "epoch": "3"}.items()
        )
        ours = stmbench.create_model(
            "dwconv", "tiny", design="original", num_classes=5, weights=output
        ).eval()
        images = torch.randn(1, 3, 64, 64)
        with torch.inference_mode():
            torch.testing.assert_close(ours(images), theirs(images), rtol=1e-4, atol=1e-5)


def test_our_own_metadata_tells_alike_networks_apart(tmp_path: Path) -> None:
    state = stmbench.create_model("identity", "micro").state_dict()
    save_weights(tmp_path / "plain.safetensors", state, {"mixer": "identity", "weights": "plain"})
    assert checkpoint.inspect(tmp_path / "plain.safetensors").networks == (
        Network("identity", "micro", "unified"),
    )


def test_averaged_weights_of_a_file_of_ours_stay_averaged(tmp_path: Path) -> None:
    state = stmbench.create_model("pool", "micro").state_dict()
    save_weights(tmp_path / "ema.safetensors", state, {"mixer": "pool", "weights": "ema"})
    checkpoint.convert_file(tmp_path / "ema.safetensors", tmp_path / "new.safetensors")
    assert checkpoint.inspect(tmp_path / "new.safetensors").kinds == ("ema",)


@pytest.mark.parametrize(
    ("output", "ema", "message"),
    [
        ("new.pth", False, "is to be a .safetensors file"),
        ("old.safetensors", False, "is there already"),
        ("new.safetensors", True, "has no averaged weights"),
        ("new.safetensors", False, "of no network of ours"),
    ],
)
def test_what_cannot_be_converted_is_told(tmp_path: Path, output: str, ema: bool, message: str) -> None:
    save_weights(tmp_path / "old.safetensors", {"a": torch.zeros(2)}, {})
    with pytest.raises(ValueError, match=message):
        checkpoint.convert_file(tmp_path / "old.safetensors", tmp_path / output, ema=ema)
    assert [path.name for path in tmp_path.iterdir()] == ["old.safetensors"]


@pytest.mark.parametrize("name", ["unified_halo_micro", "unified_pvt_micro", "unified_dcn_v3_micro"])
def test_a_published_file_is_told(name: str, tmp_path: Path) -> None:
    torch.save(make_checkpoint(name), tmp_path / f"{name}.pth")
    found = checkpoint.inspect(tmp_path / f"{name}.pth")
    mixer = {"halo": "halo", "pvt": "sra", "dcn": "dcnv3"}[name.split("_")[1]]
    assert (found.networks, found.metadata) == ((Network(mixer, "micro", "unified"),), {"epoch": "299"})
