"""Fixtures: a small image data set, and recipes that fit it."""

from collections.abc import Callable
from pathlib import Path

import pytest
from samples import CLASSES, write_image

from stmbench import recipe
from stmbench.recipe import Recipe


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Class folders: 4 training and 2 validation PNGs in each of three classes."""
    root = tmp_path / "animals"
    for label, name in enumerate(CLASSES):
        for i in range(4):
            write_image(root / "train" / name / f"{i}.png", 20 * label + i)
        for i in range(2):
            write_image(root / "val" / name / f"{i}.png", 100 + 20 * label + i)
    return root


@pytest.fixture
def small() -> Callable[..., Recipe]:
    """A recipe for 8x8 images without augmentation, and what a test changes in it."""

    def make(*overrides: str) -> Recipe:
        plain = (
            "data.image_size=8",
            "data.crop_pct=1.0",
            "augment.hflip=0",
            "eval.batch_size=4",
            "train.batch_size=4",
        )
        return recipe.load("quick", [*plain, *overrides])

    return make
