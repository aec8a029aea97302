"""The mixers in their original networks, which are timm's, and the steps from there to the unified one."""

import dataclasses
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

import stmbench
from stmbench import catalog
from stmbench.measure.count import count
from stmbench.nn.weights import load_weights, save_weights

NAMES = {"swin": "swin_tiny_patch4_window7_224", "dwconv": "convnext_tiny", "sra": "pvt_v2_b2"}
RUNGS = [
    (mixer, rung) for mixer in ("halo", "swin", "sra", "dwconv") for rung in catalog.rungs(mixer, "micro")
]


def enliven(model: nn.Module) -> nn.Module:
    """Weights of a size at which every one of them matters to the logits."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter, float(parameter.ndim == 1), 0.05)
    return model.eval()


@pytest.mark.parametrize("mixer", NAMES)
def test_the_original_networks_are_timms(mixer: str, tmp_path: Path) -> None:
    theirs = enliven(timm.create_model(NAMES[mixer]))
    save_weights(tmp_path / "timm.safetensors", theirs.state_dict(), {})
    ours = stmbench.create_model(
        mixer, "tiny", design="original", weights=tmp_path / "timm.safetensors"
    ).eval()
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())
    images = torch.randn(2, 3, 224, 224)
    with torch.inference_mode():
        expected, found = theirs(images), ours(images)
    assert expected.std() > 0.1
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("scale", "parameters", "gmacs"),
    [("micro", 3.7, 0.57), ("tiny", 25.4, 4.0), ("small", 45.2, 6.9), ("base", 82.0, 11.7)],
)
def test_the_original_network_of_sra_is_pvt_v2(scale: str, parameters: float, gmacs: float) -> None:
    with torch.device("meta"):
        model = stmbench.create_model("sra", scale, design="original")
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(parameters, abs=0.05)
    assert sum(part.total for part in model.macs(224, 224).values()) / 1e9 == pytest.approx(gmacs, abs=0.05)


@pytest.mark.parametrize(("mixer", "gmacs"), [("swin", 4.49), ("dwconv", 4.46)])
def test_their_macs_are_the_published_ones(mixer: str, gmacs: float) -> None:
    with torch.device("meta"):
        model = stmbench.create_model(mixer, "tiny", design="original")
    total = sum(part.total for part in model.macs(224, 224).values())
    assert total / 1e9 == pytest.approx(gmacs, abs=0.005)


@pytest.mark.parametrize(("mixer", "rung"), RUNGS)
def test_every_rung_takes_any_size_learns_everywhere_and_is_counted(mixer: str, rung: str) -> None:
    model = stmbench.create_model(mixer, "micro", design=rung, num_classes=5)
    enliven(model).train()
    model(torch.randn(2, 3, 45, 37)).square().sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []
    features = model.eval().forward_features(torch.randn(1, 3, 45, 37))
    assert features.shape[2:] == (2, 2)
    found = count(model, (3, 64, 64))
    assert found.disagreement == 0


def test_each_rung_is_one_step_from_the_one_before() -> None:
    found = catalog.rungs("dwconv", "tiny")
    assert list(found) == ["original", "depths", "stem", "downsampling", "level_norms", "block", "unified"]
    (first, deep), (second, shallow), *others = found.values()
    assert (first, deep.depths, shallow.depths) == (second, (3, 3, 9, 3), (2, 2, 9, 2))
    for before, (after, _) in zip([second, *(parts for parts, _ in others)], others, strict=False):
        changed = [
            f.name for f in dataclasses.fields(after) if getattr(after, f.name) != getattr(before, f.name)
        ]
        assert len([name for name in changed if name != "norm_eps"]) == 1
    assert others[-1] == (catalog.Design(), shallow)


def test_maps_of_positions_are_the_last_step_of_the_mixer_that_has_some() -> None:
    found = catalog.rungs("sra", "tiny")
    assert list(found) == ["original", "depths", "stem", "downsampling", "block", "head", "unified"]
    before, after = found["head"][0], found["unified"][0]
    assert dataclasses.replace(before, position="unified") == after != before
    maps = {
        design: sum(name.endswith("position_map") for name, _ in _sketch("sra", design).named_parameters())
        for design in found
    }
    assert maps == dict.fromkeys(found, 0) | {"unified": 4}


def test_downsampling_by_overlapping_patches_is_ours_with_a_bias() -> None:
    before, after = (dict(_sketch("sra", design).named_parameters()) for design in ("stem", "downsampling"))
    assert before.keys() - after.keys() == {f"levels.{level}.downsample.conv.bias" for level in (1, 2, 3)}


def _sketch(mixer: str, design: str) -> nn.Module:
    with torch.device("meta"):
        return stmbench.create_model(mixer, "tiny", design=design)


def test_without_an_original_there_is_the_unified_network_alone() -> None:
    assert list(catalog.rungs("pool", "micro")) == ["unified"]
    with pytest.raises(ValueError, match="Unknown design of pool 'original'"):
        stmbench.create_model("pool", "micro", design="original")


def test_an_original_network_keeps_its_classifier_apart(tmp_path: Path) -> None:
    model = stmbench.create_model("swin", "micro", design="original", num_classes=3)
    save_weights(tmp_path / "own.safetensors", model.state_dict(), {})
    other = stmbench.create_model("swin", "micro", design="original", num_classes=7)
    load_weights(other, tmp_path / "own.safetensors")
    other.reset_classifier(4)
    assert other(torch.zeros(1, 3, 32, 32)).shape == (1, 4)
    with pytest.raises(ValueError, match="holds another network"):
        stmbench.create_model("swin", "micro", weights=tmp_path / "own.safetensors")
