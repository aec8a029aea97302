"""The stage: its plain crop is evaluation's, nothing overwrites anything, and bad images are counted."""

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import stmbench.data
from stmbench.nn import create_model
from stmbench.nn.weights import save_weights
from stmbench.recipe import Invariance, Recipe
from stmbench.record import Artifact, Event, Job, Measurement, Note, Progress
from stmbench.stages import evaluate, invariance
from stmbench.training import network

FEW = Invariance(
    batch_size=8,
    translation=(0, 2, 40),
    rotation=(90,),
    scale=(0.5, 2.0),
    jpeg=(30,),
    blur=(2.0,),
    noise=(0.2,),
    contrast=(0.5,),
    equivariance=10,
)
NONE = Invariance(
    translation=(), rotation=(), scale=(), flip=False, jpeg=(), blur=(), noise=(), contrast=(), equivariance=0
)
Numbers = dict[tuple[str, str], Measurement]


class Faint(nn.Module):
    """A classifier that looks at where an image is bright, and counts what it is shown."""

    def __init__(self, constant: bool = False) -> None:
        super().__init__()
        self.constant, self.seen = constant, 0

    def forward(self, images: Tensor) -> Tensor:
        self.seen += len(images)
        quarters = nn.functional.adaptive_avg_pool2d(images.mean(1, keepdim=True), 2).flatten(1)
        return torch.eye(4)[:1].expand(len(images), -1) if self.constant else 20 * quarters  # (B, 4)


def job_of(job: Job, settings: Invariance) -> Job:
    recipe = dataclasses.replace(job.recipe, invariance=settings)
    return dataclasses.replace(job, recipe=recipe, stages=("invariance",), weights="none")


@pytest.fixture
def given(tiny_job: Job, tmp_path: Path) -> Job:
    """A job with weights of a network of ours."""
    torch.manual_seed(0)
    model = create_model("dwconv", "micro", num_classes=4, in_channels=1, image_size=28)
    save_weights(tmp_path / "given.safetensors", model.state_dict(), {})
    return dataclasses.replace(job_of(tiny_job, FEW), weights=str(tmp_path / "given.safetensors"))


def collected(events: Iterator[Event]) -> tuple[Numbers, list[Event]]:
    """Measurements by (name, condition), each there once, and everything else."""
    rest, numbers = [], {}
    for event in events:
        if isinstance(event, Measurement):
            assert event.stage == "invariance"
            assert (event.name, event.condition) not in numbers
            assert len(event.condition) <= 255
            numbers[event.name, event.condition] = event
        elif not isinstance(event, Progress):
            rest.append(event)
    return numbers, rest


def run_with(monkeypatch: pytest.MonkeyPatch, job: Job, model: nn.Module) -> tuple[Numbers, list[Event]]:
    monkeypatch.setattr(network, "headline", lambda *_: ("plain", model))
    monkeypatch.setattr(network, "taken", lambda *_: iter(()))
    return collected(invariance.run(job))


def at(numbers: Numbers, name: str, protocol: str = "invariance/1", **parts: Any) -> float:
    wanted = {f"{key}={value}" for key, value in (parts | {"protocol": protocol}).items()}
    (found,) = [
        m for (n, condition), m in numbers.items() if n == name and wanted <= set(condition.split(","))
    ]
    return found.value


def test_the_plain_crop_is_the_one_of_stage_eval(given: Job) -> None:
    numbers, events = collected(invariance.run(given))
    evaluated = {e.name: e.value for e in evaluate.run(given) if isinstance(e, Measurement)}
    assert at(numbers, "top1", transform="none", strength=0) == pytest.approx(evaluated["top1"])
    assert at(numbers, "top5", transform="none", strength=0) == 100  # of four classes
    assert at(numbers, "images") == evaluated["images"] == 20
    assert at(numbers, "skipped") == 0
    (artifact,) = [e for e in events if isinstance(e, Artifact)]
    assert artifact.path == given.folder / "invariance_plain.npz"
    kept, said = np.load(artifact.path), np.load(given.folder / "predictions_plain.npz")
    assert (kept["top1"][0] == said["top5"][:, 0]).all()
    assert kept["indices"].tolist() == list(range(20))
    assert kept["top1"].shape == (len(kept["strength"]), 20)


def test_every_transformation_is_reported_with_its_interval(given: Job) -> None:
    numbers, _ = collected(invariance.run(given))
    strengths = {"translation": 40, "rotation_before": 90, "rotation_after": 90, "scale": 2, "flip": 1}
    strengths |= {"jpeg": 30, "blur": 2, "noise": 0.2, "contrast": 0.5}
    for transform, strength in strengths.items():
        point = {"transform": transform, "strength": strength}
        assert at(numbers, "cross_entropy", **point) > 0
        for name in ("top1", "top5", "consistency"):
            low, value, high = (at(numbers, name + suffix, **point) for suffix in (".low", "", ".high"))
            assert low <= value <= high
        area = at(numbers, "auc.consistency", transform=transform)
        assert 0 < area <= 1
    neutral = {"translation": 0, "rotation_before": 0, "scale": 1, "flip": 0, "blur": 0, "contrast": 1}
    for transform, strength in neutral.items():
        assert at(numbers, "consistency", transform=transform, strength=strength) == 100
    assert at(numbers, "cost") > 1
    assert 0 < at(numbers, "outside_forward") < 100
    levels = [at(numbers, "equivariance", "equivariance/1", level=1, shift=s) for s in (0.25, 0.5, 1, 2)]
    assert all(-1 <= value <= 1.000001 for value in levels)
    assert math.isnan(at(numbers, "equivariance", "equivariance/1", level=4, shift=1))  # one cell


