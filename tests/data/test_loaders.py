"""An epoch is a function of (seed, epoch); evaluation sees every image once, in order; one channel works."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from stmbench import data
from stmbench.data import Loader
from stmbench.data.idx import IdxReader
from stmbench.data.images import Stream
from stmbench.recipe import Recipe

RANDOM = (
    "augment.hflip=0.5",
    "augment.scale=[0.3, 1.0]",
    "augment.erase=0.5",
    "augment.color_jitter=0.4",
    'augment.auto_augment="rand-m9-mstd0.5-inc1"',
)
COLOUR = ("data.channels=3", "data.mean=[0.5,0.5,0.5]", "data.std=[0.5,0.5,0.5]")


def epoch(loader: Loader, seed: int, number: int) -> tuple[Tensor, Tensor]:
    data.seed_epoch(seed, number)
    images, labels = zip(*loader, strict=True)
    return torch.cat(images), torch.cat(labels)


@pytest.mark.parametrize("channels", [(), COLOUR])
@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_follows_from_its_seed_and_number(
    folder: Path, small: Callable[..., Recipe], workers: int, channels: tuple[str, ...]
) -> None:
    recipe = small(*RANDOM, *channels, f"data.workers={workers}")
    info = data.find(str(folder))

    def loader() -> Loader:
        return data.train_loader(info, recipe, device="cpu", seed=0, micro_batch=4)

    long = loader()
    epoch(long, 3, 1)
    first, again, other, reseeded = (
        epoch(long, 3, 2),
        epoch(loader(), 3, 2),
        epoch(long, 3, 3),
        epoch(long, 4, 2),
    )
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert first[0].shape == (12, recipe.data.channels, 8, 8)
    assert not torch.equal(first[0], other[0])
    assert not torch.equal(first[0], reseeded[0])


def test_training_drops_the_rest_and_shuffles(folder: Path, small: Callable[..., Recipe]) -> None:
    loader = data.train_loader(data.find(str(folder)), small(), device="cpu", seed=0, micro_batch=5)
    orders = [epoch(loader, 0, number)[1].tolist() for number in range(4)]
    assert len(loader) == 2
    assert all(len(order) == 10 for order in orders)
    assert len(set(map(tuple, orders))) == 4


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_sees_every_image_once_in_order(workers: int) -> None:
    from stmbench import recipe

    shipped = recipe.load("quick", [f"data.workers={workers}", "eval.batch_size=300"])
    info = data.find("fashion-mini")
    loader = data.eval_loader(info, shipped, device="cpu")
    images, labels = epoch(loader, 0, 0)
    reader = info.val
    assert isinstance(reader, IdxReader)
    assert labels.tolist() == reader.labels.tolist()
    pixels = torch.tensor(reader.images).unsqueeze(1) / 255
    torch.testing.assert_close(images, (pixels - shipped.data.mean[0]) / shipped.data.std[0])


def test_without_augmentation_training_images_are_the_plain_ones(small: Callable[..., Recipe]) -> None:
    recipe = small("data.image_size=28")
    info = data.find("fashion-mini")
    loader = data.train_loader(info, recipe, device="cpu", seed=0, micro_batch=1000)
    data.seed_epoch(0, 0)
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
        if data.seed_epoch(0, 0) is None
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
        epoch(data.train_loader(info, recipe, device="cpu", seed=0, micro_batch=12), 0, 0)[0]
        for recipe in (small(*base), small(*base, override))
    )
    assert plain.shape != changed.shape or not torch.equal(plain, changed)


def test_a_stream_s_order_follows_from_the_epoch_s_seed() -> None:
    class Shards:
        def set_epoch(self, count: int) -> None:
            seen.append(count)

    seen: list[int] = []
    loader = Loader([], Stream(Shards(), num_classes=2))
    for number in (1, 2, 1):
        data.seed_epoch(0, number)
        assert list(loader) == []
    assert seen[0] == seen[2] != seen[1]


def test_rand_augment_s_strongest_is_no_error(small: Callable[..., Recipe]) -> None:
    """At magnitude 10 posterizing keeps 0 bits, which Pillow 13 refuses."""
    recipe = small('augment.auto_augment="rand-m10-inc1"')
    loader = data.train_loader(data.find("fashion-mini"), recipe, device="cpu", seed=0, micro_batch=1000)
    data.seed_epoch(0, 0)
    assert len(next(iter(loader))[0]) == 1000


def test_an_unknown_augmentation_is_the_user_s_mistake(folder: Path, small: Callable[..., Recipe]) -> None:
    recipe = small('augment.auto_augment="rando-m9"')
    with pytest.raises(ValueError, match=r"timm does not know augment\.auto_augment = 'rando-m9'"):
        data.train_loader(data.find(str(folder)), recipe, device="cpu", seed=0, micro_batch=4)


def test_mixup_where_the_recipe_has_it(small: Callable[..., Recipe]) -> None:
    assert data.mixup(small(), 10) is None
    mixup = data.mixup(small("augment.mixup=0.8", "augment.cutmix=1.0"), 10)
    assert mixup is not None
    data.seed_epoch(0, 0)
    images, targets = mixup(torch.rand(4, 1, 8, 8), torch.tensor([0, 1, 2, 3]))
    assert images.shape == (4, 1, 8, 8)
    assert targets.shape == (4, 10)
    torch.testing.assert_close(targets.sum(1), torch.ones(4))
    assert targets.min() > 0  # smoothed
    with pytest.raises(ValueError, match="an even batch, not 3"):
        data.mixup(small("augment.mixup=0.8", "train.batch_size=3"), 10)
