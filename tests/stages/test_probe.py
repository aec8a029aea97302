"""Stage probe: neighbours and a linear classifier of features, against slow loops and known answers."""

import dataclasses
import math
from collections import defaultdict
from collections.abc import Generator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import stmbench.data
from stmbench import plan
from stmbench.data import DataInfo
from stmbench.nn import create_model
from stmbench.nn.timm_models import create
from stmbench.recipe import Probe
from stmbench.record import Artifact, Event, Job, Measurement, Note, parts_of
from stmbench.stages import probe
from stmbench.stages.evaluate import UNREADABLE
from stmbench.stages.probe import Features, Regression
from stmbench.training import network

N, Q, D, C = 300, 60, 12, 7


class Pixels(nn.Module):
    """Its features are the means of an image's four quarters, which tell the tiny data's classes apart."""

    def forward_features(self, images: Tensor) -> Tensor:
        return nn.functional.adaptive_avg_pool2d(images, 2)  # (B, 1, 2, 2)

    def forward_head(self, features: Tensor, pre_logits: bool) -> Tensor:
        assert pre_logits
        return features.flatten(1)  # (B, 4)


@pytest.fixture
def job(tiny_job: Job, monkeypatch: pytest.MonkeyPatch) -> Job:
    """A job whose network is `Pixels`."""
    monkeypatch.setattr(network, "headline", lambda job, info: ("ema", Pixels()))
    monkeypatch.setattr(network, "taken", lambda job, model, stage: iter(()))
    return dataclasses.replace(tiny_job, stages=("probe",))


def with_settings(job: Job, **settings: float) -> Job:
    recipe = dataclasses.replace(job.recipe, probe=Probe(**settings))  # pyright: ignore[reportArgumentType]
    return dataclasses.replace(job, recipe=recipe)


def numbers(events: list[Event], by: str) -> dict[str, float]:
    found = [e for e in events if isinstance(e, Measurement) and parts_of(e.condition).get("probe") == by]
    return {e.name: e.value for e in found}


def some_features(seed: int, count: int) -> Features:
    rng = torch.Generator().manual_seed(seed)
    return Features(
        torch.randn(count, D, generator=rng, dtype=torch.float64).float(),
        torch.randint(0, C, (count,), generator=rng),
    )


def drain(events: object) -> object:
    """What a generator of events returns."""
    while True:
        try:
            next(events)  # pyright: ignore[reportCallIssue, reportArgumentType]
        except StopIteration as stop:
            return stop.value


def votes_of(bank: Features, query: np.ndarray, settings: Probe) -> dict[int, float]:
    """Wu et al. 2018, section 3.4, one image at a time."""
    found = []
    for value, label in zip(bank.values.double().numpy(), bank.labels.tolist(), strict=True):
        found.append((value @ query / math.sqrt(value @ value) / math.sqrt(query @ query), label))
    votes: defaultdict[int, float] = defaultdict(float)
    for cosine, label in sorted(found, reverse=True)[: settings.neighbours]:
        votes[label] += math.exp(cosine / settings.temperature)
    return votes


@pytest.mark.parametrize("settings", [{}, {"neighbours": 1}, {"neighbours": 5, "temperature": 0.5}])
def test_neighbours_vote_as_a_slow_loop_says(
    job: Job, settings: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "BANK", 77)  # several parts, the last of them smaller
    monkeypatch.setattr(probe, "QUERIES", 13)
    job = with_settings(job, **settings)
    bank, seen = some_features(0, N), some_features(1, Q)
    found = drain(probe._neighbours(job, bank, seen, C))
    for top5, query in zip(found.top5, seen.values.double().numpy(), strict=True):  # pyright: ignore
        votes = votes_of(bank, query, job.recipe.probe)
        expected = sorted(votes, key=lambda label: -votes[label])[:5]
        assert top5.tolist() == expected + [UNREADABLE] * (5 - len(expected))


def test_neighbours_do_not_depend_on_the_order_of_training_images(job: Job) -> None:
    bank, seen = some_features(0, N), some_features(1, Q)
    order = torch.randperm(N, generator=torch.Generator().manual_seed(2))
    shuffled = Features(bank.values[order], bank.labels[order])
    one, other = (drain(probe._neighbours(job, each, seen, C)) for each in (bank, shuffled))
    assert np.array_equal(one.top5, other.top5)  # pyright: ignore


def test_equal_votes_go_to_the_first_class_and_low_temperatures_do_not_overflow() -> None:
    top5 = probe.voted(torch.tensor([[0.5, 0.5, 0.4]]), torch.tensor([[6, 2, 3]]), 8, 0.001)
    assert top5.tolist() == [[2, 6, 3, UNREADABLE, UNREADABLE]]


