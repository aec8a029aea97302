"""Stage `train`: one network, one recipe, with timm's optimizer, schedule, augmentation, mixup and EMA.

Every epoch ends in an atomic checkpoint that holds everything the next epoch depends on. Randomness is
seeded from (seed, epoch) at each epoch's start, so that a run that was killed and resumed computes, on a
CPU bit for bit, what it would have computed undisturbed.
"""

import io
import json
import math
import time
from collections.abc import Generator, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from timm.loss import SoftTargetCrossEntropy
from timm.scheduler import create_scheduler_v2
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor, nn

import stmbench.data
from stmbench.data import DataInfo
from stmbench.nn.timm_models import PREPARATION
from stmbench.nn.weights import save_weights, write_whole
from stmbench.record import Artifact, Event, Job, Measurement, Note, Progress, condition
from stmbench.stages import evaluate
from stmbench.training import network
from stmbench.training.optimizer import make_optimizer

REPORTS = 50  # per epoch: the device is waited for no more often than this


class DivergedError(RuntimeError):
    """The loss is no longer a number."""


def run(job: Job) -> Generator[Event, None, None]:
    """Train from the last checkpoint in the job's folder, or from the start; yield curves per epoch."""
    info = stmbench.data.find(job.data)
    state = TrainState(job, info)
    epochs = job.recipe.schedule.epochs
    if state.epoch:
        yield Note("train", f"Resuming after epoch {state.epoch} of {epochs}.")
    elif job.weights and network.classes_of(job, state.model) != info.num_classes:
        yield Note("train", f"{job.weights} has other classes: a new classifier is trained.")
    yield from network.taken(job, state.model, "train")
    for epoch in range(state.epoch + 1, epochs + 1):
        started = time.perf_counter()
        yield from _train_epoch(state, epoch)
        yield from _validate(state, epoch)
        yield Measurement("train", "seconds", time.perf_counter() - started, "s", step=epoch)
        state.save(epoch)
    if skipped := state.loader.dataset.skipped:
        yield Note("train", f"Training images that could not be read and were replaced: {skipped}.")
        yield Measurement("train", "skipped", skipped, "images")
    for kind in state.networks():
        yield Artifact("train", "weights", network.weights_file(job, kind), condition(weights=kind))


