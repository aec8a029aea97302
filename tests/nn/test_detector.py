"""Detectors: pyramids of any size, nothing from batch mates, gradients everywhere, exact MACs and boxes."""

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models.detection.image_list import ImageList

from stmbench.measure.count import count
from stmbench.nn import create_model
from stmbench.nn.detector import Detector, at_size, check_pyramid
from stmbench.sections import Detect
from stmbench.training.optimizer import parameter_layers

MIXERS = ("halo", "swin", "sra", "dwconv", "dcnv3")
SMALL = Detect(
    fpn_channels=16,
    anchor_sizes=(16, 32, 64, 128, 256),
    proposals=20,
    detections=5,
    box_width=32,
    mask_width=8,
)


def make(
    mixer: str = "dwconv",
    recipe: Detect = SMALL,
    *,
    classes: int = 3,
    masks: bool = True,
    drop_path: float = 0.0,
) -> Detector:
    torch.manual_seed(0)
    backbone = create_model(mixer, "micro", num_classes=0, drop_path=drop_path)
    return Detector(backbone, classes, recipe, masks=masks, mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2))


def target(boxes: list[list[int]], height: int, width: int) -> dict[str, Tensor]:
    masks = torch.zeros(len(boxes), height, width, dtype=torch.uint8)
    for mask, (left, top, right, bottom) in zip(masks, boxes, strict=True):
        mask[top:bottom, left:right] = 1
    labels = torch.arange(len(boxes)) % 3 + 1
    return {
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "labels": labels,
        "masks": masks,
    }


def two_images() -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """Of different sizes, neither a multiple of anything."""
    torch.manual_seed(1)
    images = [torch.rand(3, 75, 101), torch.rand(3, 96, 66)]
    return images, [
        target([[10, 10, 50, 60], [55, 5, 95, 40]], 75, 101),
        target([[5, 20, 45, 80]], 96, 66),
    ]