def gradient(regression: Regression, bank: Features, l2: float) -> float:
    """The largest derivative of the penalised loss where a regression stands, in float64."""
    values = bank.values.double()
    values = (values - values.mean(0)) / values.std(0, correction=0)
    weight, bias = (
        parameter.detach().double().requires_grad_() for parameter in (regression.weight, regression.bias)
    )
    loss = nn.functional.cross_entropy(values @ weight.T + bias, bank.labels) + l2 / 2 * weight.square().sum()
    return max(float(each.abs().max()) for each in torch.autograd.grad(loss, [weight, bias]))


@pytest.mark.parametrize("l2", [1.0, 0.01])
def test_the_regression_ends_where_the_penalised_loss_is_least(
    l2: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "ROWS", 70)  # several parts
    bank = some_features(0, N)
    bank.values[:, 0] = 100 + 0.01 * bank.values[:, 0]  # which standardising takes away
    regression = Regression(bank, torch.arange(N), C, "cpu")
    regression.fit(l2)
    assert gradient(regression, bank, l2) < 3e-5


def test_a_feature_that_varies_by_rounding_alone_is_left_out() -> None:
    bank = some_features(0, N)
    bank.values[:, 3] = 0.1
    bank.values[::2, 3] = torch.nextafter(torch.tensor(0.1), torch.tensor(1.0))
    regression = Regression(bank, torch.arange(N), C, "cpu")
    regression.fit(0.01)
    far = bank.values[:5].clone()
    far[:, 3] = 7.0
    assert torch.equal(regression.logits(far), regression.logits(bank.values[:5]))


def separable(seed: int, count: int) -> Features:
    """Classes that one direction tells apart, hidden under noise a hundred times as large in all others."""
    rng = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 2
    values = 100 * torch.randn(count, D, generator=rng)
    values[:, 5] = 2.0 * labels + 0.1 * torch.randn(count, generator=rng)
    return Features(values, labels)


def test_what_a_line_separates_the_linear_probe_learns_and_neighbours_do_not(job: Job) -> None:
    bank, seen = separable(0, 400), separable(1, 200)
    linear, l2 = drain(probe._linear(job, bank, seen, 2))  # pyright: ignore
    neighbours = drain(probe._neighbours(job, bank, seen, 2))
    assert linear.numbers()["top1"][0] == 100
    assert l2 in probe.L2
    assert neighbours.numbers()["top1"][0] < 75  # pyright: ignore


def test_the_penalty_that_judges_held_out_images_best_is_taken(job: Job) -> None:
    """Two features that noise moves together, and classes a little apart: only large weights tell those."""

    def hidden(seed: int, count: int) -> Features:
        rng = torch.Generator().manual_seed(seed)
        labels, noise = torch.arange(count) % 2, torch.randn(count, generator=rng)
        return Features(torch.stack([noise, noise + 0.3 * (2.0 * labels - 1)], 1), labels)

    linear, l2 = drain(probe._linear(job, hidden(0, 400), hidden(1, 200), 2))  # pyright: ignore
    assert linear.numbers()["top1"][0] > 95  # 65 under the strongest
    assert l2 < 1


def test_the_penalty_is_chosen_without_the_validation_images(job: Job) -> None:
    """Labels without any sense in them: the strongest penalty that is as good as others is taken."""
    bank, seen = some_features(0, N), some_features(1, Q)
    wrong = Features(seen.values, (seen.labels + 1) % C)
    (one, l2), (other, same) = (drain(probe._linear(job, bank, each, C)) for each in (seen, wrong))  # pyright: ignore
    assert l2 == same
    assert np.array_equal(one.top5, other.top5)


def test_the_stage_reports_both_probes_and_keeps_every_answer(job: Job) -> None:
    events = list(probe.run(job))
    knn, linear = numbers(events, "knn"), numbers(events, "linear")
    assert (knn["top1"], linear["top1"], linear["top5"], knn["images"]) == (100, 100, 100, 20)
    assert linear["l2"] in probe.L2
    assert linear["loss"] < math.log(4)  # of four classes, which a guess would have
    assert "loss" not in knn
    files = {parts_of(e.condition)["probe"]: e for e in events if isinstance(e, Artifact)}
    assert {name: file.path.name for name, file in files.items()} == {
        "knn": "probe_knn_ema.npz",
        "linear": "probe_linear_ema.npz",
    }
    at = parts_of(files["knn"].condition)
    assert at == {
        "probe": "knn", "k": "20", "temperature": "0.07", "images": "48", "size": "28",
        "precision": "fp32", "protocol": "probe/1", "weights": "ema",
    }  # fmt: skip
    for file in files.values():
        kept = np.load(file.path)
        assert kept["labels"].tolist() == [i % 4 for i in range(20)]  # in the data set's own order
        assert kept["top5"].shape == (20, 4)