class TrainState:
    """Everything that changes from step to step: weights, EMA, optimizer, schedule, loss scale."""

    def __init__(self, job: Job, info: DataInfo) -> None:
        recipe = job.recipe
        self.job, self.info, self.epoch = job, info, 0
        self.micro_batch = recipe.train.device_batch_size or recipe.train.batch_size
        self.accumulate = recipe.train.batch_size // self.micro_batch
        self.loader = stmbench.data.train_loader(
            info, recipe, device=job.device, seed=job.seed, micro_batch=self.micro_batch
        )
        self.val_loader = stmbench.data.eval_loader(info, recipe, device=job.device)
        self.updates = len(self.loader) // self.accumulate  # optimizer steps per epoch
        if not self.updates:
            raise ValueError(
                f"{info.name} has {info.num_train} training images, fewer than one batch: "
                f"lower it with --set train.batch_size=N."
            )
        self.model = network.make(job, info.num_classes)
        self.ema = _Ema(self.model, recipe.train.ema_decay) if recipe.train.ema_decay else None
        if recipe.train.checkpointing:
            _checkpoint(self.model, job.mixer)
        self.forward = torch.compile(self.model) if recipe.train.compile else self.model
        self.optimizer = make_optimizer(self.model, recipe, job.device)
        scheduler, _ = create_scheduler_v2(
            self.optimizer,
            recipe.schedule.name,
            num_epochs=recipe.schedule.epochs,
            warmup_epochs=recipe.schedule.warmup_epochs,
            warmup_lr=recipe.schedule.warmup_lr,
            min_lr=recipe.schedule.min_lr,
            step_on_epochs=False,
            updates_per_epoch=self.updates,
        )
        assert scheduler is not None
        self.scheduler = scheduler
        fp16 = network.precision(recipe, job.device) == "fp16"
        self.scaler = torch.GradScaler(torch.device(job.device).type, enabled=fp16)
        self.top1: dict[str, float] = {}  # of the last validation, per kind of weights
        self.mixup = stmbench.data.mixup(recipe, info.num_classes)
        self.loss = (
            SoftTargetCrossEntropy()
            if self.mixup
            else nn.CrossEntropyLoss(label_smoothing=recipe.augment.smoothing)
        )
        self._load()

    def networks(self) -> Mapping[str, nn.Module]:
        """The networks by kind of weights: `plain`, and `ema` where the recipe keeps one."""
        return {"plain": self.model} | ({"ema": self.ema.module} if self.ema else {})

    @property
    def checkpoint(self) -> Path:
        return self.job.folder / "checkpoint.pt"

    def save(self, epoch: int) -> None:
        """Write the checkpoint, then the weights alone as safetensors; each appears whole or not at all."""
        self.epoch = epoch
        state = {
            "epoch": epoch,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "networks": {kind: model.state_dict() for kind, model in self.networks().items()},
            "top1": self.top1,
        }
        content = io.BytesIO()
        torch.save(state, content)
        write_whole(self.checkpoint, content.getbuffer())
        self._save_weights()

    def _save_weights(self) -> None:
        for kind, model in self.networks().items():
            save_weights(network.weights_file(self.job, kind), model.state_dict(), self._metadata(kind))

    def _metadata(self, kind: str) -> dict[str, str]:
        job = self.job
        return {
            "mixer": job.mixer,
            "scale": job.scale,
            "design": job.design,
            "weights": kind,
            "epoch": str(self.epoch),
            "recipe": f"{job.recipe.name}@{job.recipe_digest}",
            "data": f"{self.info.name}@{self.info.fingerprint}",
            "seed": str(job.seed),
            "top1": str(self.top1[kind]),
            "preprocessing": json.dumps({key: getattr(job.recipe.data, key) for key in PREPARATION}),
        }

    def _load(self) -> None:
        if not self.checkpoint.is_file():
            return
        try:
            state = torch.load(self.checkpoint, map_location=self.job.device, weights_only=True)
        except Exception as error:
            raise RuntimeError(f"The checkpoint {self.checkpoint} cannot be read: {error}") from error
        for kind, model in self.networks().items():
            model.load_state_dict(state["networks"][kind])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.top1, self.epoch = state["top1"], state["epoch"]
        self._save_weights()  # the last process may have died between the checkpoint and these