@pytest.mark.parametrize("height", [800, 801])
@pytest.mark.parametrize("mixer", MIXERS)
def test_the_pyramid_has_its_sizes_at_the_sizes_of_coco(mixer: str, height: int) -> None:
    pyramid = make(mixer).pyramid.eval()
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():  # sizes without numbers
        maps = pyramid(torch.zeros(1, 3, height, 1333))
    wanted = [(-(-height // stride), -(-1333 // stride)) for stride in (4, 8, 16, 32, 64)]
    assert [tuple(each.shape) for each in maps.values()] == [(1, 16, *size) for size in wanted]
    assert pyramid.maps(height, 1333) == wanted


@pytest.mark.slow
@pytest.mark.parametrize("height", [800, 801])
@pytest.mark.parametrize("mixer", MIXERS)
def test_the_pyramid_of_a_real_image_is_finite(mixer: str, height: int) -> None:
    pyramid = make(mixer, Detect()).pyramid.eval()
    with torch.inference_mode():
        maps = pyramid(torch.rand(1, 3, height, 1333))
    assert [tuple(each.shape[2:]) for each in maps.values()] == pyramid.maps(height, 1333)
    assert all(each.isfinite().all() for each in maps.values())


@pytest.mark.parametrize("mixer", MIXERS)
def test_what_is_found_does_not_depend_on_the_images_beside(mixer: str) -> None:
    model = make(mixer).eval()
    model.roi_heads.score_thresh = 0.0  # an untrained detector is sure of nothing
    images, _ = two_images()
    with torch.inference_mode():
        together, alone = model(images), [model([image])[0] for image in images]
    for one, other in zip(together, alone, strict=True):
        assert one.keys() == other.keys() == {"boxes", "scores", "labels", "masks"}
        assert len(one["boxes"]) == 5
        assert all(torch.equal(one[key], other[key]) for key in one)


def test_the_loss_of_a_batch_is_the_mean_of_its_images_losses() -> None:
    everything: Any = {"rpn_samples": 10**6, "roi_samples": 10**6}  # none is drawn
    model = make(recipe=Detect(fpn_channels=16, anchor_sizes=(16, 32, 64, 128), proposals=20, **everything))
    images, targets = two_images()
    together = model(images, targets)
    alone = [model([image], [each]) for image, each in zip(images, targets, strict=True)]
    assert together.keys() == {
        "loss_objectness", "loss_rpn_box_reg", "loss_classifier", "loss_box_reg", "loss_mask"
    }  # fmt: skip
    for name, loss in together.items():
        torch.testing.assert_close(loss, (alone[0][name] + alone[1][name]) / 2)


@pytest.mark.parametrize("mixer", MIXERS)
def test_every_parameter_gets_a_gradient(mixer: str) -> None:
    model = make(mixer).train()
    for name, parameter in model.named_parameters():
        if name.endswith((".offset.weight", ".modulation.weight")):
            nn.init.normal_(parameter, std=0.02)  # where these are 0, what is before them learns nothing yet
    torch.stack([*model(*two_images()).values()]).sum().backward()
    assert [name for name, each in model.named_parameters() if each.grad is None or not each.grad.any()] == []


def test_images_without_objects_are_trained_on_as_background() -> None:
    model = make().train()
    losses = model([torch.rand(3, 64, 64)] * 2, [target([], 64, 64)] * 2)
    assert losses["loss_objectness"] > 0
    assert losses["loss_classifier"] > 0
    assert losses["loss_rpn_box_reg"] == losses["loss_box_reg"] == losses["loss_mask"] == 0
    torch.stack(
        [*losses.values()]
    ).sum().backward()  # every parameter has one, or processes would wait for each other
    assert all(each.grad is not None for each in model.parameters())


def test_without_masks_there_is_no_mask_head() -> None:
    model = make(masks=False)
    images, targets = two_images()
    boxes_only = [{key: each[key] for key in ("boxes", "labels")} for each in targets]
    assert "loss_mask" not in model(images, boxes_only)
    model.eval().roi_heads.score_thresh = 0.0
    assert model(images)[0].keys() == {"boxes", "scores", "labels"}
    assert model.head_macs(64, 64).keys() == {"rpn", "box"}


def test_a_detector_learns_one_image_by_heart() -> None:
    image = torch.full((3, 64, 64), 0.2)
    image[:, 8:40, 16:56] = 0.9
    small: Any = {"fpn_channels": 16, "box_width": 64, "mask_width": 16, "rpn_samples": 64, "roi_samples": 32}
    model = make(recipe=Detect(anchor_sizes=(16, 32, 64, 128), proposals=50, **small))
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    wanted = target([[16, 8, 56, 40]], 64, 64)
    for _ in range(90):
        optimizer.zero_grad()
        torch.stack([*model([image], [wanted]).values()]).sum().backward()
        optimizer.step()
    with torch.inference_mode():
        (found,) = model.eval()([image])
    assert found["labels"][0] == 1
    torch.testing.assert_close(found["boxes"][0], torch.tensor([16.0, 8.0, 56.0, 40.0]), atol=4.0, rtol=0)
    mask = at_size(found, (64, 64), (64, 64))["masks"][0]
    assert mask[12:36, 20:52].float().mean() > 0.9
    assert mask.sum() < 1.3 * 32 * 40


def test_anchors_lie_at_the_strides_whatever_the_size() -> None:
    model = make()
    height, width = 801, 1333
    maps = [torch.zeros(1, 16, *size) for size in model.pyramid.maps(height, width)]
    (anchors,) = model.rpn.anchor_generator(ImageList(torch.zeros(0), [(height, width)]), maps)
    centres = (anchors[:, :2] + anchors[:, 2:]) / 2  # (N, 2)
    start = 0
    for stride, each in zip((4, 8, 16, 32, 64), maps, strict=True):
        rows, columns = each.shape[2:]
        count = 3 * rows * columns
        assert centres[start + count - 1].tolist() == [stride * (columns - 1), stride * (rows - 1)]
        start += count
    assert start == len(anchors)


def test_boxes_are_exact_under_autocast() -> None:
    model = make(recipe=Detect(fpn_channels=16, proposals=200)).eval()
    head: Any = model.rpn.head
    nn.init.zeros_(head.bbox_pred.weight)  # what is proposed are the anchors themselves
    size, image = (300, 1001), torch.rand(1, 3, 300, 1001)
    listed = ImageList(image, [size])
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        maps = model.pyramid(image)
        (proposals,), _ = model.rpn(listed, maps)
        found = model([image[0]])[0]
    (anchors,) = model.rpn.anchor_generator(listed, list(maps.values()))
    clipped = anchors.clamp(min=0).minimum(torch.tensor([1001, 300, 1001, 300]))
    assert proposals.dtype == found["boxes"].dtype == found["masks"].dtype == torch.float32
    nearest = torch.cdist(proposals, clipped, p=torch.inf, compute_mode="donot_use_mm_for_euclid_dist").min(1)
    assert nearest.values.max() < 1e-3


def test_losses_under_autocast_are_nearly_those_without() -> None:
    everything: Any = {"rpn_samples": 10**6, "roi_samples": 10**6}
    model = make(recipe=Detect(fpn_channels=16, anchor_sizes=(16, 32, 64, 128), proposals=1, **everything))
    wanted = model(*two_images())
    with torch.autocast("cpu", torch.bfloat16):
        found = model(*two_images())
    assert all(each.dtype == torch.float32 for each in found.values())
    for name, loss in found.items():
        torch.testing.assert_close(loss, wanted[name], rtol=0.1, atol=0.02)


def test_what_was_found_is_told_in_the_pixels_of_the_original() -> None:
    found = {
        "boxes": torch.tensor([[10.0, 20.0, 30.0, 60.0]]),
        "scores": torch.tensor([0.5]),
        "labels": torch.tensor([2]),
        "masks": torch.ones(1, 1, 28, 28),
    }
    answer = at_size(found, (100, 50), (200, 150))
    assert answer["boxes"].tolist() == [[30, 40, 90, 120]]
    assert answer["masks"].shape == (1, 200, 150)
    rows, columns = (answer["masks"][0].any(dim).nonzero().flatten() for dim in (1, 0))
    edges = [int(each) for each in (rows[0], rows[-1], columns[0], columns[-1])]
    assert edges == pytest.approx([40, 119, 30, 89], abs=1)


@pytest.mark.parametrize("mixer", MIXERS)
def test_backbone_and_neck_cost_what_was_counted(mixer: str) -> None:
    counted = count(make(mixer).pyramid.eval(), (3, 97, 130))
    assert counted.disagreement == 0
    assert "head" not in {part.name for part in counted.parts}
    (neck,) = [part for part in counted.parts if part.name == "neck"]
    assert neck.macs > 0


def test_heads_cost_what_was_counted() -> None:
    with torch.device("meta"):
        model = make(recipe=Detect(), classes=80).eval()
        maps = [torch.zeros(1, 256, *size) for size in model.pyramid.maps(800, 1280)]
        boxes, masks = torch.zeros(1000, 256, 7, 7), torch.zeros(100, 256, 14, 14)
    heads: Any = model.roi_heads
    macs = {name: form.total for name, form in model.head_macs(800, 1280).items()}
    assert macs == {
        "rpn": _counted(lambda: model.rpn.head(maps)),
        "box": _counted(lambda: heads.box_predictor(heads.box_head(boxes))),
        "mask": _counted(lambda: heads.mask_predictor(heads.mask_head(masks))),
    }


def _counted(compute: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        compute()
    return counter.get_total_flops() // 2


def test_neck_and_heads_learn_at_the_full_rate() -> None:
    layers = parameter_layers(make())
    last = max(layers.values())
    assert {layers[name] for name in layers if not name.startswith("pyramid.backbone.")} == {last}
    assert layers["pyramid.backbone.stem.first.conv.weight"] == 0
    assert layers["pyramid.backbone.levels.0.blocks.0.mlp.fc1.weight"] < last


def test_models_of_timm_with_four_levels_can_detect() -> None:
    backbone = timm.create_model("resnet18", num_classes=0)
    model = Detector(backbone, 2, SMALL, masks=False, mean=(0.5,) * 3, std=(0.2,) * 3).eval()
    assert model.pyramid.widths == [64, 128, 256, 512]
    check_pyramid(model.pyramid, "timm:resnet18")
    assert model.pyramid.maps(65, 97)[0] == tuple(model.pyramid(torch.zeros(1, 3, 65, 97))["0"].shape[2:])


def test_what_cannot_detect_says_so() -> None:
    without = timm.create_model("vit_tiny_patch16_224", num_classes=0)
    with pytest.raises(ValueError, match="VisionTransformer has no four levels at strides 4 to 32"):
        Detector(without, 2, SMALL, masks=False, mean=(0.5,) * 3, std=(0.2,) * 3)
    fixed = timm.create_model("swin_tiny_patch4_window7_224", num_classes=0)
    model = Detector(fixed, 2, SMALL, masks=False, mean=(0.5,) * 3, std=(0.2,) * 3)
    with pytest.raises(ValueError, match=r"timm:swin cannot detect: it does not take images of any size \("):
        check_pyramid(model.pyramid, "timm:swin")
