"""Stage robustness: exact numbers of a network whose answers are known, and a whole run of a real one."""

import dataclasses
import math
from pathlib import Path
from statistics import fmean

import numpy as np
import pytest
from imagenet_sets import NUMBERS, SYNSETS, A, Answers, corrupted, fill, imagenet, publish

from stmbench import plan, runner
from stmbench.data import ALEXNET_ERRORS, UnreadableImagesError
from stmbench.nn import create_model
from stmbench.nn.weights import save_weights
from stmbench.recipe import Recipe, from_values
from stmbench.record import Artifact, Event, Job, Measurement, Note
from stmbench.stages import robustness
from stmbench.store import open_store
from stmbench.training import network

SMALL = {
    "data": {
        "image_size": 8, "mean": [0.0, 0.0, 0.0], "std": [1.0, 1.0, 1.0],
        "interpolation": "nearest", "crop_pct": 0.5, "workers": 0,
    },
    "eval": {"batch_size": 500},
}  # fmt: skip


@pytest.fixture(scope="module")
def trained_on(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return imagenet(tmp_path_factory.mktemp("imagenet"))


@pytest.fixture
def job(trained_on: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    """A job of the network whose answers are known."""
    monkeypatch.setattr(network, "headline", lambda job, info: ("ema", Answers()))
    (tmp_path / "run").mkdir()
    return Job(
        mixer="timm:resnet18",
        scale="",
        recipe=from_values(SMALL, "small"),
        stages=("robustness",),
        data=str(trained_on),
        folder=tmp_path / "run",
    )


def look(job: Job, **folders: Path) -> list[Event]:
    """The events of the stage on these folders."""
    sets = {key: str(path) for key, path in folders.items()}
    recipe = from_values(SMALL | {"robustness": sets}, "small")
    return list(robustness.run(dataclasses.replace(job, recipe=recipe)))


def numbers(events: list[Event], *where: str) -> dict[str, float]:
    """Values by name, of the measurements whose condition has all of these parts."""
    return {
        e.name: e.value
        for e in events
        if isinstance(e, Measurement) and set(where) <= set(e.condition.split(","))
    }


def test_all_classes_may_be_answered(job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(monkeypatch, v2={"images": 1000})
    # 100 answers one class too high, 50 three too high: behind the classes one and two away on either side
    shifted = {**dict.fromkeys(range(100, 200), 1), **dict.fromkeys(range(300, 350), 3)}
    root = fill(tmp_path / "v2", NUMBERS, lambda label: label + shifted.get(label, 0))
    events = look(job, v2=root)
    found = numbers(events, "set=v2", "classes=1000", "protocol=robustness/1", "weights=ema", "size=8")
    assert (found["top1"], found["top5"]) == pytest.approx((85, 95))
    assert (found["images"], found["skipped"]) == (1000, 0)
    # Wilson 1927: 850 of 1,000
    assert (found["top1.low"], found["top1.high"]) == pytest.approx((82.6531, 87.0790), abs=1e-4)
    (artifact,) = [e for e in events if isinstance(e, Artifact)]
    assert (artifact.kind, artifact.path.name) == ("predictions", "robustness_v2_ema.npz")
    kept = np.load(artifact.path)
    assert sorted(kept["labels"]) == list(range(1000))
    assert (kept["top5"][:, 0] - kept["labels"]).sum() == 100 + 3 * 50
    assert kept["losses"].mean(dtype=float) == pytest.approx(found["loss"])


def test_where_there_are_200_classes_only_those_are_answered(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(monkeypatch, a={"images": 200})
    labels = [SYNSETS.index(name) for name in A]
    assert labels[:5] == [6, 11, 13, 15, 17]
    # 10 is no class of A, 11 the nearest that is: right. 9 is none either, and 11 nearer than 6: wrong, but
    # in the top five. 20 for a 15 is 22, 17, 23, 15, 13: in the top five too.
    said = {11: 10, 6: 9, 15: 20}
    events = look(job, a=fill(tmp_path / "a", A, lambda label: said.get(label, label)))
    found = numbers(events, "set=a", "classes=200")
    assert (found["top1"], found["top5"]) == pytest.approx((99, 100))
    losses = []
    for label in labels:
        distance = np.array(labels, dtype=float) - said.get(label, label)
        logits = -np.abs(distance) - 0.25 * (distance > 0)
        losses.append(np.log(np.exp(logits).sum()) - logits[labels.index(label)])
    assert found["loss"] == pytest.approx(fmean(losses), rel=1e-5)
    kept = np.load(job.folder / "robustness_a_ema.npz")
    assert set(np.unique(kept["top5"])) <= set(labels)
    assert kept["top5"][kept["labels"] == 15].tolist() == [[22, 17, 23, 15, 13]]


def test_mean_corruption_error(job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(monkeypatch, c={"images": 200, "synsets": "imagenet_a"})
    wrong = {"all": (20, 40, 60, 80, 100), "fog": (10, 10, 10, 10, 60)}  # of 200 images, by severity
    labels = [SYNSETS.index(name) for name in A]
    for name, counts in wrong.items():
        for severity, count in enumerate(counts, 1):  # the edge says it: nothing may be cropped
            answers = dict(zip(labels, [*labels[1:], labels[0]][:count], strict=False))
            root = tmp_path / name / str(severity)
            fill(root, A, lambda label, answers=answers: answers.get(label, label), whole=True)
    of = {"": tmp_path / "all", "fog": tmp_path / "fog"}
    events = look(job, c=corrupted(tmp_path / "c", of, [*ALEXNET_ERRORS, "saturate"]))

    for severity, count in enumerate(wrong["all"], 1):
        assert numbers(events, "corruption=snow", f"severity={severity}")["top1"] == 100 - count / 2
    assert "top1.low" in numbers(events, "corruption=snow", "severity=5")
    assert numbers(events, "corruption=fog")["error"] == pytest.approx(10)
    assert numbers(events, "corruption=fog")["ce"] == pytest.approx(100 * 10 / 81.9324)
    assert numbers(events, "corruption=snow")["ce"] == pytest.approx(100 * 30 / 86.6816)
    assert numbers(events, "corruption=saturate")["error"] == pytest.approx(30)
    assert "ce" not in numbers(events, "corruption=saturate")
    assert numbers(events, "corruption=fog")["images"] == 1000
    whole = numbers([e for e in events if isinstance(e, Measurement) and "corruption" not in e.condition])
    mce = (sum(3000 / error for error in ALEXNET_ERRORS.values()) - 2000 / 81.9324) / 15
    assert whole == {"mce": pytest.approx(mce), "mean_error": pytest.approx((14 * 30 + 10) / 15)}

    files = [e for e in events if isinstance(e, Artifact)]
    assert len(files) == 16
    kept = np.load(job.folder / "robustness_c_fog_ema.npz")
    right = kept["top5"][:, 0] == kept["labels"]
    assert (~right).reshape(5, 200).sum(1).tolist() == list(wrong["fog"])
    (note,) = [e.text for e in events if isinstance(e, Note)]
    assert note.startswith("ImageNet-C's images of 224 pixels are resized to 8")
    conditions = [(e.name, e.condition) for e in events if isinstance(e, Measurement)]
    assert len(set(conditions)) == len(conditions)  # none replaces another in the database
    assert max(len(condition) for _, condition in conditions) <= 255


def test_unreadable_images(job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(monkeypatch, a={"images": 200})
    root = fill(tmp_path / "a", A, lambda label: label)
    for name in A[:2]:
        (root / name / "0.png").write_bytes(b"no image")
    events = look(job, a=root)
    found = numbers(events)
    assert (found["top1"], found["images"], found["skipped"]) == (100, 198, 2)
    assert [e.text for e in events if isinstance(e, Note)] == [
        "Images of a that could not be read and were left out: 2 of 200."
    ]
    (root / A[2] / "0.png").write_bytes(b"no image")
    with pytest.raises(UnreadableImagesError, match="3 of 200 images cannot be read"):
        look(job, a=root)


def ask(recipe: Path, data: Path, weights: Path | None, *overrides: str) -> plan.Request:
    return plan.request(
        mixer="identity",
        scale="micro",
        recipe_name=str(recipe),
        overrides=overrides,
        stage="robustness",
        seed=0,
        data=str(data),
        device="cpu",
        weights=weights,
    )


def test_a_run_from_request_to_numbers(
    trained_on: Path,
    tiny_recipe: Recipe,
    tiny_recipe_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    weights = tmp_path / "given.safetensors"
    model = create_model("identity", "micro", num_classes=1000, in_channels=1, image_size=28)
    save_weights(weights, model.state_dict(), {})
    root = fill(tmp_path / "a", A, lambda label: label)
    chosen = f"robustness.a={root}"
    with pytest.raises(ValueError, match=f"{root} has 200 images, ImageNet-A has 7,500"):
        ask(tiny_recipe_file, trained_on, weights, chosen)
    with pytest.raises(ValueError, match="needs a folder of test images"):
        ask(tiny_recipe_file, trained_on, weights)
    with pytest.raises(ValueError, match="give --weights FILE"):
        ask(tiny_recipe_file, trained_on, None, chosen)
    publish(monkeypatch, a={"images": 200})
    asked = ask(tiny_recipe_file, trained_on, weights, chosen)
    assert asked.recipe.digest == tiny_recipe.digest
    with open_store(str(tmp_path / "results.db")) as store:
        (job,) = runner.start(asked, store)
        list(runner.execute(job, store))
        found = {m.name: m.value for m in store.measurements(job.folder.name)}
        assert found["images"] == 200
        assert found["top1.low"] <= found["top1"] <= found["top1.high"]
        assert math.isfinite(found["loss"])
        assert found["mixers"] == 17  # with the backend in its condition
        (file,) = store.artifacts(job.folder.name)
        assert file.path.name == "robustness_a_plain.npz"
        assert store.run(job.folder.name).state == "done"
