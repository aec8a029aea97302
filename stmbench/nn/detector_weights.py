"""Checkpoints of whole detectors into ours: our own, and those of Mask R-CNN in mmdetection's layout.

The published detectors of Hu et al. 2022 (arXiv:2211.05781) have that layout (Chen et al. 2019,
arXiv:1906.07155). It differs in names, in the background, which is the last class there and the first one
here, and in the boxes and masks of the background, which only we have. Their backbones ran without the norms
between levels: those stay as they are here, so that such a detector is a start for training and no more.
"""

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from stmbench.nn.detector import Detector
from stmbench.nn.weights import adapt, read_weights

_BACKBONE = "pyramid.backbone."
_PREDICTORS = re.compile(r"^roi_heads\.(box|mask)_predictor\.(cls_score|bbox_pred|mask_fcn_logits)\.")
_RENAMES = [
    (r"^backbone\.", _BACKBONE),
    (r"^neck\.lateral_convs\.(\d)\.conv\.", r"pyramid.neck.inner_blocks.\1.0."),
    (r"^neck\.fpn_convs\.(\d)\.conv\.", r"pyramid.neck.layer_blocks.\1.0."),
    (r"^rpn_head\.rpn_conv\.", "rpn.head.conv.0.0."),
    (r"^rpn_head\.rpn_cls\.", "rpn.head.cls_logits."),
    (r"^rpn_head\.rpn_reg\.", "rpn.head.bbox_pred."),
    (r"^roi_head\.bbox_head\.shared_fcs\.0\.", "roi_heads.box_head.fc6."),
    (r"^roi_head\.bbox_head\.shared_fcs\.1\.", "roi_heads.box_head.fc7."),
    (r"^roi_head\.bbox_head\.fc_cls\.", "roi_heads.box_predictor.cls_score."),
    (r"^roi_head\.bbox_head\.fc_reg\.", "roi_heads.box_predictor.bbox_pred."),
    (r"^roi_head\.mask_head\.convs\.(\d)\.conv\.", r"roi_heads.mask_head.\1.0."),
    (r"^roi_head\.mask_head\.upsample\.", "roi_heads.mask_predictor.conv5_mask."),
    (r"^roi_head\.mask_head\.conv_logits\.", "roi_heads.mask_predictor.mask_fcn_logits."),
]
_NEW_ROWS = {"bbox_pred": 4, "mask_fcn_logits": 1}  # of the background, by the layer they are in


def holds_detector(path: str | Path) -> bool:
    """Whether a checkpoint file is of a whole detector; ValueError as `read_weights` has it."""
    return any(key.startswith((_BACKBONE, "rpn_head.")) for key in read_weights(path)[0])


def load_detector(model: Detector, path: str | Path, *, ema: bool = False) -> list[str]:
    """Load what there is for the detector; return the names of the tensors that stay as they were.

    Of a checkpoint of ours these can only be the last layers, where it has other classes.

    Raises:
        ValueError: the file cannot be read (see `read_weights`), or is of another network.
    """
    state, _ = read_weights(path, ema=ema)
    ours = any(key.startswith(_BACKBONE) for key in state)
    if not ours:
        state = _with_our_backbone(_renamed(state), model)
    own = model.state_dict()
    fitting = {key: value for key, value in state.items() if key in own and own[key].shape == value.shape}
    left = [key for key in own if key not in fitting]
    foreign = [key for key in left if not _may_stay(key, ours)]
    foreign += [key for key in state if ours and key not in own]
    if foreign:
        raise ValueError(
            f"{path} holds another detector: {len(foreign)} tensors do not fit, the first {foreign[0]}."
        )
    model.load_state_dict(fitting, strict=False)
    return left


def _may_stay(key: str, ours: bool) -> bool:
    norms = key.startswith(_BACKBONE) and re.search(r"levels\.\d\.norm\.", key)
    return bool(_PREDICTORS.match(key) or (norms and not ours))


def _with_our_backbone(state: Mapping[str, Tensor], model: Detector) -> dict[str, Tensor]:
    """The same with the backbone's tensors by our names and sizes."""
    inside = {k.removeprefix(_BACKBONE): v for k, v in state.items() if k.startswith(_BACKBONE)}
    outside = {key: value for key, value in state.items() if not key.startswith(_BACKBONE)}
    adapted = adapt(inside, model.pyramid.backbone)
    return outside | {_BACKBONE + key: value for key, value in adapted.items()}


def _renamed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A checkpoint in mmdetection's layout by our names, but for the backbone's own."""
    renamed = {}
    for key, value in state.items():
        for pattern, replacement in _RENAMES:
            key = re.sub(pattern, replacement, key, count=1)
        layer = key.split(".")[-2]
        if key.startswith("roi_heads.") and layer == "cls_score":
            value = value.roll(1, dims=0)
        elif key.startswith("roi_heads.") and layer in _NEW_ROWS:
            value = torch.cat([value.new_zeros(_NEW_ROWS[layer], *value.shape[1:]), value])
        renamed[key] = value
    return renamed
