"""A training batch follows from (seed, epoch, place); evaluation sees every image once; one channel works."""

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from stmbench import data
from stmbench.data import Loader, loaders
from stmbench.data.idx import IdxReader
from stmbench.recipe import Recipe

RANDOM = (
    "augment.hflip=0.5",
    "augment.scale=[0.3, 1.0]",
    "augment.erase=0.5",
    "augment.color_jitter=0.4",
    'augment.auto_augment="rand-m9-mstd0.5-inc1"',
)
COLOUR = ("data.channels=3", "data.mean=[0.5,0.5,0.5]", "data.std=[0.5,0.5,0.5]")


# All that the published protocol does to an image before mixup.
PUBLISHED = (
    *COLOUR,
    "augment.hflip=0.5",
    "augment.scale=[0.08, 1.0]",
    "augment.color_jitter=0.4",
    'augment.auto_augment="rand-m9-mstd0.5-inc1"',
    "augment.erase=0.25",
)


def epoch(loader: Loader, number: int, step: int = 0) -> tuple[Tensor, Tensor]:
    loader.start(number, step)
    images, labels = zip(*loader, strict=True)
    return torch.cat(images), torch.cat(labels)


def same(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> bool:
    return torch.equal(one[0], other[0]) and torch.equal(one[1], other[1])


@pytest.fixture
def training(folder: Path, small: Callable[..., Recipe]) -> Callable[..., Loader]:
    """A training loader of the folder's 12 images, with what the test changes in recipe and loader."""

    def make(*overrides: str, seed: int = 0, micro_batch: int = 2, **options: int) -> Loader:
        recipe = small(*overrides)
        info = data.find(str(folder))
        return data.train_loader(info, recipe, device="cpu", seed=seed, micro_batch=micro_batch, **options)

    return make


@pytest.mark.parametrize("overrides", [RANDOM, PUBLISHED])
def test_an_epoch_follows_from_its_seed_and_number(
    training: Callable[..., Loader], overrides: tuple[str, ...]
) -> None:
    long = training(*overrides)
    epoch(long, 1)
    first = epoch(long, 2)
    assert first[0].shape == (12, len(long.dataset[0][0]), 8, 8)  # pyright: ignore[reportIndexIssue]
    assert same(first, epoch(training(*overrides), 2))
    assert not torch.equal(first[0], epoch(long, 3)[0])
    assert not torch.equal(first[0], epoch(training(*overrides, seed=1), 2)[0])


@pytest.mark.parametrize("workers", [1, 2])
def test_the_number_of_processes_changes_nothing(training: Callable[..., Loader], workers: int) -> None:
    alone, loader = training(*PUBLISHED, "data.workers=0"), training(*PUBLISHED, f"data.workers={workers}")
    assert loader.processes == workers
    for number in (1, 2):
        assert same(epoch(alone, number), epoch(loader, number))


@pytest.mark.parametrize(("micro_batch", "world"), [(2, 2), (2, 3), (3, 2), (5, 2)])
def test_ranks_share_out_the_micro_batches_of_one(
    training: Callable[..., Loader], micro_batch: int, world: int
) -> None:
    alone = training(*PUBLISHED, micro_batch=micro_batch)
    ranks = [training(*PUBLISHED, micro_batch=micro_batch, rank=rank, world=world) for rank in range(world)]
    assert {len(loader) for loader in ranks} == {len(alone) // world}
    for loader in (alone, *ranks):
        loader.start(3)
    dealt = [batch for step in zip(*ranks, strict=True) for batch in step]
    expected = list(alone)[: len(dealt)]
    assert len(dealt) == len(alone) // world * world > 0
    assert all(same(one, other) for one, other in zip(dealt, expected, strict=True))


def test_the_size_of_micro_batches_changes_no_image(training: Callable[..., Loader]) -> None:
    small, large = (training(*PUBLISHED, micro_batch=size) for size in (2, 6))
    assert same(epoch(small, 4), epoch(large, 4))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("step", [1, 5, 6])
def test_an_epoch_resumed_is_the_rest_of_it(training: Callable[..., Loader], workers: int, step: int) -> None:
    recipe = (*PUBLISHED, f"data.workers={workers}")
    whole, resumed = training(*recipe), training(*recipe)
    whole.start(2)
    resumed.start(2, step)
    rest, expected = list(resumed), list(whole)[step:]
    assert len(resumed) == 6
    assert len(rest) == 6 - step
    assert all(same(one, other) for one, other in zip(rest, expected, strict=True))


@pytest.mark.parametrize("workers", [0, 2])
def test_iterations_are_of_one_epoch_after_the_other(training: Callable[..., Loader], workers: int) -> None:
    recipe = (*PUBLISHED, f"data.workers={workers}")
    loader, other = training(*recipe), training(*recipe)
    loader.start(3, 4)
    next(iter(loader))  # left in the middle
    following = [torch.cat([images for images, _ in loader]) for _ in range(2)]
    assert torch.equal(following[0], epoch(other, 4)[0])
    assert torch.equal(following[1], epoch(other, 5)[0])
    assert not torch.equal(*following)


@pytest.mark.parametrize("workers", [0, 2])
def test_the_caller_s_random_numbers_are_left_alone(training: Callable[..., Loader], workers: int) -> None:
    def draw() -> tuple[float, float, float]:
        return random.random(), np.random.rand(), float(torch.rand(()))  # noqa: NPY002

    def seed() -> None:
        random.seed(1)
        np.random.seed(1)  # noqa: NPY002
        torch.manual_seed(1)

    loader = training(*PUBLISHED, f"data.workers={workers}")
    seed()
    expected = draw()
    seed()
    list(loader)
    assert draw() == expected


def test_crop_and_erasing_are_drawn_apart(small: Callable[..., Recipe]) -> None:
    """Had they one seed, a small crop would be an erased one."""
    recipe = small("data.image_size=28", "augment.scale=[0.1, 1.0]", "augment.erase=0.5")
    never = small("data.image_size=28", "augment.scale=[0.1, 1.0]")
    info = data.find("fashion-mini")
    erased, plain = (
        next(iter(data.train_loader(info, each, device="cpu", seed=0, micro_batch=400)))[0]
        for each in (recipe, never)
    )
    touched = (erased != plain).flatten(1).any(1)
    detail = plain.diff(dim=-1).abs().mean((1, 2, 3))  # a magnified crop is smooth
    smooth = detail < detail.median()
    shares = [float(touched[smooth].float().mean()), float(touched[~smooth].float().mean())]
    assert all(0.35 < share < 0.65 for share in shares)


def test_repeats_are_the_same_image_changed_otherwise(training: Callable[..., Loader]) -> None:
    repeats = ("augment.repeats=3", "train.batch_size=6")
    plain = training(*repeats, micro_batch=6)
    plain.start(1)
    for images, labels in plain:
        for together in (images.flatten(1), labels.float().unsqueeze(1)):
            groups = together.view(2, 3, -1)  # (different images, repeats, pixels)
            assert torch.equal(groups, groups[:, :1].expand_as(groups))
        assert not torch.equal(images[0], images[3])
    changed = next(iter(training(*repeats, *PUBLISHED, micro_batch=6)))[0]
    assert len({image.numpy().tobytes() for image in changed}) == 6


def test_training_drops_the_rest_and_shuffles(folder: Path, small: Callable[..., Recipe]) -> None:
    loader = data.train_loader(data.find(str(folder)), small(), device="cpu", seed=0, micro_batch=5)
    orders = [epoch(loader, number)[1].tolist() for number in range(1, 5)]
    assert len(loader) == 2
    assert all(len(order) == 10 for order in orders)
    assert len(set(map(tuple, orders))) == 4


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_sees_every_image_once_in_order(workers: int) -> None:
    from stmbench import recipe

    shipped = recipe.load("quick", [f"data.workers={workers}", "eval.batch_size=300"])
    info = data.find("fashion-mini")
    loader = data.eval_loader(info, shipped, device="cpu")
    images, labels = map(torch.cat, zip(*loader, strict=True))
    reader = info.val
    assert isinstance(reader, IdxReader)
    assert labels.tolist() == reader.labels.tolist()
    pixels = torch.tensor(reader.images).unsqueeze(1) / 255
    torch.testing.assert_close(images, (pixels - shipped.data.mean[0]) / shipped.data.std[0])


def test_without_augmentation_training_images_are_the_plain_ones(small: Callable[..., Recipe]) -> None:
    recipe = small("data.image_size=28")
    info = data.find("fashion-mini")
    loader = data.train_loader(info, recipe, device="cpu", seed=0, micro_batch=1000)
    images, _ = next(iter(loader))
    assert isinstance(info.train, IdxReader)
    known = {image.tobytes() for image in info.train.images}
    back = (images * recipe.data.std[0] + recipe.data.mean[0]) * 255
    assert {image.tobytes() for image in back.round().byte().numpy()} <= known


def test_normalisation_is_per_channel(folder: Path, small: Callable[..., Recipe]) -> None:
    info = data.find(str(folder))
    plain = small("data.channels=3", "data.mean=[0,0,0]", "data.std=[1,1,1]")
    shifted = small("data.channels=3", "data.mean=[0,0.5,0]", "data.std=[1,1,0.25]")
    (a, _), (b, _) = (next(iter(data.eval_loader(info, recipe, device="cpu"))) for recipe in (plain, shifted))
    expected = torch.stack((a[:, 0], a[:, 1] - 0.5, a[:, 2] * 4), 1)
    torch.testing.assert_close(b, expected)


@pytest.mark.parametrize("mode", ["const", "rand", "pixel"])
def test_random_erasing_of_one_channel(small: Callable[..., Recipe], mode: str) -> None:
    sure = small("data.image_size=28", "augment.erase=1.0", f'augment.erase_mode="{mode}"')
    never = small("data.image_size=28")
    info = data.find("fashion-mini")
    erased, plain = (
        next(iter(data.train_loader(info, recipe, device="cpu", seed=0, micro_batch=64)))[0]
        for recipe in (sure, never)
    )
    changed = (erased != plain).flatten(1).sum(1)
    assert erased.shape == (64, 1, 28, 28)
    values = torch.cat([a[a != b].unique() for a, b in zip(erased, plain, strict=True)])
    fewest = {"const": 1, "rand": 64, "pixel": 1000}[mode]  # none, one a rectangle, or one a pixel is drawn
    assert fewest <= len(values.unique()) <= 16 * fewest
    assert (changed > 0).all()
    assert (changed <= 28 * 28 / 2).all()


@pytest.mark.parametrize("crop", ["rrc", "rkrc", "rkrr"])
def test_every_crop_gives_the_recipe_s_size(folder: Path, small: Callable[..., Recipe], crop: str) -> None:
    recipe = small(f'augment.crop="{crop}"', "augment.scale=[0.5, 1.0]", "augment.ratio=[0.8, 1.25]")
    loader = data.train_loader(data.find(str(folder)), recipe, device="cpu", seed=0, micro_batch=12)
    assert next(iter(loader))[0].shape == (12, 1, 8, 8)


@pytest.mark.parametrize(
    "override",
    [
        'augment.crop="rkrr"',
        "augment.scale=[0.2, 0.3]",
        "augment.ratio=[0.5, 0.6]",
        "augment.hflip=1",
        "augment.color_jitter=0.4",
        'augment.auto_augment="rand-m9"',
        "augment.erase=1",
        "data.interpolation=nearest",
        "data.image_size=10",
    ],
)
def test_every_setting_of_augmentation_reaches_the_images(
    folder: Path, small: Callable[..., Recipe], override: str
) -> None:
    info = data.find(str(folder))
    base = ("augment.scale=[0.7, 0.8]", "augment.erase_mode=const")
    plain, changed = (
        epoch(data.train_loader(info, recipe, device="cpu", seed=0, micro_batch=12), 1)[0]
        for recipe in (small(*base), small(*base, override))
    )
    assert plain.shape != changed.shape or not torch.equal(plain, changed)


def test_rand_augment_s_strongest_is_no_error(small: Callable[..., Recipe]) -> None:
    """At magnitude 10 posterizing keeps 0 bits, which Pillow 13 refuses."""
    recipe = small('augment.auto_augment="rand-m10-inc1"')
    loader = data.train_loader(data.find("fashion-mini"), recipe, device="cpu", seed=0, micro_batch=1000)
    assert len(next(iter(loader))[0]) == 1000


def test_an_unknown_augmentation_is_the_user_s_mistake(folder: Path, small: Callable[..., Recipe]) -> None:
    recipe = small('augment.auto_augment="rando-m9"')
    with pytest.raises(ValueError, match=r"timm does not know augment\.auto_augment = 'rando-m9'"):
        data.train_loader(data.find(str(folder)), recipe, device="cpu", seed=0, micro_batch=4)


def test_mixup_where_the_recipe_has_it(small: Callable[..., Recipe]) -> None:
    assert data.mixup(small(), 10, 4) is None
    mixup = data.mixup(small("augment.mixup=0.8", "augment.cutmix=1.0"), 10, 4)
    assert mixup is not None
    images, targets = mixup(torch.rand(4, 1, 8, 8), torch.tensor([0, 1, 2, 3]))
    assert images.shape == (4, 1, 8, 8)
    assert targets.shape == (4, 10)
    torch.testing.assert_close(targets.sum(1), torch.ones(4))
    assert targets.min() > 0  # smoothed
    with pytest.raises(ValueError, match="an even batch, not 3"):
        data.mixup(small("augment.mixup=0.8"), 10, 3)


@pytest.mark.parametrize("world", [2, 4, 9])
def test_evaluation_counts_every_image_once_over_ranks(
    folder: Path, small: Callable[..., Recipe], world: int
) -> None:
    info = data.find(str(folder))
    recipe = small("data.workers=0")
    whole = torch.cat([images for images, _ in data.eval_loader(info, recipe, device="cpu")])
    assert len(whole) == 6
    for rank in range(world):
        loader = data.eval_loader(info, recipe, device="cpu", rank=rank, world=world)
        assert (loader.rank, loader.world) == (rank, world)
        own = [images for images, _ in loader]
        assert len(own) == len(loader)
        assert torch.equal(torch.cat([whole[:0], *own]), whole[rank::world])


def test_the_rate_is_of_whole_rounds_after_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes: 4 images of the first round take a second, then 4 come each tenth of one."""
    clock = 0.0
    monkeypatch.setattr(loaders.time, "perf_counter", lambda: clock)

    class Batches:
        processes, skipped = 2, 0
        started: tuple[int, int] | None = None

        def start(self, epoch: int, step: int) -> None:
            self.started = (epoch, step)

        def __len__(self) -> int:
            return 100

        def check_skipped(self) -> None:
            pass

        def __iter__(self) -> Iterator[Any]:
            nonlocal clock
            for number in range(len(self)):
                clock += 0.0 if number % 2 else 1.0 if number == 0 else 0.1
                yield [0, 0], None

    batches = Batches()
    assert data.loader_rate(batches, 0.35) == pytest.approx(40)
    assert clock == pytest.approx(1.4)  # no longer than it must
    assert batches.started == (1, 0)


def test_the_rate_of_a_short_epoch(training: Callable[..., Loader]) -> None:
    for micro_batch, workers in ((12, 0), (2, 2)):
        assert data.loader_rate(training(f"data.workers={workers}", micro_batch=micro_batch), 60) > 0
