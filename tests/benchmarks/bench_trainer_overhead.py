"""What training and evaluating add to the network's own work: under 3 %, it says.

python tests/benchmarks/bench_trainer_overhead.py [MIXER] [SCALE] [SIZE] [BATCH] [STEPS] [PAIRS]

The real epoch of `training/engine.py` and the real pass of `stages/evaluate.py`, over batches that lie in
memory, in turns with bare loops of the same forward passes, backward passes and optimizer steps; the shares
of an epoch, with mixup and the EMA, where a recipe asks for them, told apart; and the evaluation with its
loader beside the loader alone and the network alone. Run it on a calm machine.
"""

import statistics
import sys
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
from stmbench.training import engine
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
            started = time.perf_counter()
            result = call(*args, **options)
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started
            return result

        return timed


def seconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def bare_training(state: Trainer) -> None:
    for images, labels in state.task.loader:
        loss = torch.nn.functional.cross_entropy(state.model(images), labels)
        loss.backward()
        state.optimizer.step()
        state.optimizer.zero_grad()


def bare_inference(state: Trainer) -> None:
    for images, _ in state.task.loader:
        with torch.inference_mode():
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


def make(folder: Path, mixer: str, scale: str, size: int, batch: int, steps: int, **extra: Any) -> Any:
    values = load("quick").values()
    values["data"]["image_size"] = size
    values["train"] |= {"batch_size": batch, **extra.get("train", {})}
    values["augment"] |= extra.get("augment", {})
    values["eval"] |= {"batch_size": batch}
    recipe = from_values(values, "overhead")
    job = Job(mixer=mixer, scale=scale, recipe=recipe, stages=("train",), data="fashion-mini", folder=folder)
    task = Classification(job, stmbench.data.find("fashion-mini"))
    state = Trainer(job, task)
    channels = recipe.data.channels
    batches = [
        (torch.randn(batch, channels, size, size), torch.randint(0, 10, (batch,))) for _ in range(steps)
    ]
    task.loader, state.updates = Fed(batches), steps  # pyright: ignore[reportAttributeAccessIssue]
    return state


def main() -> None:
    given = sys.argv[1:] + ["dwconv", "micro", "28", "64", "20", "8"][len(sys.argv) - 1 :]
    (mixer, scale), (size, batch, steps, pairs) = given[:2], map(int, given[2:])
    with tempfile.TemporaryDirectory() as folder:
        options = (Path(folder), mixer, scale, size, batch, steps)
        state = make(*options)
        real = ratios(lambda: real_training(state), lambda: bare_training(state), pairs)
        print(f"training: real / bare {real}")
        state.model.eval()
        real = ratios(lambda: predict(state, state.task.loader), lambda: bare_inference(state), pairs)
        print(f"evaluation: real / bare {real}")
        print(evaluation_with_its_loader(state, pairs))
        print("shares of an epoch:", shares(make(*options)))
        wanted = {"train": {"ema_decay": 0.999}, "augment": {"mixup": 0.8, "cutmix": 1.0}}
        print("with mixup and an EMA:", shares(make(*options, **wanted)))


if __name__ == "__main__":
    main()
