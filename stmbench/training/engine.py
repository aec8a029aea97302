"""One trainer for every task: batches in, gradients, steps, curves and checkpoints out.

A `Task` says what is trained on what, by which loss, and how good it has become. The rest is here, with
timm's schedule and averaging: gradient accumulation up to the recipe's batch, however many processes share
it; mixed precision; checkpoints.

Every micro-batch is seeded by its place in the epoch, and the loader's order and augmentation are functions
of (seed, epoch, place), so that a run that was killed and resumed, in the middle of an epoch too, computes,
on a CPU bit for bit, what it would have computed undisturbed.
"""

import contextlib
import math
from collections.abc import Callable, Generator, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import stmbench.data
from stmbench import world
from stmbench.data import Batches
from stmbench.nn.sync_norm import synchronise
from stmbench.nn.weights import save_weights
from stmbench.recipe import Recipe
from stmbench.record import Artifact, Event, Job, Measurement, Note, Progress, condition
from stmbench.training import checkpoints, network, stopping
from stmbench.training.ema import Ema
from stmbench.training.meter import Loss, Meter
from stmbench.training.optimizer import make_optimizer

REPORTS = 50  # per epoch: the device is waited for no more often than this
VOTES = 10  # updates between two questions to all processes whether one was asked to stop; epochs end in one
LOADER_S = 2.0  # for how long the loader alone is timed

Numbers = dict[str, tuple[float, str]]  # name -> (value, unit)


class Task(Protocol):
    """What is trained, on what, and how good it has become."""

    stage: str  # whose measurements they are
    model: nn.Module  # on its device
    loader: Batches  # of micro-batches of `shares(...)` images

    def loss(self, forward: Callable[..., Any], batch: Any) -> Loss:
        """Of one micro-batch, under autocast; `forward` is the model as training calls it."""
        ...

    def validate(self, kind: str, model: nn.Module, epoch: int) -> Generator[Event, None, Numbers]:
        """How good the network with one kind of weights is. The first number is what the best are kept by."""
        ...

    def metadata(self) -> dict[str, str]:
        """What a file of its weights is to say of the data."""
        ...


def shares(recipe: Recipe, processes: int) -> tuple[int, int]:
    """Images of a process in one forward pass, and how many passes make up the recipe's batch.

    Raises:
        ValueError: the batch cannot be dealt out evenly.
    """
    batch, most = recipe.train.batch_size, recipe.train.device_batch_size
    own, left = divmod(batch, processes)
    if left or not own:
        raise ValueError(
            f"A batch of {batch} images cannot be dealt out to {processes} processes: "
            f"set train.batch_size to a multiple of {processes}."
        )
    micro = max(size for size in range(1, min(most or own, own) + 1) if own % size == 0)
    return micro, own // micro


def train(job: Job, task: Task) -> Generator[Event, None, None]:
    """Train from the last checkpoint in the job's folder, or from the start; yield curves per epoch.

    Raises:
        KeyboardInterrupt: the process was asked to stop; there is a checkpoint of where it was.
        DivergedError: the last good weights are kept.
    """
    trainer = Trainer(job, task)
    epochs = job.recipe.schedule.epochs
    yield from trainer.notes
    yield from _setting(trainer)
    with stopping.listening() as asked:
        for epoch in range(trainer.epoch + 1, epochs + 1):
            yield from _train_epoch(trainer, epoch, asked)
            yield from _validate(trainer, epoch)
            yield Measurement(task.stage, "seconds", trainer.meter.seconds(), "s", step=epoch)
            trainer.end_epoch(epoch)
    if skipped := sum(world.gather(task.loader.skipped)):
        yield Note(task.stage, f"Training images that could not be read and were replaced: {skipped}.")
        yield Measurement(task.stage, "skipped", skipped, "images")
    for kind in trainer.networks():
        yield Artifact(task.stage, "weights", network.weights_file(job, kind), condition(weights=kind))
    yield Artifact(task.stage, "best_weights", trainer.best_file, condition(weights=trainer.headline))
    world.barrier()  # whoever reads the weights finds them written


