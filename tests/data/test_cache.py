"""Decoded images in memory: the same pixels, read once, never more than may be kept."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from samples import truncate

from stmbench import data
from stmbench.data import Images, images, loaders
from stmbench.data.cache import PixelCache
from stmbench.recipe import Recipe

IMAGE_BYTES = 10 * 12  # of one of the folder's 12 images in grey


@pytest.fixture
def cached(folder: Path, small: Callable[..., Recipe]) -> Callable[..., data.Loader]:
    def make(*overrides: str) -> data.Loader:
        augmented = ("augment.hflip=0.5", "augment.scale=[0.3, 1.0]", 'augment.auto_augment="rand-m9"')
        recipe = small(*augmented, *overrides)
        return data.train_loader(data.find(str(folder)), recipe, device="cpu", seed=0, micro_batch=4)

    return make


def budget(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr(loaders, "memory_budget", lambda: size)


def cache_of(loader: data.Loader) -> PixelCache | None:
    assert isinstance(loader.dataset, Images)
    return loader.dataset.cache


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_an_image_comes_back_as_it_was(mode: str) -> None:
    cache = PixelCache(3, budget=10_000)
    shapes = [(5, 7), (9, 2)]
    channels = (3,) if mode == "RGB" else ()
    pixels = [np.random.default_rng(i).integers(0, 256, (*shapes[i], *channels), np.uint8) for i in (0, 1)]
    for index, label in ((2, 10), (0, 11)):
        cache.put(index, Image.fromarray(pixels[index // 2]), label)
    for index, label in ((2, 10), (0, 11)):
        found = cache.get(index, mode)
        assert found is not None
        assert (found[0].mode, found[1]) == (mode, label)
        assert np.array_equal(np.asarray(found[0]), pixels[index // 2])
    assert cache.get(1, mode) is None


def test_the_budget_is_kept() -> None:
    image = Image.new("L", (10, 10), 7)
    cache = PixelCache(5, budget=250)
    for index in range(5):
        cache.put(index, image, index)
    assert cache.used == 200
    assert [cache.get(index, "L") is not None for index in range(5)] == [True, True, False, False, False]
    cache.put(4, Image.new("L", (5, 10)), 4)  # what still fits is kept
    assert cache.used == 250


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("colour", [(), ("data.channels=3", "data.mean=[0,0,0]", "data.std=[1,1,1]")])
def test_training_is_the_same_and_reads_every_file_once(
    cached: Callable[..., data.Loader], folder: Path, workers: int, colour: tuple[str, ...]
) -> None:
    recipe = (f"data.workers={workers}", *colour)
    plain, loader = cached("data.cache=none", *recipe), cached("data.cache=memory", *recipe)
    expected = [list(plain) for _ in range(3)]
    found = [list(loader)]
    for path in (folder / "train").rglob("*.png"):
        path.unlink()
    found += [list(loader) for _ in range(2)]
    for one, other in zip(found, expected, strict=True):
        assert all(
            torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) for a, b in zip(one, other, strict=True)
        )
    cache = cache_of(loader)
    assert cache is not None
    assert cache.used == 12 * IMAGE_BYTES * (3 if colour else 1)


def test_where_not_all_fit_those_that_do_are_kept(
    cached: Callable[..., data.Loader], monkeypatch: pytest.MonkeyPatch
) -> None:
    budget(monkeypatch, 5 * IMAGE_BYTES + 1)
    plain, loader = cached("data.cache=none", "data.workers=2"), cached("data.cache=memory", "data.workers=2")
    for _ in range(2):
        assert all(torch.equal(a[0], b[0]) for a, b in zip(loader, plain, strict=True))
    cache = cache_of(loader)
    assert cache is not None
    assert cache.used == 5 * IMAGE_BYTES


def test_auto_keeps_all_or_nothing(
    cached: Callable[..., data.Loader], monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = 12 * IMAGE_BYTES * loaders.MARGIN
    for size, keeps in ((int(needed) + 1, True), (int(needed) - 1, False)):
        budget(monkeypatch, size)
        assert (cache_of(cached("schedule.epochs=2")) is not None) == keeps
    budget(monkeypatch, 10**6)
    assert cache_of(cached("schedule.epochs=1", "schedule.warmup_epochs=0")) is None  # each is read once


def test_unreadable_images_are_not_kept_and_counted_once(
    cached: Callable[..., data.Loader], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "MOST_UNREADABLE", 0.5)
    truncate(folder / "train" / "bee" / "0.png")
    loader = cached("data.cache=memory")
    for _ in range(2):
        assert sum(len(labels) for _, labels in loader) == 12
    assert loader.skipped == 1
    cache = cache_of(loader)
    assert cache is not None
    assert cache.used == 11 * IMAGE_BYTES


def test_what_lies_in_memory_anyway_is_not_kept_twice(small: Callable[..., Recipe]) -> None:
    recipe: Any = small("data.cache=memory")
    loader = data.train_loader(data.find("fashion-mini"), recipe, device="cpu", seed=0, micro_batch=4)
    assert cache_of(loader) is None
