"""Canvases hold the plain crop bit for bit, go on by reflection, and come from one decoded image."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image
from samples import truncate

from stmbench import data
from stmbench.data import Canvases, Part, Variant, canvas_loader
from stmbench.data.canvas import central, crop, reflect, resize, shorter_side, window
from stmbench.data.images import UNREADABLE
from stmbench.recipe import Recipe

WIDE = ("data.channels=3", "data.mean=[0.5,0.4,0.3]", "data.std=[0.2,0.3,0.4]", "data.interpolation=bicubic")


def canvases_of(folder: Path, recipe: Recipe, count: int = 0, **options: object) -> Canvases:
    part, _ = data.spread(data.find(str(folder)), count)
    return Canvases(cast(Part, part.val), recipe.data, **options)  # pyright: ignore[reportArgumentType]


def items(canvases: Canvases) -> list[Any]:
    return [canvases[index] for index in range(len(canvases))]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Class folders of colour images: wide, tall, square and odd."""
    root = tmp_path / "photos"
    for label, size in enumerate([(41, 29), (29, 64), (37, 37), (50, 33)]):
        for split in ("train", "val"):
            rng = np.random.default_rng(label)
            path = root / split / f"class{label}" / "image.png"
            path.parent.mkdir(parents=True)
            Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)).save(path)
    return root


@pytest.mark.parametrize("crop_pct", [0.875, 0.6, 1.0])
def test_a_canvas_has_the_plain_crop_in_its_middle_bit_for_bit(
    photos: Path, small: Callable[..., Recipe], crop_pct: float
) -> None:
    recipe = small(*WIDE, "data.image_size=15", f"data.crop_pct={crop_pct}")
    canvases = canvases_of(photos, recipe, margin=40)
    images, labels = zip(*data.eval_loader(data.find(str(photos)), recipe, device="cpu"), strict=True)
    mean, std = (torch.tensor(values).view(3, 1, 1) * 255 for values in (recipe.data.mean, recipe.data.std))
    plain = [(central(views["canvas"], 15).float() - mean) / std for views, _ in items(canvases)]
    assert torch.equal(torch.stack(plain), torch.cat(images))
    assert [label for _, label in items(canvases)] == torch.cat(labels).tolist()


@pytest.mark.parametrize("ratio", [0.2, 0.5, 0.83, 1.0])
def test_a_crop_is_what_evaluation_shows_at_that_crop_pct(
    photos: Path, small: Callable[..., Recipe], ratio: float
) -> None:
    at_ratio = small(*WIDE, "data.image_size=15", f"data.crop_pct={ratio}")
    expected, _ = next(iter(data.eval_loader(data.find(str(photos)), at_ratio, device="cpu")))
    canvases = canvases_of(
        photos, small(*WIDE, "data.image_size=15"), made=[Variant("jpeg", 90), Variant("scale", ratio)]
    )
    mean, std = (torch.tensor(v).view(3, 1, 1) * 255 for v in (at_ratio.data.mean, at_ratio.data.std))
    made = torch.stack([views["made"][1] for views, _ in items(canvases)])
    differences = (made - (expected * std + mean)).abs()
    assert differences.max() < 2.01  # Pillow keeps the corners of what it resamples in single precision
    assert differences.mean() < 0.02


def test_a_crop_larger_than_the_image_goes_on_by_reflection(small: Callable[..., Recipe]) -> None:
    recipe = small("data.image_size=8")
    image = Image.fromarray(np.random.default_rng(0).integers(1, 256, (20, 30), np.uint8))
    whole = np.asarray(resize(image, 4, recipe.data))  # (4, 6)
    found = crop(image, 2.0, recipe.data)
    assert found.shape == (8, 8)
    assert found.min() > 0
    assert (found[2:6, 1:7] == whole).all()
    assert (found[1] == found[3]).all()  # across the first row of the image, which is not repeated
    assert (found[6] == found[4]).all()


def test_a_window_far_beyond_a_small_image_is_reflected_as_often_as_need_be() -> None:
    assert reflect(np.arange(-7, 8), 3).tolist() == [1, 2, 1, 0, 1, 2, 1, 0, 1, 2, 1, 0, 1, 2, 1]
    assert reflect(np.arange(-3, 4), 1).tolist() == [0] * 7
    pixels = np.arange(4, dtype=np.uint8).reshape(2, 2)
    assert window(pixels, 2, margin=4)[4:6, 4:6].tolist() == pixels.tolist()
    assert set(window(pixels, 2, margin=4).ravel().tolist()) == {0, 1, 2, 3}


def test_the_shorter_side_is_rounded_as_timm_rounds_it() -> None:
    assert [shorter_side(224, ratio) for ratio in (0.875, 1.0, 0.95, 2.0, 300)] == [256, 224, 235, 112, 1]


def test_noise_depends_on_the_image_s_own_index_alone(photos: Path, small: Callable[..., Recipe]) -> None:
    recipe = small(*WIDE)
    every, few = canvases_of(photos, recipe), canvases_of(photos, recipe, 2)
    assert few.indices == (0, 2)
    assert torch.equal(few[1][0]["noise"], every[2][0]["noise"])
    assert not torch.equal(every[1][0]["noise"], every[2][0]["noise"])
    assert every[0][0]["noise"].float().std() == pytest.approx(1, abs=0.2)


def test_an_unreadable_image_keeps_its_place_and_is_counted(
    photos: Path, small: Callable[..., Recipe]
) -> None:
    truncate(photos / "val" / "class1" / "image.png")
    canvases = canvases_of(photos, small(*WIDE), margin=2)
    loader = canvas_loader(canvases, batch_size=3, device="cpu")
    labels = torch.cat([labels for _, labels in loader])
    assert labels.tolist() == [0, UNREADABLE, 2, 3]
    assert canvases.images.skipped == 1
    with pytest.raises(data.UnreadableImagesError, match=r"class1/image\.png"):
        canvases.check_skipped()


def test_jpeg_is_worse_the_lower_its_quality(photos: Path, small: Callable[..., Recipe]) -> None:
    recipe = small(*WIDE, "data.image_size=24")
    canvases = canvases_of(photos, recipe, made=[Variant("jpeg", 95), Variant("jpeg", 5)])
    views, _ = canvases[0]
    errors = (views["made"].float() - views["canvas"].float()).abs().mean((1, 2, 3))
    assert 0 < errors[0] < errors[1]
