"""What training and evaluating add to the network's own work: under 3 %, it says.

python tests/benchmarks/bench_trainer_overhead.py [MIXER] [--scale tiny --size 224 --batch 128 --device cuda]

The real epoch of `training/engine.py` and the real pass of `stages/evaluate.py`, over batches that lie on
the device, in turns with bare loops of the same forward passes, backward passes and optimizer steps; the
shares of an epoch, with mixup and the EMA, where a recipe asks for them, told apart (the host waits for a
GPU after each part, as it does not in training); and the evaluation with its loader beside the loader alone
and the network alone. Run it on a calm machine.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import stmbench.data
from stmbench.recipe import from_values, load
from stmbench.record import Job
from stmbench.stages import evaluate
from stmbench.stages.train import Classification
from stmbench.training import engine, network
from stmbench.training.engine import Trainer
from stmbench.training.meter import Meter


class Fed:
    """A loader whose batches are ready, and whose images can all be read."""

    def __init__(self, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        self.batches, self.skipped, self.world = [*batches], 0, 1

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter(self.batches)

    def start(self, epoch: int, step: int) -> None:
        """Every epoch is the same."""

    def check_skipped(self) -> None:
        """All can be read."""


class Clock:
    """Seconds spent within wrapped calls, by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def wrap(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **options: Any) -> Any:
            started = now()
            result = call(*args, **options)
            self.seconds[name] = self.seconds.get(name, 0.0) + now() - started
            return result

        return timed


def now() -> float:
    """Seconds, once the GPU has nothing left to do."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def seconds(call: Callable[[], object]) -> float:
    started = now()
    call()
    return now() - started


def bare_training(state: Trainer) -> None:
    for images, labels in state.task.loader:
        with network.autocast(state.job.recipe, state.job.device):
            loss = torch.nn.functional.cross_entropy(state.forward(images), labels)
        state.scaler.scale(loss).backward()
        state.scaler.step(state.optimizer)
        state.scaler.update()
        state.optimizer.zero_grad()


def bare_inference(state: Trainer) -> None:
    for images, _ in state.task.loader:
        with torch.inference_mode(), network.autocast(state.job.recipe, state.job.device):
            state.model(images)


def real_training(state: Trainer) -> None:
    state.update, state.meter = 0, Meter(state.job.device)
    drain(engine._train_epoch(state, 1, lambda: False))


def drain(events: Any) -> None:
    for _ in events:
        pass


def ratios(one: Callable[[], object], other: Callable[[], object], pairs: int) -> str:
    """Median and quartiles of one's time over other's, in turns."""
    found = []
    for i in range(pairs + 1):
        order = (one, other) if i % 2 else (other, one)
        taken = {call: seconds(call) for call in order}
        found.append(taken[one] / taken[other])
    low, median, high = statistics.quantiles(found[1:], n=4)  # the first pair warms up
    return f"{median:.4f}, quartiles {low:.4f} to {high:.4f}, {pairs} pairs"


def predict(state: Trainer, loader: Any) -> None:
    drain(evaluate.predict(state.job, state.model, loader, ""))


def evaluation_with_its_loader(state: Trainer, rounds: int) -> str:
    """The whole, and what either half takes by itself: medians of rounds in turns."""
    loader = state.task.val_loader  # pyright: ignore[reportAttributeAccessIssue]
    fed = Fed(loader)
    halves: dict[str, Callable[[], object]] = {
        "evaluation with its loader": lambda: predict(state, loader),
        "the loader alone": lambda: drain(loader),
        "the network alone": lambda: predict(state, fed),
    }
    taken = {name: [] for name in halves}
    for _ in range(rounds):
        for name, half in halves.items():
            taken[name].append(seconds(half))
    return ", ".join(f"{name} {statistics.median(times):.3f} s" for name, times in taken.items())


def shares(state: Trainer) -> str:
    """The parts of one real epoch, in per cent."""
    clock = Clock()
    backward = torch.Tensor.backward
    state.forward = clock.wrap("forward", state.forward)
    task: Any = state.task
    task.criterion = clock.wrap("loss", task.criterion)
    state.optimizer.step = clock.wrap("optimizer", state.optimizer.step)
    if task.mixup:
        task.mixup = clock.wrap("mixup", task.mixup)
    if state.ema:
        state.ema.update = clock.wrap("EMA", state.ema.update)
    torch.Tensor.backward = clock.wrap("backward", backward)
    try:
        total = seconds(lambda: real_training(state))
    finally:
        torch.Tensor.backward = backward
    parts = {**clock.seconds, "all else": total - sum(clock.seconds.values())}
    return ", ".join(f"{name} {100 * part / total:.2f} %" for name, part in parts.items())


def make(folder: Path, given: argparse.Namespace, **extra: Any) -> Any:
    values = load("quick").values()
    values["data"]["image_size"] = given.size
    values["train"] |= {"batch_size": given.batch, "precision": given.precision, "compile": given.compile}
    values["train"] |= extra.get("train", {})
    values["augment"] |= extra.get("augment", {})
    values["eval"] |= {"batch_size": given.batch}
    recipe = from_values(values, "overhead")
    about: Any = {"mixer": given.mixer, "scale": given.scale, "device": given.device}
    job = Job(**about, recipe=recipe, stages=("train",), data="fashion-mini", folder=folder)
    task = Classification(job, stmbench.data.find("fashion-mini"))
    state = Trainer(job, task)
    shape = given.batch, recipe.data.channels, given.size, given.size
    batches = [
        (torch.randn(shape).to(given.device), torch.randint(0, 10, shape[:1]).to(given.device))
        for _ in range(given.steps)
    ]
    task.loader, state.updates = Fed(batches), given.steps  # pyright: ignore[reportAttributeAccessIssue]
    return state


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("mixer", nargs="?", default="dwconv")
    parser.add_argument("--scale", default="micro")
    for name, default in {"size": 28, "batch": 64, "steps": 20, "pairs": 8}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--compile", action="store_true")
    return parser.parse_args()


def main() -> None:
    given = options()
    with tempfile.TemporaryDirectory() as folder:
        state = make(Path(folder), given)
        real = ratios(lambda: real_training(state), lambda: bare_training(state), given.pairs)
        print(f"training: real / bare {real}")
        state.model.eval()
        real = ratios(lambda: predict(state, state.task.loader), lambda: bare_inference(state), given.pairs)
        print(f"evaluation: real / bare {real}")
        print(evaluation_with_its_loader(state, given.pairs))
        print("shares of an epoch:", shares(make(Path(folder), given)))
        wanted = {"train": {"ema_decay": 0.999}, "augment": {"mixup": 0.8, "cutmix": 1.0}}
        print("with mixup and an EMA:", shares(make(Path(folder), given, **wanted)))


if __name__ == "__main__":
    main()