class Trainer:
    """Everything that changes from step to step: weights, EMA, optimizer, schedule, loss scale."""

    def __init__(self, job: Job, task: Task) -> None:
        recipe = job.recipe
        self.job, self.task, self.model = job, task, task.model
        self.epoch = self.update = 0  # epochs that have ended, updates since in the one that has not
        self.micro_batch, self.accumulate = shares(recipe, world.size())
        self.updates = len(task.loader) // self.accumulate  # per epoch
        self.ema = Ema(self.model, recipe.train.ema_decay) if recipe.train.ema_decay else None
        if recipe.train.checkpointing:
            _checkpoint(self.model, job.mixer)
        if world.size() > 1:
            synchronise(self.model)
        self.optimizer = make_optimizer(self.model, recipe, job.device)
        self.scheduler = make_scheduler(self.optimizer, recipe, self.updates)
        fp16 = network.precision(recipe, job.device) == "fp16"
        self.scaler = torch.GradScaler(torch.device(job.device).type, enabled=fp16)
        self.meter = Meter(job.device)
        self.scores: dict[str, tuple[str, float]] = {}  # name and value at the last validation, per kind
        self.best = -math.inf
        self.notes: list[Note] = []
        self._load()
        self.parallel = _parallel(self.model, job.device)
        forward = self.parallel or self.model
        self.forward = torch.compile(forward) if recipe.train.compile else forward

    @property
    def headline(self) -> str:
        """The kind of weights that the run is known by."""
        return "ema" if self.ema else "plain"

    @property
    def best_file(self) -> Path:
        return network.weights_file(self.job, "best")

    def networks(self) -> Mapping[str, nn.Module]:
        """The networks by kind of weights: `plain`, and `ema` where the recipe keeps one."""
        return {"plain": self.model} | ({"ema": self.ema.module} if self.ema else {})

    def end_epoch(self, epoch: int) -> None:
        """Write the checkpoint, and the weights alone as safetensors; each appears whole or not at all."""
        self.epoch, self.update = epoch, 0
        if (score := self.scores[self.headline][1]) > self.best:
            self.best = score
            self._save_weights(self.headline, self.best_file)
        self.save()
        for kind in self.networks():
            self._save_weights(kind, network.weights_file(self.job, kind))
        self.meter = Meter(self.job.device)

    def save(self) -> None:
        """Write all that the next update depends on; every process calls this, and the first one writes."""
        meter = self.meter.state() if self.update else None
        if not world.is_main():
            return
        state = {
            "epoch": self.epoch,
            "update": self.update,
            "meter": meter,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "networks": {kind: model.state_dict() for kind, model in self.networks().items()},
            "scores": self.scores,
            "best": self.best,
        }
        checkpoints.save(self.job.folder, state)

    def _save_weights(self, kind: str, path: Path) -> None:
        if world.is_main():
            save_weights(path, self.networks()[kind].state_dict(), self._metadata(kind))

    def _metadata(self, kind: str) -> dict[str, str]:
        """What a file of weights says of itself."""
        job, (name, score) = self.job, self.scores[kind]
        return self.task.metadata() | {
            "mixer": job.mixer,
            "scale": job.scale,
            "design": job.design,
            "weights": kind,
            "recipe": f"{job.recipe.name}@{job.recipe_digest}",
            "seed": str(job.seed),
            "epoch": str(self.epoch),
            name: str(score),
        }

    def _load(self) -> None:
        state, damaged = checkpoints.load(self.job.folder, self.job.device)
        if damaged:
            self.notes.append(Note(self.task.stage, damaged))
        if state is None:
            return
        if "scores" not in state:
            raise RuntimeError(
                f"The checkpoint in {self.job.folder} is an older version's: start a new run, with "
                f"--weights {network.weights_file(self.job, 'plain')} to go on from its weights."
            )
        for kind, model in self.networks().items():
            model.load_state_dict(state["networks"][kind])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        if state["meter"]:
            self.meter.load(state["meter"])
        self.scores, self.best = state["scores"], state["best"]
        self.epoch, self.update = state["epoch"], state["update"]
        where = f"{self.update} of {self.updates} updates into epoch" if self.update else "after epoch"
        epochs = f"{self.epoch + bool(self.update)} of {self.job.recipe.schedule.epochs}"
        self.notes.append(Note(self.task.stage, f"Resuming {where} {epochs}."))
        if not self.update:
            for kind in self.networks():  # the last process may have died between the checkpoint and these
                self._save_weights(kind, network.weights_file(self.job, kind))


