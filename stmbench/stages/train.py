"""Stage `train`: a classifier, by one recipe, with timm's augmentation, mixup and losses.

The steps themselves are those of `stmbench.training.engine`.
"""

import json
from collections.abc import Callable, Generator
from typing import Any

from timm.loss import SoftTargetCrossEntropy
from torch import Tensor, nn

import stmbench.data
from stmbench import world
from stmbench.data import DataInfo
from stmbench.nn.timm_models import PREPARATION
from stmbench.record import Event, Job, Note
from stmbench.stages import evaluate
from stmbench.training import engine, network
from stmbench.training.engine import Numbers
from stmbench.training.meter import Loss, check_finite


def run(job: Job) -> Generator[Event, None, None]:
    """Train from the last checkpoint in the job's folder, or from the start; yield curves per epoch."""
    task = Classification(job, stmbench.data.find(job.data))
    if job.weights and network.classes_of(job, task.model) != task.info.num_classes:
        yield Note("train", f"{job.weights} has other classes: a new classifier is trained.")
    yield from network.taken(job, task.model, "train")
    yield from engine.train(job, task)


class Classification:
    """Images and their classes: see `engine.Task`."""

    stage = "train"

    def __init__(self, job: Job, info: DataInfo) -> None:
        recipe = job.recipe
        self.job, self.info = job, info
        micro_batch, accumulate = engine.shares(recipe, world.size())
        where: Any = {"device": job.device, "rank": world.rank(), "world": world.size()}
        self.loader: stmbench.data.Batches = stmbench.data.train_loader(
            info, recipe, seed=job.seed, micro_batch=micro_batch, **where
        )
        if len(self.loader) < accumulate:
            raise ValueError(
                f"{info.name} has {info.num_train} training images, fewer than one batch: "
                f"lower it with --set train.batch_size=N."
            )
        self.val_loader = stmbench.data.eval_loader(info, recipe, **where)
        self.model = network.make(job, info.num_classes)
        self.mixup = stmbench.data.mixup(recipe, info.num_classes, micro_batch)
        self.criterion = (
            SoftTargetCrossEntropy()
            if self.mixup
            else nn.CrossEntropyLoss(label_smoothing=recipe.augment.smoothing)
        )

    def loss(self, forward: Callable[[Tensor], Tensor], batch: tuple[Tensor, Tensor]) -> Loss:
        images, labels = batch
        targets = labels
        if self.mixup is not None:
            images, targets = self.mixup(images, labels)
        logits = forward(images)
        hits = None
        if self.mixup is None:  # mixed images have no single right class
            hits = (logits.detach().argmax(1) == labels).sum()
        return Loss(self.criterion(logits.float(), targets), len(labels), hits=hits)

    def validate(self, kind: str, model: nn.Module, epoch: int) -> Generator[Event, None, Numbers]:
        text = f"validate {epoch}/{self.job.recipe.schedule.epochs}"
        predictions = yield from evaluate.predict(self.job, model, self.val_loader, text, "train")
        numbers = predictions.numbers()
        check_finite(numbers["loss"][0], epoch)  # the last update may have broken the weights
        return {"top1": numbers["top1"], "val_loss": numbers["loss"]}

    def metadata(self) -> dict[str, str]:
        prepared = {key: getattr(self.job.recipe.data, key) for key in PREPARATION}
        data = f"{self.info.name}@{self.info.fingerprint}"
        return {"data": data, "preprocessing": json.dumps(prepared)}
