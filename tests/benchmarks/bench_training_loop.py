"""Images per second of our training, beside a loop made of timm's own parts, on the same model and data.

python tests/benchmarks/bench_training_loop.py [--data jpeg] [--mixers halo,swin] [--pairs N] [--fused]

Real epochs of `stmbench.training.engine`, loader and all, in turns with epochs of a loop that does what
timm's training script does (Wightman 2019, timm): `create_loader`, `FastCollateMixup`, `create_optimizer_v2`,
`dispatch_clip_grad`, `ModelEmaV3`, `create_scheduler_v2`, `AverageMeter`, the loss read every 50 updates.
Validation and checkpoints are on neither side. Both sides start from equal weights and have as many loader
processes. `fashion` is the quick recipe (28 x 28 pixels from memory), `jpeg` imagenet_attention (224 x 224
pixels out of JPEG files of 500 x 375, every augmentation, mixup, cutmix, clipping, EMA) without the cache of
decoded images. `--fused` gives timm's loop the fused optimizer too, which its script does not ask for.

A line is the ratio of images per second, ours over timm's: the median over pairs of epochs, whose order is
turned round every time, with the interval of `stmbench.measure.statistics`. Run it on a calm machine.
"""

import argparse
import dataclasses
import math
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from suite import words
from timm.data.dataset_factory import create_dataset
from timm.data.loader import create_loader
from timm.data.mixup import FastCollateMixup
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils.clip_grad import dispatch_clip_grad
from timm.utils.metrics import AverageMeter
from timm.utils.model_ema import ModelEmaV3

import stmbench.data
from stmbench.data import DataInfo, Images, Part
from stmbench.measure.statistics import ratio
from stmbench.recipe import Recipe, load
from stmbench.record import Job
from stmbench.stages.train import Classification
from stmbench.training import engine, network
from stmbench.training.meter import Meter

MIXERS = "halo,swin,sra,dwconv,dcnv3"
CLASSES = 10
LOG_INTERVAL = 50  # of timm's script


def write_jpegs(folder: Path, count: int) -> None:
    """A data set of photo-like JPEGs in class folders: smooth colours under some grain."""
    rng = np.random.default_rng(0)
    for split, images in (("train", count), ("val", CLASSES)):
        for i in range(images):
            coarse = rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)
            smooth = np.asarray(Image.fromarray(coarse).resize((500, 375), Image.Resampling.BICUBIC), float)
            pixels = (smooth + rng.normal(0, 8, smooth.shape)).clip(0, 255).astype(np.uint8)
            path = folder / split / f"class{i % CLASSES}" / f"{i}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path, quality=90)


def fashion(batch: int, steps: int) -> tuple[Recipe, DataInfo]:
    recipe = load("quick", [f"train.batch_size={batch}"])
    info = stmbench.data.find("fashion-mini")
    return recipe, dataclasses.replace(info, train=Part(info.train, tuple(range(batch * steps))))  # pyright: ignore


def jpeg(folder: Path, batch: int, steps: int) -> tuple[Recipe, DataInfo]:
    write_jpegs(folder, batch * steps)
    size = [f"train.batch_size={batch}", "train.device_batch_size=0", "model.scale=micro"]
    recipe = load("imagenet_attention", [*size, "data.workers=1", "data.cache=none"])
    return recipe, stmbench.data.find(str(folder))


class Ours:
    """The stage `train`, an epoch at a time."""

    def __init__(self, job: Job, info: DataInfo) -> None:
        self.trainer = engine.Trainer(job, Classification(job, info))
        self.epoch = 0

    def __call__(self) -> None:
        self.epoch += 1
        self.trainer.update, self.trainer.meter = 0, Meter(self.trainer.job.device)
        for _ in engine._train_epoch(self.trainer, self.epoch, lambda: False):
            pass


