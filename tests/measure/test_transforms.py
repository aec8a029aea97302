"""Every transformation does what it is called, and nothing at its reference strength."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as v2

from stmbench.data import Variant
from stmbench.data.canvas import window
from stmbench.measure import transforms
from stmbench.measure.transforms import DIRECTIONS, Batch
from stmbench.recipe import Data, Invariance

SIZE, MARGIN = 16, 12
DATA = Data(image_size=SIZE, mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3))
EVERY = transforms.variants(
    Invariance(translation=(0, 3, 12), rotation=(0, 20, 90), scale=(0.5, 0.875), jpeg=(50,), blur=(1.5,)),
    0.875,
)
ON_DEVICE = [each for each in EVERY if each.transform not in transforms.MADE]


def views(count: int = 5, size: int = SIZE, margin: int = MARGIN) -> dict[str, Tensor]:
    rng = np.random.default_rng(0)
    canvases = []
    for _ in range(count):
        smooth = np.kron(rng.integers(20, 236, (6, 6, 3)), np.ones((6, 6, 1))).astype(np.uint8)
        canvases.append(torch.from_numpy(window(smooth, size, margin).transpose(2, 0, 1).copy()))
    noise = torch.from_numpy(rng.standard_normal((count, 3, size, size), np.float32)).half()
    return {"canvas": torch.stack(canvases), "made": torch.empty(count, 0), "noise": noise}


def batch_of(found: dict[str, Tensor], data: Data = DATA) -> Batch:
    return Batch(found, (), data, "cpu")


def pixels(images: Tensor, data: Data = DATA) -> Tensor:
    """Back from the network's numbers to those from 0 to 255."""
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (data.mean, data.std))
    return 255 * (images * std + mean)


def test_the_recipe_s_strengths_become_variants_once_each() -> None:
    assert len(set(EVERY)) == len(EVERY)
    counts = {
        name: sum(each.transform == name for each in EVERY) for name in ("translation", "scale", "flip")
    }
    assert counts == {"translation": 16, "scale": 1, "flip": 1}  # 0 and the reference 0.875 do nothing
    off: dict[str, Any] = dict.fromkeys(
        ("translation", "rotation", "scale", "jpeg", "blur", "noise", "contrast"), ()
    )
    assert transforms.variants(Invariance(flip=False, **off), 0.875) == []


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_translation_shows_what_lies_beside_the_window(direction: str) -> None:
    found = views()
    down, right = DIRECTIONS[direction]
    top, left = MARGIN + 5 * down, MARGIN + 5 * right
    by_hand = found["canvas"][:, :, top : top + SIZE, left : left + SIZE].float()
    moved = batch_of(found).apply(Variant("translation", 5, direction))
    assert torch.allclose(pixels(moved), by_hand, atol=1e-3)


def test_the_directions_are_the_eight_of_the_compass() -> None:
    assert set(DIRECTIONS.values()) == {(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1)} - {(0, 0)}
    assert DIRECTIONS["SW"] == (1, -1)  # down and to the left


def test_a_translation_far_beyond_the_image_is_not_black() -> None:
    chosen = [variant for variant in EVERY if variant.transform == "translation"]
    found = views(margin=transforms.margin_for(chosen, SIZE))
    found["canvas"] = found["canvas"].clamp(min=100)
    for variant in chosen:
        assert pixels(batch_of(found).apply(variant)).min() >= 99.9


@pytest.mark.parametrize("degrees", [20, 45, 77])
def test_a_turn_does_not_see_the_canvas_s_edge(degrees: float) -> None:
    variant = Variant("rotation_before", degrees)
    margin = transforms.margin_for([variant], SIZE)
    assert margin < SIZE / 2
    found = views(margin=margin)
    further = {**found, "canvas": nn.functional.pad(found["canvas"], (6, 6, 6, 6), value=0)}
    assert torch.allclose(batch_of(further).apply(variant), batch_of(found).apply(variant), atol=1e-4)


