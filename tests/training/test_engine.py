"""The trainer with a task of its own: a line fitted to points, whose gradients one knows."""

import dataclasses
import math
import os
import signal
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from stmbench.recipe import from_values
from stmbench.record import Event, Job, Measurement, Note, Progress
from stmbench.training import engine, network
from stmbench.training.engine import Numbers
from stmbench.training.meter import DivergedError, Loss

POINTS = 32


class Points:
    """Micro-batches of one epoch: the same points every time, in the order of their number."""

    skipped = 0

    def __init__(self, size: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.x = torch.randn(POINTS, 3, generator=generator)
        self.size, self.first = size, 0
        self.started: list[tuple[int, int]] = []

    def __len__(self) -> int:
        return POINTS // self.size

    def start(self, epoch: int, step: int) -> None:
        self.started.append((epoch, step))
        self.first = step

    def __iter__(self) -> Iterator[Tensor]:
        for step in range(self.first, len(self)):
            yield self.x[step * self.size : (step + 1) * self.size]

    def check_skipped(self) -> None:
        pass


class Line:
    """y = x . (1, 2, 3), with noise that is drawn anew for every micro-batch."""

    stage = "train"

    def __init__(self, job: Job) -> None:
        torch.manual_seed(job.seed)
        self.model: nn.Module = nn.Linear(3, 1)
        self.loader: Any = Points(engine.shares(job.recipe, 1)[0])
        self.noise = 0.0
        self.scores = iter([1.0, 3.0, 2.0, 2.5, 2.0, 1.0])

    def loss(self, forward: Callable[[Tensor], Tensor], batch: Tensor) -> Loss:
        wanted = batch @ torch.tensor([1.0, 2.0, 3.0]) + self.noise * torch.randn(len(batch))
        error = (forward(batch).squeeze(1).float() - wanted).square().mean()
        return Loss(error, len(batch), parts={"loss_half": error / 2})

    def validate(self, kind: str, model: nn.Module, epoch: int) -> Generator[Event, None, Numbers]:
        yield Progress("train", "validate", 1, 1)
        return {"score": (next(self.scores), "%")}

    def metadata(self) -> dict[str, str]:
        return {"data": "points"}


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return made(tmp_path / "run")


def made(folder: Path, **sections: dict) -> Job:
    folder.mkdir(exist_ok=True)
    train = {"batch_size": 8} | sections.pop("train", {})
    recipe = from_values({"train": train, "schedule": {"epochs": 3, "warmup_epochs": 0}} | sections, "line")
    return Job(mixer="dwconv", scale="micro", recipe=recipe, stages=("train",), data="", folder=folder)


@pytest.fixture(autouse=True)
def _untimed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine.stmbench.data, "loader_rate", lambda loader, seconds: 123.0)


def curve(events: list[Event], name: str) -> list[float]:
    return [e.value for e in events if isinstance(e, Measurement) and e.name == name and e.step]


def weights(task: Line) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in task.model.parameters()])


@pytest.mark.parametrize(
    ("batch", "most", "processes", "wanted"),
    [
        (1024, 256, 1, (256, 4)),
        (1024, 256, 8, (128, 1)),
        (1024, 100, 8, (64, 2)),
        (1024, 0, 1, (1024, 1)),
        (1024, 0, 4, (256, 1)),
        (48, 32, 2, (24, 1)),
    ],
)
def test_the_batch_is_the_recipe_s_however_many_processes_share_it(
    tmp_path: Path, batch: int, most: int, processes: int, wanted: tuple[int, int]
) -> None:
    recipe = made(tmp_path, train={"batch_size": batch, "device_batch_size": most}).recipe
    micro, accumulate = engine.shares(recipe, processes)
    assert (micro, accumulate) == wanted
    assert micro * accumulate * processes == batch


def test_a_batch_that_cannot_be_dealt_out_is_the_users_mistake(tmp_path: Path) -> None:
    recipe = made(tmp_path, train={"batch_size": 10}).recipe
    with pytest.raises(
        ValueError, match=r"10 images cannot be dealt out to 4 processes: set train\.batch_size"
    ):
        engine.shares(recipe, 4)