def _checkpoint(model: Any, name: str) -> None:
    try:
        model.set_grad_checkpointing()
    except Exception as error:  # a timm model that cannot says so in its own way
        raise ValueError(f"{name} cannot follow train.checkpointing: {error}") from None


def _parallel(model: nn.Module, device: str) -> DistributedDataParallel | None:
    if world.size() == 1:
        return None
    ids = [torch.device(device)] if device.startswith("cuda") else None
    return DistributedDataParallel(model, ids, gradient_as_bucket_view=True)


def make_scheduler(optimizer: torch.optim.Optimizer, recipe: Recipe, updates: int) -> Scheduler:
    """timm's schedule of the learning rate, stepped per update, of which an epoch has so many."""
    schedule = recipe.schedule
    warmup = schedule.warmup_steps / updates if schedule.warmup_steps else schedule.warmup_epochs
    scheduler, _ = create_scheduler_v2(
        optimizer,
        schedule.name,
        num_epochs=schedule.epochs,
        warmup_epochs=warmup,  # pyright: ignore[reportArgumentType] - it is only multiplied
        warmup_lr=schedule.warmup_lr,
        min_lr=schedule.min_lr,
        decay_milestones=schedule.milestones,  # pyright: ignore[reportArgumentType]
        decay_rate=schedule.decay,
        step_on_epochs=False,
        updates_per_epoch=updates,
    )
    assert scheduler is not None
    return scheduler


def _setting(trainer: Trainer) -> Iterator[Event]:
    """How the recipe's batch is dealt out, and what the loader can give."""
    task, processes = trainer.task, world.size()
    per_pass = processes * trainer.micro_batch
    for name, value, unit in (
        ("processes", processes, ""),
        ("device_batch", trainer.micro_batch, "images"),
        ("accumulation", trainer.accumulate, "passes"),
        ("norm_batch", per_pass, "images"),  # what BatchNorm sees
        ("updates", trainer.updates, "per epoch"),
    ):
        yield Measurement(task.stage, name, value, unit)
    if processes > 1:
        text = f"{processes} processes of {trainer.micro_batch} images"
        passes = f", {trainer.accumulate} passes" if trainer.accumulate > 1 else ""
        yield Note(task.stage, f"{text}{passes}: {per_pass * trainer.accumulate} images an update.")
    if not (trainer.epoch or trainer.update):
        rate = sum(world.gather(stmbench.data.loader_rate(task.loader, LOADER_S)))
        yield Measurement(task.stage, "loader_images_per_second", rate, "images/s")