@pytest.mark.parametrize("transform", ["rotation_before", "rotation_after"])
def test_a_quarter_turn_is_a_quarter_turn(transform: str) -> None:
    batch = batch_of(views())
    turned = batch.apply(Variant(transform, 90))
    assert torch.allclose(turned, torch.rot90(batch.plain, 1, (2, 3)), atol=1e-4)


def test_a_turn_is_counter_clockwise_as_torchvision_has_it() -> None:
    batch = batch_of(views())
    smooth = v2.gaussian_blur(batch.canvas, [9, 9], [3.0, 3.0])
    turned = batch.turned(smooth, 30, "border")
    theirs = v2.rotate(smooth, 30, v2.InterpolationMode.BILINEAR)[:, :, MARGIN:-MARGIN, MARGIN:-MARGIN]
    assert (turned - theirs).abs().mean() < 0.05 * (turned - batch.plain).abs().mean()


def test_corners_that_a_turned_crop_leaves_open_have_the_mean_colour() -> None:
    turned = batch_of(views()).apply(Variant("rotation_after", 45))
    assert torch.equal(turned[:, :, 0, 0], torch.zeros(5, 3))


@pytest.mark.parametrize(
    "transform", ["translation", "rotation_before", "rotation_after", "noise", "contrast"]
)
def test_at_its_reference_a_transformation_does_nothing(transform: str) -> None:
    batch = batch_of(views())
    strength = transforms.references(0.875)[transform]
    same = batch.apply(Variant(transform, strength, "E"))
    assert torch.allclose(same, batch.plain, atol=1e-4)


@pytest.mark.parametrize(
    "variant", ON_DEVICE, ids=lambda each: f"{each.transform}{each.strength:g}{each.direction}"
)
def test_every_variant_changes_the_images_and_is_the_same_in_any_batch(variant: Variant) -> None:
    found = views()
    batch = batch_of(found)
    changed = batch.apply(variant)
    assert changed.shape == batch.plain.shape
    assert (changed - batch.plain).abs().max() > 0.01
    singles = [
        batch_of({name: view[i : i + 1] for name, view in found.items()}).apply(variant) for i in range(5)
    ]
    assert torch.allclose(torch.cat(singles), changed, atol=1e-5)
    assert pixels(changed).min() >= -0.01
    assert pixels(changed).max() <= 255.01


def test_a_flip_is_from_left_to_right() -> None:
    batch = batch_of(views())
    assert torch.equal(batch.apply(Variant("flip", 1)), batch.plain.flip(3))


@pytest.mark.parametrize(("channels", "size", "sigma"), [(3, 16, 1.0), (1, 28, 4.0)])
def test_blur_is_torchvision_s(channels: int, size: int, sigma: float) -> None:
    data = Data(
        image_size=size, channels=1 if channels == 1 else 3, mean=(0.5,) * channels, std=(0.5,) * channels
    )
    found = {name: view[:, :channels] for name, view in views(size=size).items()}
    batch = batch_of(found, data)
    width = 2 * math.ceil(3 * sigma) + 1
    theirs = v2.gaussian_blur(batch.plain, [width, width], [sigma, sigma])
    assert torch.allclose(batch.apply(Variant("blur", sigma)), theirs, atol=1e-5)


def test_a_blur_wider_than_the_image_leaves_its_mean_colour() -> None:
    blurred = batch_of(views()).apply(Variant("blur", 40))
    assert blurred.std((2, 3)).max() < 0.05


def test_noise_has_the_strength_it_is_given() -> None:
    found = views(8)
    found["canvas"] = torch.full_like(found["canvas"], 127)
    noisy = pixels(batch_of(found).apply(Variant("noise", 0.1)))
    assert float(noisy.std()) == pytest.approx(25.5, rel=0.03)


def test_contrast_fades_to_the_image_s_mean_grey() -> None:
    batch = batch_of(views())
    faded = pixels(batch.apply(Variant("contrast", 0.1)))
    grey = v2.rgb_to_grayscale(batch.pixels).mean((1, 2, 3), keepdim=True)
    assert torch.allclose(faded, grey + 0.1 * (batch.pixels - grey), atol=0.01)