class _Ema(ModelEmaV3):
    """timm's average, but for what is averaged being looked up once: that costs more than the averaging."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        super().__init__(model, decay)
        # Aliases: optimizers and load_state_dict write into the same memory.
        pairs = [*zip(self.module.state_dict().values(), model.state_dict().values(), strict=True)]
        self.counters = [(own, other) for own, other in pairs if not own.is_floating_point()]
        self.means, self.values = zip(*(pair for pair in pairs if pair[0].is_floating_point()), strict=True)

    def apply_update_(self, model: nn.Module, decay: float) -> None:
        torch._foreach_lerp_(self.means, self.values, weight=1 - decay)
        for own, other in self.counters:
            own.copy_(other)


def _checkpoint(model: Any, name: str) -> None:
    try:
        model.set_grad_checkpointing()
    except Exception as error:  # a timm model that cannot says so in its own way
        raise ValueError(f"{name} cannot follow train.checkpointing: {error}") from None


def _train_epoch(state: TrainState, epoch: int) -> Iterator[Event]:
    stmbench.data.seed_epoch(state.job.seed, epoch)
    state.model.train()
    meter = _Meter(state.job.device)
    steps = state.updates * state.accumulate
    numbers: Mapping[str, float] = {}
    lr = math.nan
    text = f"train {epoch}/{state.job.recipe.schedule.epochs}"
    with network.memory_advice("train.device_batch_size", state.micro_batch):
        for step, (images, labels) in enumerate(state.loader, 1):
            if step > steps:
                break  # an incomplete batch of accumulated gradients is left out
            loss, logits = _forward(state, images, labels)
            state.scaler.scale(loss / state.accumulate).backward()
            if step % state.accumulate == 0:
                lr = max(group["lr"] for group in state.optimizer.param_groups)
                _update(state, (epoch - 1) * state.updates + step // state.accumulate)
            meter.add(loss, logits, labels, counts_hits=state.mixup is None)
            if step % max(1, steps // REPORTS) == 0 or step == steps:
                numbers = meter.read(epoch)
                yield Progress("train", text, step, steps, numbers)
    state.loader.dataset.check_skipped()
    for name, value, unit in (
        ("loss", numbers["loss"], ""),
        ("lr", lr, ""),
        ("images_per_second", numbers["images/s"], "images/s"),
    ):
        yield Measurement("train", name, value, unit, step=epoch)


def _forward(state: TrainState, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    targets = labels
    if state.mixup is not None:
        images, targets = state.mixup(images, labels)
    with network.autocast(state.job.recipe, state.job.device):
        logits = state.forward(images)
    return state.loss(logits.float(), targets), logits.detach()


def _update(state: TrainState, count: int) -> None:
    """One optimizer step, the `count`-th since the start of training."""
    if clip := state.job.recipe.optimizer.clip_grad:
        state.scaler.unscale_(state.optimizer)
        nn.utils.clip_grad_norm_(state.model.parameters(), clip)
    state.scaler.step(state.optimizer)
    state.scaler.update()
    state.optimizer.zero_grad(set_to_none=True)
    state.scheduler.step_update(count)
    if state.ema:
        state.ema.update(state.model)


def _validate(state: TrainState, epoch: int) -> Iterator[Event]:
    for kind, model in state.networks().items():
        text = f"validate {epoch}/{state.job.recipe.schedule.epochs}"
        predictions = yield from evaluate.predict(state.job, model, state.val_loader, text, "train")
        numbers = predictions.numbers()
        at = condition(weights=kind)
        state.top1[kind] = numbers["top1"][0]
        yield Measurement("train", "top1", *numbers["top1"], condition=at, step=epoch)
        yield Measurement("train", "val_loss", *numbers["loss"], condition=at, step=epoch)
        _check_finite(numbers["loss"][0], epoch)  # the last update may be the one that broke the weights


def _check_finite(loss: float, epoch: int) -> None:
    if not math.isfinite(loss):
        kept = f"the weights of epoch {epoch - 1} are kept" if epoch > 1 else "there are no good weights yet"
        raise DivergedError(
            f"The loss became {loss} in epoch {epoch}; {kept}. "
            "Try a lower --set optimizer.lr=... or --set optimizer.clip_grad=1."
        )


class _Meter:
    """Running means of an epoch, kept on the device; reading them is the one wait for it."""

    def __init__(self, device: str) -> None:
        self.loss = torch.zeros((), device=device)
        self.hits = torch.zeros((), device=device)
        self.steps = self.images = 0
        self.has_hits = False
        self.started = time.perf_counter()

    def add(self, loss: Tensor, logits: Tensor, labels: Tensor, *, counts_hits: bool) -> None:
        self.loss += loss.detach()
        if counts_hits:  # mixed images have no single right class
            self.hits += (logits.argmax(1) == labels).sum()
            self.has_hits = True
        self.steps += 1
        self.images += len(labels)

    def read(self, epoch: int) -> dict[str, float]:
        loss = self.loss.item() / self.steps
        _check_finite(loss, epoch)
        numbers = {"loss": loss, "images/s": self.images / (time.perf_counter() - self.started)}
        if self.has_hits:
            numbers["acc"] = 100 * self.hits.item() / self.images
        return numbers