def _train_epoch(trainer: Trainer, epoch: int, asked: Callable[[], bool]) -> Iterator[Event]:
    trainer.model.train()
    task, meter, accumulate = trainer.task, trainer.meter, trainer.accumulate
    task.loader.start(epoch, trainer.update * accumulate)
    text = f"{task.stage} {epoch}/{trainer.job.recipe.schedule.epochs}"
    steps = trainer.updates * accumulate
    meter.begin()
    numbers: Mapping[str, float] = meter.read(epoch) if meter.steps else {}
    with network.memory_advice("train.device_batch_size", trainer.micro_batch):
        batches = iter(task.loader)
        for step in range(trainer.update * accumulate + 1, steps + 1):
            last = step % accumulate == 0
            with meter.waiting():
                batch = next(batches)
            # Held until the next one is there: freed at once, the heap would shrink and grow again.
            loss = _pass(trainer, batch, epoch, step, sync=last)
            meter.add(loss)
            if last:
                meter.lr = max(group["lr"] for group in trainer.optimizer.param_groups)
                _update(trainer, epoch, step // accumulate)
                _heed(trainer, epoch, asked)
            if step % max(1, steps // REPORTS) == 0 or step == steps:
                numbers = meter.read(epoch)
                yield Progress(task.stage, text, step, steps, numbers)
        with contextlib.suppress(AttributeError):
            batches.close()  # pyright: ignore[reportAttributeAccessIssue] - an incomplete update is left out
    task.loader.check_skipped()
    yield from _curves(trainer, epoch, numbers)


def _curves(trainer: Trainer, epoch: int, numbers: Mapping[str, float]) -> Iterator[Event]:
    stage = trainer.task.stage
    yield Measurement(stage, "loss", numbers["loss"], step=epoch)
    yield Measurement(stage, "lr", trainer.meter.lr, step=epoch)
    yield Measurement(stage, "images_per_second", numbers["images/s"], "images/s", step=epoch)
    waited = max(world.gather(100 * trainer.meter.data_wait()))  # all wait for the slowest
    yield Measurement(stage, "data_wait", waited, "%", step=epoch)
    for name in trainer.meter.parts:
        yield Measurement(stage, name, numbers[name], step=epoch)


def _pass(trainer: Trainer, batch: Any, epoch: int, step: int, *, sync: bool) -> Loss:
    """Forward and backward of this process's `step`-th micro-batch of the epoch."""
    job = trainer.job
    seed_pass(job, epoch, (step - 1) * world.size() + world.rank())
    alone = trainer.parallel.no_sync() if trainer.parallel and not sync else contextlib.nullcontext()
    with alone:
        with network.autocast(job.recipe, job.device):
            loss = trainer.task.loss(trainer.forward, batch)
        trainer.scaler.scale(loss.value / trainer.accumulate).backward()
    return loss


def seed_pass(job: Job, epoch: int, number: int) -> None:
    """Set torch's, NumPy's and Python's global generators for a micro-batch, counted over all processes."""
    seed = np.random.SeedSequence([job.seed, epoch, number]).generate_state(1, np.uint64)  # (1,)
    stmbench.data.set_seed(int(seed[0]), job.device)


def _update(trainer: Trainer, epoch: int, update: int) -> None:
    """One optimizer step, the `update`-th of the epoch."""
    if clip := trainer.job.recipe.optimizer.clip_grad:
        trainer.scaler.unscale_(trainer.optimizer)
        nn.utils.clip_grad_norm_(trainer.model.parameters(), clip)
    trainer.scaler.step(trainer.optimizer)
    trainer.scaler.update()
    trainer.optimizer.zero_grad(set_to_none=True)
    trainer.scheduler.step_update((epoch - 1) * trainer.updates + update)
    if trainer.ema:
        trainer.ema.update(trainer.model)
    trainer.update = update


def _heed(trainer: Trainer, epoch: int, asked: Callable[[], bool]) -> None:
    """Stop here, with a checkpoint, if a process was asked to."""
    if world.size() > 1 and trainer.update % VOTES and trainer.update < trainer.updates:
        return
    if world.any_of(asked()):
        trainer.save()
        world.barrier()
        raise KeyboardInterrupt(f"asked to stop, {trainer.update} updates into epoch {epoch}")


def _validate(trainer: Trainer, epoch: int) -> Iterator[Event]:
    for kind, model in trainer.networks().items():
        numbers = yield from trainer.task.validate(kind, model, epoch)
        name = next(iter(numbers))
        trainer.scores[kind] = (name, numbers[name][0])
        for name, (value, unit) in numbers.items():
            yield Measurement(trainer.task.stage, name, value, unit, condition(weights=kind), epoch)
