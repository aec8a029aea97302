"""Checkpoints of whole detectors: ours, with other classes, in mmdetection's layout, and strangers."""

import re
from pathlib import Path

import published_weights
import pytest
import torch
from torch import Tensor

from stmbench.nn import create_model
from stmbench.nn.detector import Detector
from stmbench.nn.detector_weights import holds_detector, load_detector
from stmbench.nn.weights import save_weights
from stmbench.sections import Detect

SMALL = Detect(fpn_channels=16, box_width=32, mask_width=8)
THEIRS = {
    "pyramid.neck.inner_blocks.N.0.": "neck.lateral_convs.N.conv.",
    "pyramid.neck.layer_blocks.N.0.": "neck.fpn_convs.N.conv.",
    "rpn.head.conv.0.0.": "rpn_head.rpn_conv.",
    "rpn.head.cls_logits.": "rpn_head.rpn_cls.",
    "rpn.head.bbox_pred.": "rpn_head.rpn_reg.",
    "roi_heads.box_head.fc6.": "roi_head.bbox_head.shared_fcs.0.",
    "roi_heads.box_head.fc7.": "roi_head.bbox_head.shared_fcs.1.",
    "roi_heads.box_predictor.cls_score.": "roi_head.bbox_head.fc_cls.",
    "roi_heads.box_predictor.bbox_pred.": "roi_head.bbox_head.fc_reg.",
    "roi_heads.mask_head.N.0.": "roi_head.mask_head.convs.N.conv.",
    "roi_heads.mask_predictor.conv5_mask.": "roi_head.mask_head.upsample.",
    "roi_heads.mask_predictor.mask_fcn_logits.": "roi_head.mask_head.conv_logits.",
}


def make(classes: int = 3, *, seed: int = 0, mixer: str = "sra") -> Detector:
    torch.manual_seed(seed)
    backbone = create_model(mixer, "micro", num_classes=0)
    return Detector(backbone, classes, SMALL, masks=True, mean=(0.5,) * 3, std=(0.2,) * 3)


def saved(path: Path, model: Detector) -> Path:
    save_weights(path, model.state_dict(), {})
    return path


def theirs(model: Detector, **more: Tensor) -> dict[str, Tensor]:
    """The weights as mmdetection names them, around the backbone of a published file without its norms."""
    backbone = published_weights.make_checkpoint("unified_pvt_micro")["model"]
    kept = {key: value for key, value in backbone.items() if not re.match(r"stage_norms|conv_head|head", key)}
    state = {f"backbone.{key}": value for key, value in kept.items()}
    for key, value in model.state_dict().items():
        layer = key.split(".")[-2]
        if layer == "cls_score":
            value = torch.cat([value[1:], value[:1]])  # the background is the last class there
        elif key.startswith("roi_heads.") and layer in ("bbox_pred", "mask_fcn_logits"):
            value = value[4 if layer == "bbox_pred" else 1 :]  # and has neither boxes nor masks
        number = re.search(r"blocks\.(\d)|mask_head\.(\d)", key)
        general = key.replace(f".{number[1] or number[2]}.", ".N.", 1) if number else key
        for ours, name in THEIRS.items():
            if general.startswith(ours):
                name = name.replace("N", number[1] or number[2]) if number else name
                state[name + general.removeprefix(ours)] = value
    return state | more


def test_ours_comes_back_whole(tmp_path: Path) -> None:
    model, path = make(seed=1), tmp_path / "plain.safetensors"
    saved(path, model)
    assert holds_detector(path)
    again = make(seed=2)
    assert load_detector(again, path) == []
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in model.state_dict().items())


def test_other_classes_leave_the_last_layers_as_they_are(tmp_path: Path) -> None:
    model, again = make(3, seed=1), make(5, seed=2)
    before = {key: value.clone() for key, value in again.state_dict().items()}
    left = load_detector(again, saved(tmp_path / "plain.safetensors", model))
    layers = ("box_predictor.cls_score", "box_predictor.bbox_pred", "mask_predictor.mask_fcn_logits")
    assert left == [f"roi_heads.{layer}.{name}" for layer in layers for name in ("weight", "bias")]
    for key, value in again.state_dict().items():
        assert torch.equal(value, before[key] if key in left else model.state_dict()[key]), key


def test_mmdetection_s_layout_gives_all_but_the_norms_between_levels(tmp_path: Path) -> None:
    model, path = make(seed=1), tmp_path / "mask_rcnn_unified_pvt_micro.pth"
    torch.save({"meta": {"epoch": 12}, "state_dict": theirs(model)}, path)
    assert holds_detector(path)
    again = make(seed=2)
    left = load_detector(again, path)
    norms = [f"levels.{i}.norm.{name}" for i in range(4) for name in ("weight", "bias")]
    assert left == [f"pyramid.backbone.{norm}" for norm in norms]
    own = again.state_dict()
    for key, value in model.state_dict().items():
        if key.startswith("pyramid.backbone."):
            continue
        if re.search(r"roi_heads.*(bbox_pred|mask_fcn_logits)", key):  # those of the background are new
            rows = 4 if "bbox_pred" in key else 1
            assert not own[key][:rows].any(), key
            assert torch.equal(own[key][rows:], value[rows:]), key
        else:
            assert torch.equal(own[key], value), key
    stem = published_weights.fill("downsample_layers.0.stem.0.weight", [16, 3, 3, 3], "float32")
    assert torch.equal(own["pyramid.backbone.stem.first.conv.weight"], torch.from_numpy(stem))


@pytest.mark.parametrize("kind", ["another mixer", "another neck", "more than there is", "another layout"])
def test_another_detector_is_refused(tmp_path: Path, kind: str) -> None:
    path, model = tmp_path / "other.pth", make()
    state = model.state_dict()
    if kind == "another mixer":
        state = make(mixer="dwconv").state_dict()
    elif kind == "another neck":
        state["pyramid.neck.inner_blocks.0.0.weight"] = torch.zeros(8, 32, 1, 1)
    elif kind == "more than there is":
        state["pyramid.extra"] = torch.zeros(1)
    else:
        state = {key: value for key, value in theirs(model).items() if "rpn_conv" not in key}
    torch.save(state, path)
    with pytest.raises(
        ValueError, match=r"other\.pth holds another detector: \d+ tensors do not fit, the first"
    ):
        load_detector(model, path)


def test_a_classifier_is_no_detector(tmp_path: Path) -> None:
    path = tmp_path / "classifier.safetensors"
    save_weights(path, create_model("sra", "micro").state_dict(), {})
    assert not holds_detector(path)