def test_the_same_again_is_the_same(job: Job) -> None:
    files = []
    for seed in (0, 1):  # which nothing depends on
        torch.manual_seed(seed)
        events = list(probe.run(dataclasses.replace(job, seed=seed)))
        files.append([e.path.read_bytes() for e in events if isinstance(e, Artifact)])
    assert files[0] == files[1]


def test_a_share_of_the_training_images_is_spread_over_them(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[DataInfo] = []
    real = stmbench.data.eval_loader
    monkeypatch.setattr(
        stmbench.data, "eval_loader", lambda info, *a, **k: seen.append(info) or real(info, *a, **k)
    )
    events = list(probe.run(with_settings(job, images=12, neighbours=4)))
    assert seen[0].val.indices == tuple(range(0, 48, 4))  # pyright: ignore[reportAttributeAccessIssue]
    assert numbers(events, "knn")["top1"] < 100  # which are all of one class
    (note,) = [e for e in events if isinstance(e, Note)]
    assert note.text == "No training image is of 1, 2, 3: their validation images count as wrong."


def test_images_that_cannot_be_read_are_neither_neighbours_nor_counted(job: Job) -> None:
    bank, seen = some_features(0, N), some_features(1, Q)
    bank.labels[:10], seen.labels[:3] = UNREADABLE, UNREADABLE
    readable = bank.readable()
    assert len(readable.labels) == N - 10
    assert torch.equal(readable.values, bank.values[10:])
    linear, _ = drain(probe._linear(job, readable, seen, C))  # pyright: ignore
    assert linear.numbers()["images"] == (Q - 3, "images")
    assert np.isnan(linear.losses[:3]).all()
    assert np.isfinite(linear.losses[3:]).all()


def test_the_stage_leaves_unreadable_images_out(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    real = probe._features

    def lossy(*arguments: Any) -> Generator[Event, None, Features]:
        found = yield from real(*arguments)
        found.labels[0] = UNREADABLE
        return found

    monkeypatch.setattr(probe, "_features", lossy)
    events = list(probe.run(job))
    knn = numbers(events, "knn")
    assert (knn["images"], knn["skipped"]) == (19, 1)
    conditions = {parts_of(e.condition)["images"] for e in events if isinstance(e, Artifact)}
    assert conditions == {"47"}


def test_diverged_weights_are_said_to_be_so(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "features_of", lambda model, images: torch.full((len(images), 3), math.nan))
    with pytest.raises(RuntimeError, match="not finite: these weights have diverged"):
        list(probe.run(job))


def test_features_are_what_the_classifier_gets() -> None:
    images = torch.randn(2, 1, 28, 28)
    ours = create_model("dwconv", "micro", num_classes=4, in_channels=1, image_size=28).eval()
    theirs = create("timm:test_resnet", num_classes=4, in_channels=1, image_size=28, drop_path=None).eval()
    for model in (ours, theirs):
        features = probe.features_of(model, images)
        assert features.ndim == 2
        assert torch.allclose(model.get_classifier()(features), model(images), atol=1e-6)  # pyright: ignore


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"neighbours": 49}, r"48 training images of raw are too few .*neighbours \(49\)"),
        ({"images": 10}, "10 training images of raw are too few"),
        ({"images": 3, "neighbours": 2}, "3 training images of raw are too few"),
    ],
)
def test_too_few_training_images_are_refused(tiny_data: Path, settings: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        probe.check(stmbench.data.find(str(tiny_data)), Probe(**settings))


def test_a_stream_is_refused(tiny_data: Path) -> None:
    info = dataclasses.replace(stmbench.data.find(str(tiny_data)), train=range(0).__iter__())  # pyright: ignore
    with pytest.raises(ValueError, match="is a stream, and the stage probe"):
        probe.check(info, Probe())


def test_a_plan_refuses_what_the_stage_would(tiny_data: Path, tiny_recipe_file: Path) -> None:
    asked = {"mixer": "dwconv", "scale": None, "seed": 0, "data": str(tiny_data), "device": "cpu"}
    with pytest.raises(ValueError, match="48 training images of raw are too few"):
        plan.request(
            recipe_name=str(tiny_recipe_file),
            overrides=["probe.neighbours=49"],
            stage="train,probe",
            weights=None,
            **asked,
        )
    with pytest.raises(ValueError, match="Nothing to evaluate"):
        plan.request(recipe_name=str(tiny_recipe_file), overrides=[], stage="probe", weights=None, **asked)
