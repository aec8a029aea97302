"""Batches on a device, through timm's loader, transforms and prefetcher (Wightman 2019, timm).

An epoch is a function of its seed: the shuffle, each loader process and every random augmentation draw from
generators that `seed_epoch` sets, and loader processes live for one epoch only. Augmentation depends on
the number of loader processes too, which the recipe fixes.
"""

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data import auto_augment
from timm.data.loader import create_loader
from timm.data.mixup import Mixup
from torch import Tensor

from stmbench.data.images import Images, Stream
from stmbench.data.info import DataInfo
from stmbench.data.prefixed import TimmStream
from stmbench.recipe import Recipe


def _posterize(image: Image.Image, bits: int, **options: Any) -> Image.Image:
    """timm's, and black for 0 bits: RandAugment draws them, Pillow 13 refuses what older ones made black."""
    return auto_augment.posterize(image, bits, **options) if bits else image.point(lambda _: 0)


auto_augment.NAME_TO_OP.update(
    {name: _posterize for name, op in auto_augment.NAME_TO_OP.items() if op is auto_augment.posterize}
)


class Loader:
    """Iterates over ``(images, labels)``: float32 (B, C, H, W), normalised, and int64 (B,), on the device."""

    def __init__(self, batches: Any, dataset: Images | Stream) -> None:
        self.dataset = dataset
        self._batches = batches  # timm's PrefetchLoader

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Raise `UnreadableImagesError` as soon as more than 1 % of the images turn out unreadable."""
        if isinstance(self.dataset, Stream):
            self.dataset.set_epoch(int(torch.randint(2**16, ())))  # the order follows from `seed_epoch`
        for batch in self._batches:
            self.dataset.check_skipped()
            yield batch


def train_loader(info: DataInfo, recipe: Recipe, *, device: str, seed: int, micro_batch: int) -> Loader:
    """Shuffled, augmented batches of exactly `micro_batch` images; what is left over is dropped.

    `seed` only matters to data sets that are read as a stream.

    Raises:
        ValueError: timm does not know the recipe's augmentation.
    """
    augment = recipe.augment
    dataset = _dataset(info.train, info, recipe, training=True, batch_size=micro_batch, seed=seed)
    try:
        return _loader(
            dataset,
            recipe,
            device,
            batch_size=micro_batch,
            is_training=True,
            train_crop_mode=augment.crop,
            scale=augment.scale,
            ratio=augment.ratio,
            hflip=augment.hflip,
            color_jitter=augment.color_jitter or None,  # timm's 0 would still cost time
            auto_augment=augment.auto_augment or None,
            re_prob=augment.erase,
            re_mode=augment.erase_mode,
        )
    except AssertionError:
        raise ValueError(
            f"recipe '{recipe.name}': timm does not know augment.auto_augment = '{augment.auto_augment}'."
        ) from None


def eval_loader(info: DataInfo, recipe: Recipe, *, device: str) -> Loader:
    """Every validation image once, in the data set's order, without augmentation."""
    size = recipe.eval.batch_size
    dataset = _dataset(info.val, info, recipe, training=False, batch_size=size, seed=0)
    return _loader(dataset, recipe, device, batch_size=size, crop_pct=recipe.data.crop_pct)


def mixup(recipe: Recipe, num_classes: int) -> Mixup | None:
    """timm's mixup and cutmix with label smoothing, or None where the recipe has neither.

    Raises:
        ValueError: images are mixed in pairs, and the recipe's batch is odd.
    """
    augment, batch = recipe.augment, recipe.train.device_batch_size or recipe.train.batch_size
    if not (augment.mixup or augment.cutmix):
        return None
    if batch % 2:
        raise ValueError(f"recipe '{recipe.name}': mixup and cutmix need an even batch, not {batch} images.")
    return Mixup(
        mixup_alpha=augment.mixup,
        cutmix_alpha=augment.cutmix,
        label_smoothing=augment.smoothing,
        num_classes=num_classes,
    )


def seed_epoch(seed: int, epoch: int) -> None:
    """Set torch's, NumPy's and Python's global generators from (seed, epoch)."""
    state = np.random.SeedSequence([seed, epoch]).generate_state(3)
    torch.manual_seed(int(state[0]))
    np.random.seed(state[1])  # noqa: NPY002 - timm draws from the global generator
    random.seed(int(state[2]))


def _dataset(
    reader: Any, info: DataInfo, recipe: Recipe, *, training: bool, batch_size: int, seed: int
) -> Images | Stream:
    if not isinstance(reader, TimmStream):
        return Images(reader, channels=recipe.data.channels, training=training)
    mode = "L" if recipe.data.channels == 1 else "RGB"
    opened = reader.open(is_training=training, batch_size=batch_size, seed=seed, input_img_mode=mode)
    return Stream(opened, info.num_classes)


def _loader(
    dataset: Images | Stream, recipe: Recipe, device: str, *, is_training: bool = False, **options: Any
) -> Loader:
    data = recipe.data
    workers = data.workers
    if isinstance(dataset, Stream):  # a fresh process starts a stream afresh; one keeps the order
        workers = max(1, workers) if is_training else 1
    batches = create_loader(
        dataset,  # pyright: ignore[reportArgumentType]
        input_size=(data.channels, data.image_size, data.image_size),
        is_training=is_training,
        mean=data.mean,
        std=data.std,
        interpolation=data.interpolation,
        num_workers=workers,
        persistent_workers=False,
        pin_memory=device.startswith("cuda"),
        device=torch.device(device),
        **options,
    )
    return Loader(batches, dataset)
