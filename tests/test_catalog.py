"""The catalogue's names help when they are wrong, and every entry leads to code that is there."""

from collections.abc import Callable

import pytest
import torch

from stmbench import catalog

SCALES = [(name, scale) for name, row in catalog.mixers().items() for scale in row.scales]


def test_the_five_mixers_come_first_in_the_paper_s_order() -> None:
    assert list(catalog.mixers())[:5] == ["halo", "swin", "sra", "dwconv", "dcnv3"]


@pytest.mark.parametrize(
    ("alias", "name"),
    [("halonet", "halo"), ("pvt", "sra"), ("convnext", "dwconv"), ("internimage", "dcnv3"), ("swin", "swin")],
)
def test_aliases(alias: str, name: str) -> None:
    assert catalog.mixer(alias).name == name


def test_known_names_the_nearest() -> None:
    assert catalog.known("stage", "train", ["train", "eval"]) == "train"
    with pytest.raises(ValueError, match=r"^Unknown mixer 'hallo'\. Did you mean 'halo'\?$"):
        catalog.mixer("hallo")
    with pytest.raises(ValueError, match="Did you mean 'internimage'"):
        catalog.mixer("internimge")
    with pytest.raises(ValueError, match=r"^Unknown stage 'xyz'\. Known: train, eval\.$"):
        catalog.known("stage", "xyz", ["train", "eval"])


def test_only_dcnv3_has_a_large_scale() -> None:
    assert catalog.scale("internimage", "large").widths == (160, 320, 640, 1280)
    with pytest.raises(ValueError, match=r"^Unknown scale of sra 'large'\."):
        catalog.scale("pvt", "large")


@pytest.mark.parametrize("name", catalog.mixers())
def test_every_mixer_resolves_to_a_module_class(name: str) -> None:
    assert issubclass(catalog.resolve(catalog.mixer(name).target), torch.nn.Module)


@pytest.mark.parametrize("name", catalog.stages())
def test_every_stage_resolves_to_a_function(name: str) -> None:
    assert isinstance(catalog.resolve(catalog.stages()[name]), Callable)


@pytest.mark.parametrize(("name", "scale"), SCALES)
def test_every_level_s_width_divides_into_its_heads(name: str, scale: str) -> None:
    row = catalog.mixer(name)
    for level, width in enumerate(row.scales[scale].widths):
        heads = row.options(width, level, 0).get("num_heads", 1)
        assert width % heads == 0
        assert width // heads == row.head_width or row.head_width is None


def test_options_cycle_over_the_blocks_of_a_level() -> None:
    swin = catalog.mixer("swin")
    assert [swin.options(192, 1, block)["shift"] for block in range(4)] == [0, 3, 0, 3]
    assert swin.options(192, 1, 0) == {"shift": 0, "num_heads": 6}
    assert catalog.mixer("sra").options(320, 2, 5) == {"num_heads": 5, "reduction": 2}