def test_the_curves_and_the_setting_are_told(job: Job) -> None:
    events = list(engine.train(job, Line(job)))
    numbers = {e.name: e.value for e in events if isinstance(e, Measurement) and not e.step}
    assert numbers == {
        "processes": 1, "device_batch": 8, "accumulation": 1, "norm_batch": 8, "updates": 4,
        "loader_images_per_second": 123,
    }  # fmt: skip
    for name in ("loss", "lr", "images_per_second", "data_wait", "seconds", "score"):
        assert len(curve(events, name)) == 3, name
    assert all(0 <= share <= 100 for share in curve(events, "data_wait"))
    assert curve(events, "loss_half") == pytest.approx([loss / 2 for loss in curve(events, "loss")])


def test_accumulated_gradients_are_those_of_the_whole_batch(tmp_path: Path) -> None:
    """So are the weights, whatever the size of a micro-batch."""
    ends = []
    for most in (0, 4, 2):
        job = made(tmp_path / str(most), train={"device_batch_size": most})
        task = Line(job)
        list(engine.train(job, task))
        ends.append(weights(task))
    torch.testing.assert_close(ends[1], ends[0])
    torch.testing.assert_close(ends[2], ends[0])


def test_an_incomplete_update_is_left_out(tmp_path: Path) -> None:
    job = made(tmp_path / "run", train={"batch_size": 24, "device_batch_size": 8})
    events = list(engine.train(job, Line(job)))
    steps = [e.total for e in events if isinstance(e, Progress) and e.text.startswith("train 1")]
    assert set(steps) == {3}  # of the four micro-batches


def test_gradients_are_clipped_after_they_were_unscaled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    norms: list[float] = []
    step = torch.optim.SGD.step

    def watched(optimizer: torch.optim.SGD, *args: Any) -> Any:
        gradients = [p.grad.flatten() for group in optimizer.param_groups for p in group["params"]]
        norms.append(float(torch.cat(gradients).norm()))
        return step(optimizer, *args)

    monkeypatch.setattr(torch.optim.SGD, "step", watched)
    job = made(
        tmp_path / "run",
        optimizer={"name": "sgd", "clip_grad": 0.01, "lr": 1e-3},
        train={"batch_size": 8, "precision": "fp16"},
    )
    list(engine.train(job, Line(job)))
    norms = [norm for norm in norms if math.isfinite(norm)]  # the loss scale starts too high
    assert norms
    assert norms == pytest.approx([0.01] * len(norms), rel=1e-2)


def test_the_best_weights_are_kept_by_the_score_of_the_last_validation(job: Job) -> None:
    from safetensors import safe_open

    list(engine.train(job, Line(job)))
    with safe_open(network.weights_file(job, "best"), "pt") as file:
        told = file.metadata()
    assert {key: told[key] for key in ("data", "mixer", "weights", "epoch", "score")} == {
        "data": "points", "mixer": "dwconv", "weights": "plain", "epoch": "2", "score": "3.0",
    }  # fmt: skip
    with safe_open(network.weights_file(job, "plain"), "pt") as file:
        assert file.metadata()["epoch"] == "3"