def test_a_classifier_that_always_says_the_same_is_invariant(
    tiny_job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = job_of(tiny_job, dataclasses.replace(FEW, equivariance=0))
    numbers, _ = run_with(monkeypatch, job, Faint(constant=True))
    for (name, _), measurement in numbers.items():
        if name.startswith("consistency"):
            assert measurement.value == 100
        if name.startswith("auc"):
            assert measurement.value == pytest.approx(1)


def test_each_image_is_shown_once_per_variant(tiny_job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    job = job_of(tiny_job, dataclasses.replace(FEW, equivariance=0))
    model = Faint()
    numbers, _ = run_with(monkeypatch, job, model)
    assert model.seen == 20 * (1 + 2 * 8 + 2 + 2 + 1 + 4)
    # A quarter turn moves every bright quarter of the image.
    assert at(numbers, "top1", transform="none", strength=0) == 100
    assert at(numbers, "top1", transform="rotation_before", strength=90) == 0
    assert at(numbers, "top1", transform="rotation_after", strength=90) == 0
    assert at(numbers, "auc.top1", transform="rotation_after") == pytest.approx(0.5)


def test_batches_and_loader_processes_make_no_difference(
    tiny_job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = []
    for batch_size, workers in ((20, 0), (3, 1)):
        job = job_of(tiny_job, dataclasses.replace(FEW, equivariance=0, batch_size=batch_size))
        data = dataclasses.replace(job.recipe.data, workers=workers)
        job = dataclasses.replace(job, recipe=dataclasses.replace(job.recipe, data=data))
        run_with(monkeypatch, job, Faint())
        answers.append(dict(np.load(job.folder / "invariance_plain.npz")))
    for name, values in answers[0].items():
        if name == "cross_entropy":
            assert values == pytest.approx(answers[1][name], rel=2e-3, abs=1e-3)
        else:
            assert (values == answers[1][name]).all()


def test_the_published_protocol_is_never_mixed_with_ours(
    tiny_job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = dataclasses.replace(
        NONE, translation=(4,), images=5, protocols=("invariance/1", "invariance/published")
    )
    numbers, events = run_with(monkeypatch, job_of(tiny_job, settings), Faint())
    ours = at(numbers, "top1", transform="translation", strength=4)
    published = at(numbers, "top1", "invariance/published", transform="translation", strength=4)
    assert (0 <= ours <= 100, 0 <= published <= 100) == (True, True)
    assert at(numbers, "consistency", "invariance/published", transform="rotation_after", strength=0) == 100
    assert at(numbers, "images", "invariance/published") == at(numbers, "images") == 5
    files = sorted(e.path.name for e in events if isinstance(e, Artifact))
    assert files == ["invariance_plain.npz", "invariance_published_plain.npz"]
    assert all("protocol=" in condition for _, condition in numbers)
    worst = [condition for name, condition in numbers if name == "top1.worst"]
    assert worst
    assert all("protocol=invariance/1," in condition for condition in worst)


def test_without_transformations_only_the_plain_crop_is_left(
    tiny_job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers, _ = run_with(monkeypatch, job_of(tiny_job, NONE), Faint())
    points = {condition for name, condition in numbers if name == "top1"}
    assert len(points) == 1
    assert "transform=none" in points.pop()


def test_an_unreadable_image_is_left_out_and_counted(
    tiny_job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "photos"
    for index in range(120):
        for split in ("train", "val"):
            path = root / split / f"class{index % 2}" / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (30, 40), 2 * index).save(path)
    broken = root / "val" / "class0" / "4.png"
    broken.write_bytes(broken.read_bytes()[:40])
    job = dataclasses.replace(job_of(tiny_job, dataclasses.replace(NONE, flip=True)), data=str(root))
    numbers, events = run_with(monkeypatch, job, Faint())
    assert (at(numbers, "images"), at(numbers, "skipped")) == (119, 1)
    assert "left out: 1 of 120" in next(e.text for e in events if isinstance(e, Note))
    kept = np.load(job.folder / "invariance_plain.npz")
    assert len(kept["labels"]) == len(kept["indices"]) == 119


def test_a_stream_is_refused_in_one_line(tiny_job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    class Shards:
        def __len__(self) -> int:
            return 4

    info = dataclasses.replace(stmbench.data.find(tiny_job.data), val=Shards())
    monkeypatch.setattr(stmbench.data, "find", lambda _: info)
    with pytest.raises(ValueError, match=r"is a stream, and the stages erf and invariance choose images"):
        next(invariance.run(job_of(tiny_job, FEW)))


def test_a_network_without_features_is_a_note(tiny_job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    job = job_of(tiny_job, dataclasses.replace(NONE, equivariance=5))
    numbers, events = run_with(monkeypatch, job, Faint())
    assert not any(name == "equivariance" for name, _ in numbers)
    assert "hands out no features" in next(e.text for e in events if isinstance(e, Note))


def test_a_timm_model_is_looked_at_like_ours(tiny_recipe: Recipe, tiny_job: Job, tmp_path: Path) -> None:
    settings = dataclasses.replace(NONE, translation=(3,), equivariance=6)
    job = dataclasses.replace(job_of(tiny_job, settings), mixer="timm:test_resnet", scale="")
    path = tmp_path / "resnet.safetensors"
    save_weights(path, network.make(dataclasses.replace(job, weights=None), 4).state_dict(), {})
    numbers, events = collected(invariance.run(dataclasses.replace(job, weights=str(path))))
    assert at(numbers, "consistency", transform="translation", strength=3) <= 100
    levels = [at(numbers, "equivariance", "equivariance/1", level=level, shift=1) for level in (1, 2)]
    assert all(0.3 < value <= 1.000001 for value in levels)
    assert not [e for e in events if isinstance(e, Note)]
