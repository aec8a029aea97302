"""Weights of windows of one side in a network of another."""

from pathlib import Path

import published_weights
import pytest
import torch
from timm.layers.pos_embed_rel import resize_rel_pos_bias_table_simple

import stmbench
from stmbench import catalog
from stmbench.nn.weights import load_weights
from stmbench.nn.windows import halo_side, resize_halo, resize_swin, swin_side


@pytest.fixture(scope="module", params=["unified_swin_micro", "unified_halo_micro"])
def published(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A mixer, and a published file of its windows of 7."""
    path = tmp_path_factory.mktemp("published") / f"{request.param}.pth"
    torch.save(published_weights.make_checkpoint(request.param), path)
    return request.param.split("_")[1], path


def test_a_published_network_takes_windows_of_12(published: tuple[str, Path]) -> None:
    mixer, path = published
    seven = stmbench.create_model(mixer, "micro", weights=path)
    twelve = stmbench.create_model(mixer, "micro", window=12, image_size=384)
    load_weights(twelve, path)
    tables = {"relative_position_bias_table", "height_rel", "width_rel"}
    for key, value in twelve.state_dict().items():
        if key.rpartition(".")[2] in tables:
            assert value.shape[0] == {"swin": 23**2, "halo": 35}[mixer], key
        else:
            assert torch.equal(value, seven.state_dict()[key]), key
    images = torch.randn(1, 3, 96, 96)
    with torch.inference_mode():
        seven, twelve = seven.eval()(images), twelve.eval()(images)
    assert twelve.isfinite().all()
    assert (seven - twelve).abs().max() > 1e-3


def test_the_side_it_has_is_exact(published: tuple[str, Path]) -> None:
    mixer, path = published
    own, said = (stmbench.create_model(mixer, "micro", window=side, weights=path) for side in (0, 7))
    for key, value in own.state_dict().items():
        assert torch.equal(value, said.state_dict()[key]), key


def test_shifts_stay_half_a_window() -> None:
    model = stmbench.create_model("swin", "micro", window=12)
    assert [block.mixer.shift for block in model.levels[2].blocks][:4] == [0, 6, 0, 6]
    assert {block.mixer.window for level in model.levels for block in level.blocks} == {12}


@pytest.mark.parametrize("mixer", ["sra", "dwconv", "dcnv3", "pool", "identity"])
def test_others_have_no_windows(mixer: str) -> None:
    with pytest.raises(ValueError, match=f"{mixer} has no windows to choose: .* halo and swin"):
        stmbench.create_model(mixer, "micro", window=12)


@pytest.mark.parametrize("side", [4, 8, 12])
def test_swin_tables_are_resized_as_timm_does_it(side: int) -> None:
    table, rows = torch.randn(13**2, 3), (2 * side - 1) ** 2
    resized = resize_swin(table, rows)
    torch.testing.assert_close(resized, resize_rel_pos_bias_table_simple(table, (side, side), (rows, 3)))
    assert (swin_side(table), swin_side(resized)) == (7, side)


def test_halo_tables_keep_their_middle_their_ends_and_what_is_linear() -> None:
    offsets = torch.arange(-9.0, 10.0)[:, None]  # of windows of 13 around blocks of 7
    table = torch.cat([torch.full((6, 1), 100.0), offsets])
    resized = resize_halo(table, 35)
    assert (halo_side(table), halo_side(resized)) == (7, 12)
    assert torch.equal(resized[:6], table[:6])
    torch.testing.assert_close(resized[6:], torch.arange(-14.0, 15.0)[:, None] * 9 / 14)


def test_what_is_no_table_of_windows_is_refused(tmp_path: Path) -> None:
    content = published_weights.make_checkpoint("unified_swin_micro")
    key = "stages.0.0.attn.relative_position_bias_table"
    content["model"][key] = content["model"][key][:100, :1].repeat(1, 2)
    torch.save(content, tmp_path / "odd.pth")
    with pytest.raises(ValueError, match=r"1 of another shape; .* levels\.0\.blocks\.0"):
        stmbench.create_model("swin", "micro", weights=tmp_path / "odd.pth")


def test_a_recipe_s_windows_are_of_the_mixers_that_have_some() -> None:
    wanted = {"halo": 12, "swin": 12, "sra": 0, "dwconv": 0, "timm:resnet18": 0}
    assert {name: catalog.window(name, 12) for name in wanted} == wanted
    assert catalog.window("swin", 0) == 0