@pytest.mark.parametrize("stop", [1, 3, 4, 5])
def test_a_run_that_is_asked_to_stop_goes_on_in_the_middle_of_an_epoch(tmp_path: Path, stop: int) -> None:
    """The same weights bit for bit, and the same curve, with randomness in the loss."""
    straight, broken = made(tmp_path / "straight"), made(tmp_path / "broken")
    whole = Line(straight)
    whole.noise = 0.1
    wanted = list(engine.train(straight, whole))

    first = Line(broken)
    first.noise = 0.1
    seen: list[Event] = []
    calls, loss = [0], first.loss

    def counted(forward: Callable[[Tensor], Tensor], batch: Tensor) -> Loss:
        calls[0] += 1
        if calls[0] == stop:
            os.kill(os.getpid(), signal.SIGUSR1)
        return loss(forward, batch)

    first.loss = counted  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt, match=f"asked to stop, {(stop - 1) % 4 + 1} updates into epoch"):
        seen.extend(engine.train(broken, first))
    torch.rand(7)  # whatever else the resuming process did with its random numbers
    second = Line(broken)
    second.noise = 0.1
    list(first.scores)
    seen += list(engine.train(broken, second))
    assert torch.equal(weights(second), weights(whole))
    assert (second.loader.started[0]) == ((stop - 1) // 4 + 1, (stop - 1) % 4 + 1)
    for name in ("loss", "lr"):
        assert curve(seen, name) == curve(wanted, name), name
    (note,) = [e.text for e in seen if isinstance(e, Note)]
    assert note == f"Resuming {(stop - 1) % 4 + 1} of 4 updates into epoch {(stop - 1) // 4 + 1} of 3."


def test_signals_are_heard_while_training_alone(job: Job) -> None:
    before = signal.getsignal(signal.SIGTERM)
    events = engine.train(job, Line(job))
    while not isinstance(next(events), Progress):
        pass
    assert signal.getsignal(signal.SIGTERM) is not before
    events.close()
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_damaged_checkpoint_is_told_and_the_one_before_is_used(job: Job) -> None:
    task = Line(job)
    list(engine.train(job, task))
    wanted = weights(task)
    path = job.folder / "checkpoint.pt"
    path.write_bytes(path.read_bytes()[:100])
    again = Line(job)
    events = list(engine.train(job, again))
    damaged, resumed = (e.text for e in events if isinstance(e, Note))
    assert "going on from the one before" in damaged
    assert resumed == "Resuming after epoch 2 of 3."
    assert torch.equal(weights(again), wanted)


def test_the_schedule_warms_up_by_updates_and_falls_in_steps(tmp_path: Path) -> None:
    schedule = {
        "name": "multistep",
        "epochs": 12,
        "milestones": [8, 11],
        "warmup_epochs": 0,
        "warmup_steps": 10,
    }
    job = made(
        tmp_path / "run", schedule=schedule | {"warmup_lr": 1e-5}, optimizer={"lr": 1e-3, "name": "sgd"}
    )
    trainer = engine.Trainer(job, Line(job))
    rates = []
    for update in range(1, 12 * trainer.updates + 1):
        rates.append(trainer.optimizer.param_groups[0]["lr"])
        trainer.scheduler.step_update(update)
    assert rates[:10] == pytest.approx([1e-5 + (1e-3 - 1e-5) * step / 10 for step in range(10)])
    assert rates[10:31] == pytest.approx([1e-3] * 21)
    assert rates[33:43] == pytest.approx([1e-4] * 10)
    assert rates[45:] == pytest.approx([1e-5] * 3)


def test_checkpointing_a_network_that_cannot_is_the_users_mistake(tmp_path: Path) -> None:
    job = made(tmp_path / "run", train={"checkpointing": True})
    with pytest.raises(ValueError, match=r"dwconv cannot follow train\.checkpointing"):
        engine.Trainer(job, Line(job))


def test_out_of_memory_names_the_batch_size_to_try(job: Job) -> None:
    task = Line(job)

    def exhausted(*_: object) -> Loss:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    task.loss = exhausted  # type: ignore[method-assign]
    with pytest.raises(
        network.OutOfMemoryError, match=r"8 images at once; try --set train\.device_batch_size=4"
    ):
        list(engine.train(job, task))


def test_divergence_fails_and_keeps_the_last_good_weights(job: Job) -> None:
    task = Line(job)
    loss = task.loss
    task.loss = lambda forward, batch: dataclasses.replace(  # type: ignore[method-assign]
        found := loss(forward, batch),
        value=found.value * (float("nan") if task.loader.started[-1][0] == 2 else 1),
    )
    with pytest.raises(DivergedError, match=r"in epoch 2; the weights of epoch 1 are kept.*optimizer\.lr"):
        list(engine.train(job, task))
    assert engine.checkpoints.load(job.folder, "cpu")[0]["epoch"] == 1


def test_a_checkpoint_of_an_older_version_is_told(job: Job) -> None:
    torch.save({"epoch": 1, "top1": {}}, job.folder / "checkpoint.pt")
    with pytest.raises(RuntimeError, match=r"older version's: start a new run, with --weights .*plain"):
        engine.Trainer(job, Line(job))
