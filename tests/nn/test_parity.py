"""The published checkpoints load strictly, and the networks answer as the originals do."""

from pathlib import Path

import published_weights
import pytest
import torch

import stmbench
from stmbench import catalog
from stmbench.nn.weights import convert

NAMES = {
    f"{row.published}_{scale}": (row.name, scale)
    for row in catalog.mixers().values()
    for scale in row.scales
    if f"{row.published}_{scale}" in published_weights.table()
}
ANSWERED = [name for name in NAMES if "expected" in published_weights.table()[name]]


def checkpoint(name: str, folder: Path) -> Path:
    path = folder / f"{name}.pth"
    torch.save(published_weights.make_checkpoint(name), path)
    return path


def test_there_are_twenty_of_which_ten_have_answers() -> None:
    assert (len(NAMES), len(ANSWERED)) == (20, 10)


@pytest.mark.parametrize("name", ANSWERED)
def test_logits_equal_the_original_networks(name: str, tmp_path: Path) -> None:
    mixer, scale = NAMES[name]
    model = stmbench.create_model(mixer, scale, weights=checkpoint(name, tmp_path)).eval()
    with torch.no_grad():
        logits = model(torch.from_numpy(published_weights.make_images()))
    published_weights.check(name, logits.numpy(), rtol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_every_key_and_shape_has_its_place(name: str) -> None:
    with torch.device("meta"):
        model = stmbench.create_model(*NAMES[name])
        state = {key: torch.empty(shape) for key, shape, _ in published_weights.table()[name]["state_dict"]}
    converted = convert(state)
    assert {key: value.shape for key, value in converted.items()} == {
        key: value.shape for key, value in model.state_dict().items()
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NAMES if name not in ANSWERED])
def test_the_large_ones_load(name: str, tmp_path: Path) -> None:
    mixer, scale = NAMES[name]
    model = stmbench.create_model(mixer, scale, weights=checkpoint(name, tmp_path)).eval()
    with torch.no_grad():
        assert model(torch.from_numpy(published_weights.make_images(size=96))).isfinite().all()
