"""Training: curves, checkpoints, exact resumption, divergence, memory, accumulation."""

import dataclasses
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from timm.utils.model_ema import ModelEmaV3

import stmbench.data
from stmbench.nn.block import Block
from stmbench.recipe import Recipe, from_values
from stmbench.record import Artifact, Job, Measurement, Progress
from stmbench.stages import train
from stmbench.training import network


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
    (weights,) = [e for e in events if isinstance(e, Artifact)]
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
    with pytest.raises(
        train.DivergedError, match=r"in epoch 2; the weights of epoch 1 are kept.*optimizer\.lr"
    ):
        list(train.run(job))
    kept = load_file(state_of)
    assert all(torch.equal(value, kept[name]) for name, value in good.items())


def test_out_of_memory_names_the_batch_size_to_try(tiny_job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    monkeypatch.setattr(train, "_forward", exhausted)
    with pytest.raises(
        network.OutOfMemoryError, match=r"16 images at once; try --set train\.device_batch_size=8"
    ):
        list(train.run(tiny_job))


def test_accumulation_makes_as_many_updates_of_as_many_images(tiny_job: Job) -> None:
    whole, parts = tiny_job, changed(tiny_job, train={"device_batch_size": 4})
    state = train.TrainState(parts, stmbench.data.find(parts.data))
    assert (state.accumulate, state.updates) == (4, 3)
    rates = []
    (parts.folder / "parts").mkdir()
    for job in (whole, dataclasses.replace(parts, folder=parts.folder / "parts")):
        rates.append(curve(list(train.run(job)), "lr"))
    assert rates[0] == rates[1]


def test_gradients_accumulate_to_the_mean_over_the_batch(
    tiny_job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Micro-batches whose losses are the biases' sums: each bias's gradient is 1, however many they are."""
    gradients = []

    def forward(state: train.TrainState, images: torch.Tensor, labels: torch.Tensor):
        return state.model.get_parameter("head.fc.bias").sum(), torch.zeros(len(labels), 4)

    def update(state: train.TrainState, count: int) -> None:
        gradients.append(state.model.get_parameter("head.fc.bias").grad)
        state.optimizer.zero_grad(set_to_none=True)

    monkeypatch.setattr(train, "_forward", forward)
    monkeypatch.setattr(train, "_update", update)
    job = changed(tiny_job, train={"batch_size": 16, "device_batch_size": 4}, schedule={"epochs": 1})
    list(train.run(job))
    assert len(gradients) == 3
    for gradient in gradients:
        torch.testing.assert_close(gradient, torch.ones(4))


def test_the_schedule_warms_up_and_ends_at_its_floor(tiny_job: Job) -> None:
    job = changed(
        tiny_job,
        schedule={"epochs": 4, "warmup_epochs": 1, "warmup_lr": 1e-5, "min_lr": 1e-6},
        optimizer={"lr": 1e-3},
    )
    state = train.TrainState(job, stmbench.data.find(job.data))
    rates = [state.optimizer.param_groups[0]["lr"]]
    for count in range(1, 4 * state.updates + 1):
        state.scheduler.step_update(count)
        rates.append(state.optimizer.param_groups[0]["lr"])
    assert rates[0] == pytest.approx(1e-5)
    assert max(rates) <= 1e-3
    assert rates.index(max(rates)) == state.updates
    assert rates[-1] == pytest.approx(1e-6)


def test_a_batch_larger_than_the_data_is_the_users_mistake(tiny_job: Job) -> None:
    job = changed(tiny_job, train={"batch_size": 64})
    with pytest.raises(ValueError, match=r"48 training images, fewer than one batch.*train\.batch_size"):
        list(train.run(job))


def test_layer_norms_biases_and_position_tables_take_no_weight_decay(
    tiny_job: Job, tiny_recipe: Recipe
) -> None:
    job = dataclasses.replace(tiny_job, mixer="swin")
    state = train.TrainState(job, stmbench.data.find(job.data))
    names = {parameter: name for name, parameter in state.model.named_parameters()}
    free = {names[p] for g in state.optimizer.param_groups if g["weight_decay"] == 0 for p in g["params"]}
    assert "levels.0.blocks.0.gamma1" in free
    assert "levels.0.blocks.0.mixer.relative_position_bias_table" in free
    assert "levels.0.blocks.0.mixer.qkv.bias" in free
    assert "levels.0.blocks.0.mixer.qkv.weight" not in free


def test_the_average_is_timm_s_and_outlives_loaded_weights() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    ours, theirs = train._Ema(model, 0.7), ModelEmaV3(model, 0.7)
    for step in range(4):
        model(torch.randn(5, 3)).sum().backward()  # moves the statistics, and counts batches
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += torch.randn_like(parameter)
        if step == 2:  # as a resumed run does
            for module in (model, ours.module, theirs.module):
                module.load_state_dict({key: value + 1 for key, value in module.state_dict().items()})
        for average in (ours, theirs):
            average.update(model)
    wanted = theirs.module.state_dict()
    assert ours.module.state_dict().keys() == wanted.keys()
    assert all(torch.equal(value, wanted[name]) for name, value in ours.module.state_dict().items())
    assert not torch.equal(wanted["0.weight"], model.state_dict()["0.weight"])


def test_a_checkpoint_that_cannot_be_read_is_named(tiny_job: Job) -> None:
    (tiny_job.folder / "checkpoint.pt").write_bytes(b"half of a checkpoi")
    with pytest.raises(RuntimeError, match=r"checkpoint\.pt cannot be read"):
        list(train.run(tiny_job))


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
