"""Detection around a backbone: Mask R-CNN with a feature pyramid, or Faster R-CNN where nothing has masks.

Ren et al. 2015 (arXiv:1506.01497), Lin et al. 2017 (arXiv:1612.03144), He et al. 2017 (arXiv:1703.06870), of
torchvision's parts and with its defaults. Departures from its whole networks:

- Nothing is padded and nothing is resized. Images of one size go through together, each size by itself, so
  that what is found in an image does not depend on the images beside it.
- Losses are torchvision's means over images of one size, and of those the mean by their numbers of images.
- Anchors lie at the pyramid's strides; torchvision takes image size // map size, which is 3 for 801 // 201.
- Under autocast what becomes boxes is float32: bfloat16 has no odd number beyond 256.

Shapes: B images, H x W pixels, K classes, N boxes of an image.
"""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import RoIHeads, paste_masks_in_image
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.models.detection.transform import resize_boxes
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool
from torchvision.ops.poolers import initLevelMapper

from stmbench.nn.backbone import Backbone, level_size
from stmbench.record import Macs
from stmbench.sections import Detect

STRIDES = (4, 8, 16, 32)  # of the backbone's levels, and of the pyramid's but for a pooled fifth
RATIOS = (0.5, 1.0, 2.0)  # height over width of the anchors of each size
BOX_SIZE, MASK_SIZE = 7, 14  # positions along a side of what is pooled for a box and for a mask
MASK_CONVS = 4
_LEVELS = ("0", "1", "2", "3")  # torchvision's names of those that boxes are pooled from

Target = Mapping[str, Any]  # boxes (N, 4) in pixels, labels (N,) from 1, masks (N, H, W) where there are some


class Pyramid(nn.Module):
    """A backbone's four levels, and the feature pyramid (`neck`) over them."""

    def __init__(self, backbone: nn.Module, channels: int, levels: int) -> None:
        super().__init__()
        self.channels, self.levels = channels, levels
        self.indices, self.widths = _find_levels(backbone)
        cast(Any, backbone).prune_intermediate_layers(self.indices, prune_head=True)
        self.backbone = backbone
        pooled = LastLevelMaxPool() if levels > len(STRIDES) else None
        self.neck = FeaturePyramidNetwork(list(self.widths), channels, pooled)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """(B, 3, H, W) -> by name, finest first, (B, channels, ceil(H/s), ceil(W/s)) for s = 4, 8, ..."""
        found = cast(Any, self.backbone).forward_intermediates(
            images, indices=self.indices, intermediates_only=True
        )
        return self.neck(dict(zip(_LEVELS, found, strict=True)))

    def maps(self, height: int, width: int) -> list[tuple[int, int]]:
        """Height and width of each of the pyramid's maps, for an image of `height` x `width` pixels."""
        return [level_size(level, height, width) for level in range(self.levels)]

    def macs(self, height: int, width: int) -> dict[str, Macs]:
        """Multiply-accumulates of one image by part of a backbone that declares its own, and of the neck."""
        assert isinstance(self.backbone, Backbone)
        sizes = zip(self.maps(height, width), self.widths, strict=False)  # a pooled map costs nothing
        neck = sum(h * w * self.channels * (width + 9 * self.channels) for (h, w), width in sizes)
        return self.backbone.macs(height, width) | {"neck": Macs(neck)}

    def parts(self) -> dict[str, list[str]]:
        """The names of the modules that make up each part of `macs`."""
        assert isinstance(self.backbone, Backbone)
        own = self.backbone.parts().items()
        return {part: [f"backbone.{name}" for name in names] for part, names in own} | {"neck": ["neck"]}


def _find_levels(backbone: nn.Module) -> tuple[list[int], list[int]]:
    """Which of the features a backbone hands out lie at the four strides, and their channels."""
    known: Sequence[Mapping[str, Any]] = list(getattr(backbone, "feature_info", ()))
    found = {info["reduction"]: (index, info["num_chs"]) for index, info in enumerate(known)}
    if not (hasattr(backbone, "forward_intermediates") and set(STRIDES) <= set(found)):
        raise ValueError(
            f"{type(backbone).__name__} has no four levels at strides 4 to 32, which detection is built on."
        )
    indices, widths = zip(*(found[stride] for stride in STRIDES), strict=True)
    return list(indices), list(widths)


