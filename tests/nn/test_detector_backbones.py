"""Checkpoints of published detectors: their backbone is told, and taken."""

from pathlib import Path

import published_weights
import pytest
import torch
from torch import Tensor

import stmbench
from stmbench.nn import checkpoint
from stmbench.nn.identify import Network
from stmbench.nn.weights import classes_of, load_weights

NAMES = {"unified_halo_micro": "halo", "unified_pvt_micro": "sra", "unified_dcn_v3_micro": "dcnv3"}


def detector(name: str) -> dict[str, Tensor]:
    """A published classifier as the backbone of a Mask R-CNN: no head, no norms between levels."""
    state = published_weights.make_checkpoint(name)["model"]
    dropped = ("head.", "conv_head.", "stage_norms.")
    kept = {f"backbone.{key}": value for key, value in state.items() if not key.startswith(dropped)}
    heads = (
        "neck.lateral_convs.0.conv.weight",
        "rpn_head.rpn_cls.weight",
        "roi_head.bbox_head.fc_cls.weight",
    )
    return kept | {key: torch.ones(4, 4) for key in heads}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    torch.save({"meta": {"epoch": 12}, "state_dict": detector("unified_pvt_micro")}, tmp_path / "rcnn.pth")
    return tmp_path / "rcnn.pth"


@pytest.mark.parametrize("name", NAMES)
def test_a_detector_is_told_by_its_backbone(name: str, tmp_path: Path) -> None:
    torch.save({"state_dict": detector(name)}, tmp_path / "rcnn.pth")
    found = checkpoint.inspect(tmp_path / "rcnn.pth")
    assert (found.networks, found.classes) == ((Network(NAMES[name], "micro", "unified"),), None)
    assert found.parts == (
        "backbone, neck, roi_head, rpn_head, of a detector; a classifier takes the backbone alone, "
        "which ran without the norms between levels: these start anew"
    )


def test_a_classifier_takes_the_backbone_and_keeps_the_rest(file: Path, tmp_path: Path) -> None:
    torch.save(published_weights.make_checkpoint("unified_pvt_micro"), tmp_path / "whole.pth")
    whole = stmbench.create_model("sra", "micro", weights=tmp_path / "whole.pth").state_dict()
    torch.manual_seed(0)
    fresh = stmbench.create_model("sra", "micro").state_dict()
    torch.manual_seed(0)
    model = stmbench.create_model("sra", "micro")
    load_weights(model, file)
    kept = {key for key in whole if key.startswith("head.") or (key[:6] == "levels" and key[9:13] == "norm")}
    assert len(kept) == 8 + 8
    for key, value in model.state_dict().items():
        assert torch.equal(value, (fresh if key in kept else whole)[key]), key
    assert classes_of(file, model) is None


def test_a_backbone_that_is_another_network_is_refused(file: Path) -> None:
    with pytest.raises(ValueError, match=r"another network: [1-9]\d* keys missing"):
        stmbench.create_model("sra", "tiny", weights=file)
    with pytest.raises(ValueError, match="is a detector: `--weights` takes it as it is"):
        checkpoint.convert_file(file, file.with_name("new.safetensors"))
