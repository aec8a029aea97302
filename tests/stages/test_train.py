"""Training: curves, checkpoints, exact resumption, divergence, memory, accumulation."""

import dataclasses
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from stmbench.nn.block import Block
from stmbench.recipe import from_values
from stmbench.record import Artifact, Job, Measurement, Progress
from stmbench.stages import train
from stmbench.training import network
from stmbench.training.meter import DivergedError


def changed(job: Job, **sections: dict) -> Job:
    """The job with some values of its recipe changed."""
    values = job.recipe.values()
    for section, new in sections.items():
        values[section] = values[section] | new
    return dataclasses.replace(job, recipe=from_values(values, job.recipe.name))


def curve(events: list, name: str) -> list[float]:
    return [e.value for e in events if isinstance(e, Measurement) and e.name == name and e.step]


def test_training_learns_and_leaves_a_curve_per_epoch(tiny_job: Job) -> None:
    job = changed(tiny_job, schedule={"epochs": 4})
    events = list(train.run(job))
    loss = curve(events, "loss")
    assert len(loss) == 4
    assert loss[-1] < loss[0]
    for name in ("lr", "images_per_second", "top1", "val_loss", "seconds"):
        assert len(curve(events, name)) == 4, name
    assert [e.step for e in events if isinstance(e, Measurement) and e.name == "loss"] == [1, 2, 3, 4]
    last = [e for e in events if isinstance(e, Progress) and e.text == "train 4/4"][-1]
    assert last.done == last.total == 3
    assert set(last.numbers) == {"loss", "images/s", "acc"}
    weights, best = [e for e in events if isinstance(e, Artifact)]
    assert (weights.kind, best.kind) == ("weights", "best_weights")
    with safe_open(weights.path, "pt") as file:
        metadata = file.metadata()
    assert (metadata["mixer"], metadata["scale"], metadata["epoch"]) == ("dwconv", "micro", "4")
    assert metadata["recipe"] == f"tiny@{job.recipe.digest}"
    assert float(metadata["top1"]) == pytest.approx(curve(events, "top1")[-1])


@pytest.mark.parametrize("mixer", ["dwconv", "swin"])
def test_a_resumed_run_ends_with_the_same_weights_bit_for_bit(tiny_job: Job, tmp_path, mixer: str) -> None:
    augment = {"mixup": 0.5, "cutmix": 1.0, "erase": 0.25, "color_jitter": 0.3}
    straight = changed(
        dataclasses.replace(tiny_job, mixer=mixer, folder=tmp_path / "straight"),
        augment=augment,
        model={"drop_path": 0.2},
        train={"ema_decay": 0.9},
    )
    straight.folder.mkdir()
    list(train.run(straight))
    broken = dataclasses.replace(straight, folder=tmp_path / "broken")
    broken.folder.mkdir()
    events = train.run(broken)
    for event in events:
        if isinstance(event, Progress) and event.text == "train 2/2":
            break  # in the middle of the second epoch
    events.close()
    torch.rand(7)  # whatever else the resuming process did with its random numbers
    list(train.run(broken))
    for kind in ("plain", "ema"):
        one, other = (load_file(network.weights_file(job, kind)) for job in (straight, broken))
        assert one.keys() == other.keys()
        for name, value in one.items():
            assert torch.equal(value, other[name]), name


def test_weights_follow_a_checkpoint_that_they_were_not_written_after(tiny_job: Job) -> None:
    job = changed(tiny_job, schedule={"epochs": 1})
    list(train.run(job))
    path = network.weights_file(job, "plain")
    whole = load_file(path)
    path.unlink()
    list(train.run(job))
    again = load_file(path)
    assert all(torch.equal(value, again[name]) for name, value in whole.items())


def test_divergence_fails_and_keeps_the_last_good_weights(tiny_job: Job) -> None:
    state_of = network.weights_file(tiny_job, "plain")
    job = changed(tiny_job, schedule={"epochs": 1})
    list(train.run(job))
    good = load_file(state_of)
    job = changed(tiny_job, schedule={"epochs": 3}, optimizer={"lr": 1e30})
    with pytest.raises(DivergedError, match=r"in epoch 2; the weights of epoch 1 are kept.*optimizer\.lr"):
        list(train.run(job))
    kept = load_file(state_of)
    assert all(torch.equal(value, kept[name]) for name, value in good.items())


def test_a_batch_larger_than_the_data_is_the_users_mistake(tiny_job: Job) -> None:
    job = changed(tiny_job, train={"batch_size": 64})
    with pytest.raises(ValueError, match=r"48 training images, fewer than one batch.*train\.batch_size"):
        list(train.run(job))


def test_checkpointing_computes_every_block_again_to_the_same_weights(
    tiny_job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    compute = Block.forward
    monkeypatch.setattr(Block, "forward", lambda self, x: calls.append(1) or compute(self, x))
    weights, counts = [], []
    for checkpointing in (False, True):
        job = changed(tiny_job, schedule={"epochs": 1}, train={"checkpointing": checkpointing})
        job = dataclasses.replace(job, folder=tmp_path / str(checkpointing))
        job.folder.mkdir()
        list(train.run(job))
        weights.append(load_file(network.weights_file(job, "plain")))
        counts.append(len(calls))
        calls.clear()
    assert counts[1] > counts[0]
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor)