class Timms:
    """What timm's training script does, an epoch at a time."""

    def __init__(self, job: Job, info: DataInfo, *, fused: bool) -> None:
        recipe = job.recipe
        self.model = network.make(job, info.num_classes)
        self.loader, self.loss = timm_loader(recipe, info)
        options: dict[str, Any] = {"fused": True} if fused else {}
        optimizer = recipe.optimizer
        self.optimizer = create_optimizer_v2(
            self.model,
            optimizer.name,
            lr=optimizer.lr,
            weight_decay=optimizer.weight_decay,
            betas=optimizer.betas,
            **options,
        )
        scheduler, _ = create_scheduler_v2(
            self.optimizer,
            recipe.schedule.name,
            num_epochs=recipe.schedule.epochs,
            warmup_epochs=recipe.schedule.warmup_epochs,
            step_on_epochs=False,
            updates_per_epoch=len(self.loader),
        )
        assert scheduler
        self.scheduler, self.clip = scheduler, optimizer.clip_grad
        self.ema = ModelEmaV3(self.model, recipe.train.ema_decay) if recipe.train.ema_decay else None
        self.updates = 0

    def __call__(self) -> None:
        losses, seconds, waited = AverageMeter(), AverageMeter(), AverageMeter()
        self.model.train()
        ended = time.perf_counter()
        for step, (images, targets) in enumerate(self.loader):
            waited.update(time.perf_counter() - ended)
            loss = self.loss(self.model(images), targets)
            loss.backward()
            if self.clip:
                dispatch_clip_grad(self.model.parameters(), self.clip, mode="norm")
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.updates += 1
            if self.ema:
                self.ema.update(self.model, step=self.updates)
            if step % LOG_INTERVAL == 0 or step == len(self.loader) - 1:
                losses.update(loss.item(), len(images))
            self.scheduler.step_update(num_updates=self.updates, metric=losses.avg)
            seconds.update(time.perf_counter() - ended)
            ended = time.perf_counter()


def timm_loader(recipe: Recipe, info: DataInfo) -> tuple[Any, torch.nn.Module]:
    """timm's own loader of these images, and the loss that goes with it."""
    data, augment = recipe.data, recipe.augment
    if recipe.name == "quick":
        dataset: Any = Images(info.train, channels=data.channels, training=True)  # pyright: ignore
    else:
        dataset = create_dataset("", info.source, split="train")
    collate, loss = None, LabelSmoothingCrossEntropy(augment.smoothing)
    if augment.mixup or augment.cutmix:
        collate = FastCollateMixup(
            augment.mixup, augment.cutmix, label_smoothing=augment.smoothing, num_classes=info.num_classes
        )
        loss = SoftTargetCrossEntropy()
    loader = create_loader(
        dataset,
        input_size=(data.channels, data.image_size, data.image_size),
        batch_size=recipe.train.batch_size,
        is_training=True,
        mean=data.mean,
        std=data.std,
        interpolation=data.interpolation,
        scale=augment.scale,
        ratio=augment.ratio,
        hflip=augment.hflip,
        color_jitter=augment.color_jitter or None,  # pyright: ignore[reportArgumentType]
        auto_augment=augment.auto_augment or None,
        re_prob=augment.erase,
        re_mode=augment.erase_mode,
        num_workers=data.workers,
        collate_fn=collate,
        device=torch.device("cpu"),
    )
    return loader, loss


def seconds(call: Callable[[], None]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def compare(job: Job, info: DataInfo, pairs: int, *, fused: bool) -> str:
    """The line of one mixer."""
    sides: list[Callable[[], None]] = [Ours(job, info), Timms(job, info, fused=fused)]
    taken: list[list[float]] = []
    for number in range(pairs + 1):  # the first pair warms up
        order = sides if number % 2 else sides[::-1]
        found = {id(side): seconds(side) for side in order}
        taken.append([found[id(side)] for side in sides])
    found = ratio([math.log(timms / ours) for ours, timms in taken[1:]])
    rates = [info.num_train / median for median in np.median(taken[1:], axis=0)]
    verdict = "" if found.high >= 1 else "  SLOWER"
    return (
        f"{rates[0]:7.1f} {rates[1]:7.1f} images/s  ratio {found.value:.3f} "
        f"({found.low:.3f} to {found.high:.3f}), {pairs} pairs{verdict}"
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", choices=("fashion", "jpeg"), default="fashion")
    parser.add_argument("--mixers", type=words, default=words(MIXERS))
    parser.add_argument("--batch", type=int)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--pairs", type=int, default=8)
    parser.add_argument("--fused", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        if given.data == "fashion":
            recipe, info = fashion(given.batch or 64, given.steps or 12)
        else:
            recipe, info = jpeg(root / "images", given.batch or 16, given.steps or 4)
        print(f"{given.data}: {info.num_train} images, ours and timm's, {torch.get_num_threads()} threads")
        for mixer in given.mixers:
            job = Job(
                mixer=mixer,
                scale="micro",
                recipe=recipe,
                stages=("train",),
                data=info.source,
                folder=root / mixer,
            )
            print(f"{mixer:8}", compare(job, info, given.pairs, fused=given.fused), flush=True)


if __name__ == "__main__":
    main()