def check_pyramid(pyramid: Pyramid, name: str) -> None:
    """Show the backbone an image of odd sides; ValueError if it does not take images of any size."""
    was_training = pyramid.training
    try:
        with torch.inference_mode():
            pyramid.eval()(torch.zeros(1, 3, 65, 97))
    except Exception as error:  # each model refuses in its own way
        why = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"{name} cannot detect: it does not take images of any size ({why}).") from error
    finally:
        pyramid.train(was_training)


class Detector(nn.Module):
    """Finds objects of `num_classes` classes, and with `masks` their outlines.

    `mean` and `std` are those that the backbone's images were normalised by.
    """

    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int,
        recipe: Detect,
        *,
        masks: bool,
        mean: Sequence[float],
        std: Sequence[float],
    ) -> None:
        super().__init__()
        self.num_classes, self.recipe = num_classes, recipe
        self.mean = nn.Buffer(torch.tensor(mean)[:, None, None], persistent=False)  # (3, 1, 1)
        self.std = nn.Buffer(torch.tensor(std)[:, None, None], persistent=False)
        self.pyramid = Pyramid(backbone, recipe.fpn_channels, len(recipe.anchor_sizes))
        self.rpn = _make_rpn(recipe)
        self.roi_heads = _make_roi_heads(recipe, num_classes + 1, masks)

    def forward(self, images: Sequence[Tensor] | Tensor, targets: Sequence[Target] | None = None) -> Any:
        """In training the losses by name; else what is found in each image, best first.

        Args:
            images: of (3, H, W) in 0..1, of any sizes.
            targets: of each image, in training.

        Returns:
            By image `boxes` (N, 4), left, top, right and bottom in its pixels, `scores` and `labels` (N,),
            and with masks `masks` (N, 1, 28, 28), probabilities in a box cut into 28 x 28; see `at_size`.
        """
        found: list[Any] = [None] * len(images)
        losses: dict[str, Tensor] = {}
        for members in _by_size(images):
            wanted = [targets[index] for index in members] if targets is not None else None
            batch = torch.stack([images[index] for index in members])  # (B, 3, H, W)
            each, parts = self._same_size(batch, wanted)
            for index, one in zip(members, each, strict=True) if not self.training else ():
                found[index] = one
            for name, value in parts.items():
                losses[name] = losses.get(name, 0) + value * (len(members) / len(images))
        return losses if self.training else found

    def _same_size(
        self, images: Tensor, targets: list[Any] | None
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        sizes = [cast(tuple[int, int], tuple(images.shape[-2:]))] * len(images)
        features = self.pyramid((images - self.mean) / self.std)
        proposals, losses = self.rpn(ImageList(images, sizes), features, targets)
        found, more = self.roi_heads(features, proposals, sizes, targets)
        return found, losses | more

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the backbone's activations in the backward pass instead of keeping them."""
        cast(Any, self.pyramid.backbone).set_grad_checkpointing(enable)

    def head_macs(self, height: int, width: int) -> dict[str, Macs]:
        """Multiply-accumulates of the heads on one image, each head's at its full count.

        The box head sees `detect.proposals` boxes, the mask head `detect.detections`; pooling is not counted.
        """
        recipe, channels = self.recipe, self.recipe.fpn_channels
        positions = sum(h * w for h, w in self.pyramid.maps(height, width))
        classes, anchors, width = self.num_classes + 1, len(RATIOS), recipe.box_width
        box = BOX_SIZE**2 * channels * width + width**2 + 5 * classes * width
        macs = {
            "rpn": Macs(positions * channels * (9 * channels + 5 * anchors)),
            "box": Macs(recipe.proposals * box),
        }
        if self.roi_heads.has_mask():
            mask = recipe.mask_width
            convs = MASK_SIZE**2 * 9 * mask * (channels + (MASK_CONVS - 1) * mask)
            upsampled = (2 * MASK_SIZE) ** 2 * mask * (mask + classes)  # a position comes from a single one
            macs["mask"] = Macs(recipe.detections * (convs + upsampled))
        return macs


def _by_size(images: Sequence[Tensor] | Tensor) -> list[list[int]]:
    """The places of the images of each size."""
    groups: dict[torch.Size, list[int]] = {}
    for index, image in enumerate(images):
        groups.setdefault(image.shape, []).append(index)
    return list(groups.values())


def at_size(
    found: Mapping[str, Tensor], size: tuple[int, int], original: tuple[int, int]
) -> dict[str, Tensor]:
    """What was found in an image of `size` (height, width), in the pixels of the original image.

    Masks become (N, height, width) of uint8, 1 within an object.
    """
    boxes = resize_boxes(found["boxes"], list(size), list(original))
    answer = {"boxes": boxes, "scores": found["scores"], "labels": found["labels"]}
    if "masks" in found:
        pasted = paste_masks_in_image(found["masks"], boxes, original)  # (N, 1, height, width)
        answer["masks"] = (pasted[:, 0] > 0.5).to(torch.uint8)
    return answer


# torchvision's parts, with what the detector's numbers must be


class _Anchors(AnchorGenerator):
    """Anchors at the strides 4, 8, 16, ..., the same for every image of a size."""

    def forward(self, image_list: ImageList, feature_maps: list[Tensor]) -> list[Tensor]:
        device = feature_maps[0].device
        self.set_cell_anchors(torch.float32, device)
        grids = [list(each.shape[-2:]) for each in feature_maps]
        strides = [
            [torch.tensor(STRIDES[0] * 2**level, device=device)] * 2 for level in range(len(feature_maps))
        ]
        return [torch.cat(self.grid_anchors(grids, strides))] * len(image_list.image_sizes)


class _RpnHead(RPNHead):
    def forward(self, x: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        scores, deltas = super().forward(x)
        return [each.float() for each in scores], [each.float() for each in deltas]


class _BoxPredictor(FastRCNNPredictor):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scores, deltas = super().forward(x)
        return scores.float(), deltas.float()


class _MaskPredictor(MaskRCNNPredictor):
    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - its name in torch
        return super().forward(input).float()


def _make_rpn(recipe: Detect) -> RegionProposalNetwork:
    channels, proposals = recipe.fpn_channels, recipe.proposals
    sizes = tuple((size,) for size in recipe.anchor_sizes)
    return RegionProposalNetwork(
        _Anchors(sizes, (RATIOS,) * len(sizes)),
        _RpnHead(channels, len(RATIOS)),
        fg_iou_thresh=0.7,
        bg_iou_thresh=0.3,
        batch_size_per_image=recipe.rpn_samples,
        positive_fraction=0.5,
        pre_nms_top_n={"training": 2 * proposals, "testing": proposals},  # of each map
        post_nms_top_n={"training": proposals, "testing": proposals},
        nms_thresh=0.7,
    )


def _make_roi_heads(recipe: Detect, outputs: int, masks: bool) -> RoIHeads:
    channels, width = recipe.fpn_channels, recipe.box_width
    mask_parts = {}
    if masks:
        mask_parts = {
            "mask_roi_pool": _make_pool(MASK_SIZE),
            "mask_head": MaskRCNNHeads(channels, [recipe.mask_width] * MASK_CONVS, dilation=1),
            "mask_predictor": _MaskPredictor(recipe.mask_width, recipe.mask_width, outputs),
        }
    return RoIHeads(
        _make_pool(BOX_SIZE),
        TwoMLPHead(channels * BOX_SIZE**2, width),
        _BoxPredictor(width, outputs),
        fg_iou_thresh=0.5,
        bg_iou_thresh=0.5,
        batch_size_per_image=recipe.roi_samples,
        positive_fraction=0.25,
        bbox_reg_weights=None,
        score_thresh=0.05,
        nms_thresh=0.5,
        detections_per_img=recipe.detections,
        **mask_parts,
    )


def _make_pool(size: int) -> MultiScaleRoIAlign:
    """Boxes pooled from the map for their size; torchvision would guess the scales from the first batch."""
    pool = MultiScaleRoIAlign(list(_LEVELS), size, sampling_ratio=2)
    pool.scales = [1 / stride for stride in STRIDES]
    pool.map_levels = initLevelMapper(2, 5, canonical_scale=224, canonical_level=4)
    return pool
