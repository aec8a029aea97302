"""Evaluation counts every readable image once and keeps every answer."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

import stmbench.data
from stmbench.nn import create_model
from stmbench.nn.weights import save_weights
from stmbench.record import Artifact, Job, Measurement
from stmbench.stages import evaluate
from stmbench.stages.evaluate import Predictions
from stmbench.training import network


def test_numbers_of_known_predictions_leave_the_unreadable_out() -> None:
    predictions = Predictions(
        labels=np.array([0, 1, 2, -1]),
        top5=np.array([[0, 1], [0, 1], [0, 1], [-1, 0]]),
        losses=np.array([1.0, 2.0, 6.0, np.nan], dtype=np.float32),
    )
    numbers = {name: value for name, (value, _) in predictions.numbers().items()}
    assert numbers == {
        "top1": pytest.approx(100 / 3),
        "top5": pytest.approx(200 / 3),
        "loss": pytest.approx(3.0),
        "images": 3,
        "skipped": 1,
    }


def test_given_weights_are_evaluated_and_every_answer_is_kept(tiny_job: Job, tmp_path: Path) -> None:
    model = create_model("dwconv", "micro", num_classes=4, in_channels=1, image_size=28)
    save_weights(tmp_path / "given.safetensors", model.state_dict(), {"epoch": "1"})
    job = dataclasses.replace(tiny_job, weights=str(tmp_path / "given.safetensors"), stages=("eval",))
    events = list(evaluate.run(job))
    numbers = {e.name: e.value for e in events if isinstance(e, Measurement)}
    assert numbers["images"] == 20
    (artifact,) = [e for e in events if isinstance(e, Artifact)]
    kept = np.load(artifact.path)
    assert kept["labels"].tolist() == [i % 4 for i in range(20)]
    assert kept["top5"].shape == (20, 4)
    assert 100 * (kept["top5"][:, 0] == kept["labels"]).mean() == pytest.approx(numbers["top1"])


def test_a_run_is_known_by_its_ema_weights_where_it_keeps_them(tiny_job: Job) -> None:
    info = stmbench.data.find(tiny_job.data)
    for kind, seed in (("plain", 1), ("ema", 2)):
        torch.manual_seed(seed)
        model = create_model("dwconv", "micro", num_classes=4, in_channels=1, image_size=28)
        save_weights(network.weights_file(tiny_job, kind), model.state_dict(), {})
        found, headline = network.headline(tiny_job, info)
        assert found == kind
        assert not headline.training
        assert all(map(torch.equal, headline.state_dict().values(), model.state_dict().values()))
