"""Detection as a stage: training, exact resumption, starting weights, evaluation alone, sizes, plans."""

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from stmbench import catalog, plan, recipe
from stmbench.measure import ap, count
from stmbench.measure.setting import Setting
from stmbench.measure.subject import training_step
from stmbench.mixers.identity import Identity
from stmbench.nn import create_model
from stmbench.nn.detector import Detector
from stmbench.nn.weights import save_weights
from stmbench.recipe import from_values
from stmbench.record import Artifact, Event, Job, Measurement, Note, Progress, parts_of
from stmbench.stages import build, detect, profile
from stmbench.store import open_store
from stmbench.training import network
from stmbench.training.optimizer import make_optimizer

CLASSES = ("red", "blue")
SMALL: dict[str, Any] = {
    "stages": ["build", "detect", "profile"],
    "data": {"image_size": 64, "workers": 0},
    "optimizer": {"lr": 1e-3},
    "schedule": {"epochs": 2, "warmup_epochs": 0},
    "train": {"batch_size": 4, "ema_decay": 0.5},
    "eval": {"batch_size": 3},
    "profile": {"batch_sizes": [1], "train_batch_size": 1, "samples": 5, "control": False},
    "detect": {
        "short_side": 48, "long_side": 64, "image_size": [48, 64], "fpn_channels": 8,
        "anchor_sizes": [8, 16, 32, 64], "rpn_samples": 32, "roi_samples": 16, "proposals": 20,
        "detections": 5, "box_width": 16, "mask_width": 8,
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 training and 5 test images of two sizes with red and blue rectangles, in COCO's format."""
    root = tmp_path_factory.mktemp("scenes")
    rng = np.random.default_rng(0)
    (root / "images").mkdir()
    for split, total in (("train", 12), ("val", 5)):
        images, annotations = [], []
        for number in range(total):
            height, width = ((48, 64), (60, 52))[number % 2]
            pixels = rng.integers(0, 60, (height, width, 3), dtype=np.uint8)
            for label in range(number % 3):
                x, y = int(rng.integers(0, width - 24)), int(rng.integers(0, height - 20))
                pixels[y : y + 20, x : x + 24, 2 * label] = 255
                corners = [x, y, x + 24, y, x + 24, y + 20, x, y + 20]
                annotations.append(
                    {"id": len(annotations) + 1, "image_id": number, "category_id": label + 1, "iscrowd": 0,
                     "bbox": [x, y, 24, 20], "area": 480, "segmentation": [corners]}
                )  # fmt: skip
            name = f"{split}{number}.png"
            Image.fromarray(pixels).save(root / "images" / name)
            images.append({"id": number, "file_name": name, "height": height, "width": width})
        categories = [{"id": label, "name": name} for label, name in enumerate(CLASSES, 1)]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (root / f"{split}.json").write_text(json.dumps(content))
    return root


def recipe_file(folder: Path, **changes: dict[str, Any]) -> Path:
    """The small recipe as a file, for plans and the command line."""
    path = folder / "small.toml"
    lines = [f"stages = {json.dumps(SMALL['stages'])}"]
    for section, values in SMALL.items():
        if section != "stages":
            own = values | changes.get(section, {})
            lines += [f"[{section}]", *(f"{key} = {json.dumps(value)}" for key, value in own.items())]
    path.write_text("\n".join(lines))
    return path


@pytest.fixture
def job(scenes: Path, tmp_path: Path) -> Job:
    folder = tmp_path / "run"
    folder.mkdir()
    return Job(
        mixer="dwconv",
        scale="micro",
        recipe=from_values(SMALL, "small"),
        stages=("detect",),
        data=str(scenes),
        folder=folder,
    )


def changed(job: Job, folder: Path | None = None, weights: str | None = None, **sections: dict) -> Job:
    """The job with some values of its recipe changed, in a folder of its own."""
    values = job.recipe.values()
    for section, new in sections.items():
        values[section] = values[section] | new
    protocol = from_values(values, job.recipe.name)
    (folder or job.folder).mkdir(exist_ok=True)
    return dataclasses.replace(job, recipe=protocol, folder=folder or job.folder, weights=weights)


def numbers(events: list[Event], step: int = 0) -> dict[tuple[str, str], float]:
    found = [each for each in events if isinstance(each, Measurement) and each.step == step]
    return {(each.name, parts_of(each.condition).get("weights", "")): each.value for each in found}


def notes(events: list[Event]) -> list[str]:
    return [each.text for each in events if isinstance(each, Note)]


def test_a_detector_is_trained_and_evaluated_with_both_kinds_of_weights(job: Job) -> None:
    events = list(detect.run(job))
    for epoch in (1, 2):
        curve = numbers(events, epoch)
        parts = ("objectness", "rpn_box_reg", "classifier", "box_reg", "mask")
        losses = [curve[f"loss_{part}", ""] for part in parts]
        assert curve["loss", ""] == pytest.approx(sum(losses), rel=1e-5)
        assert {(f"{what}_ap", kind) for what in ("box", "mask") for kind in ("plain", "ema")} <= curve.keys()
    final, last = numbers(events), numbers(events, 2)
    artifacts = [each for each in events if isinstance(each, Artifact) and each.kind == "detections"]
    assert [each.condition for each in artifacts] == ["weights=plain", "weights=ema"]
    for kind in ("plain", "ema"):
        assert final["box_ap", kind] == last["box_ap", kind]
        assert final["images", kind] == 5
        assert {(f"mask_ap.{name}", kind) for name in CLASSES} <= final.keys()
    kept = ap.load(artifacts[0].path)
    assert kept.images == [0, 1, 2, 3, 4]
    assert (job.folder / "best.safetensors").is_file()


def test_a_resumed_run_ends_with_the_same_weights_bit_for_bit(job: Job, tmp_path: Path) -> None:
    job = changed(job, tmp_path / "straight", train={"device_batch_size": 2})
    list(detect.run(job))
    broken = changed(job, tmp_path / "broken")
    events = detect.run(broken)
    for event in events:
        if isinstance(event, Progress) and event.text == "detect 2/2":
            break  # in the middle of the second epoch
    events.close()
    torch.rand(7)
    again = list(detect.run(broken))
    assert any(text.startswith("Resuming") for text in notes(again))
    for kind in ("plain", "ema"):
        one, other = (load_file(network.weights_file(each, kind)) for each in (job, broken))
        assert all(torch.equal(value, other[name]) for name, value in one.items()), kind


@pytest.mark.parametrize("mixer", ["sra", "swin"])
def test_a_classifier_s_features_are_the_detector_s_bit_for_bit(job: Job, tmp_path: Path, mixer: str) -> None:
    torch.manual_seed(3)
    classifier = create_model(mixer, "micro", num_classes=7, image_size=64).eval()
    path = tmp_path / "classifier.safetensors"
    save_weights(path, classifier.state_dict(), {})
    job = changed(dataclasses.replace(job, mixer=mixer), weights=str(path))
    model, left = network.start_detector(job, 2, masks=True)
    assert left == f"{path} is a classifier's: its head is left out, neck and heads start untrained."
    image = torch.rand(1, 3, 53, 70)
    backbone: Any = model.eval().pyramid.backbone
    with torch.inference_mode():
        features = [each.forward_intermediates(image)[1] for each in (classifier, backbone)]
    assert all(map(torch.equal, *features))  # norms between levels and position maps included
    assert not any(name.startswith("pyramid.backbone.head") for name, _ in model.named_parameters())


def test_a_detector_is_evaluated_alone_where_there_are_no_epochs(job: Job, tmp_path: Path) -> None:
    trained = numbers(list(detect.run(job)))
    file = str(network.weights_file(job, "ema"))
    events = list(detect.run(changed(job, tmp_path / "alone", file, schedule={"epochs": 0})))
    alone = numbers(events)
    assert {kind for _, kind in alone} == {"ema"}
    assert alone == {key: value for key, value in trained.items() if key in alone}
    assert ("box_ap", "ema") in alone
    more = changed(job, tmp_path / "more", file, schedule={"epochs": 1})
    assert not [text for text in notes(list(detect.run(more))) if file in text]  # nothing was left out


def test_other_classes_start_from_a_detector_and_say_what_is_new(job: Job, tmp_path: Path) -> None:
    model = network.detector(job, 2, masks=True)
    save_weights(tmp_path / "two.safetensors", model.state_dict(), {})
    other, left = network.start_detector(
        changed(job, weights=str(tmp_path / "two.safetensors")), 5, masks=True
    )
    assert other.num_classes == 5
    assert "roi_heads.box_predictor.cls_score.weight" in left
    assert left.endswith("and 3 more.")


def test_drop_path_is_the_same_for_every_mixer_unless_the_recipe_says_it(job: Job) -> None:
    def last(job: Job) -> float:
        model: Any = network.detector(job, 2, masks=False)
        return model.pyramid.backbone.levels[-1].blocks[-1].drop_path.drop_prob

    assert [last(dataclasses.replace(job, mixer=name)) for name in ("halo", "dwconv")] == [
        pytest.approx(catalog.DETECTION_DROP_PATH["micro"])
    ] * 2
    assert last(changed(job, model={"drop_path": 0.25})) == pytest.approx(0.25)


def test_training_images_fewer_than_a_batch_are_the_users_mistake(job: Job) -> None:
    with pytest.raises(ValueError, match=r"12 training images, fewer than one batch.*train\.batch_size"):
        list(detect.run(changed(job, train={"batch_size": 16})))


@pytest.mark.slow
def test_two_processes_train_the_detector_of_one(scenes: Path, tmp_path: Path) -> None:
    path = recipe_file(tmp_path, optimizer={"name": "sgd", "lr": 0.01}, train={"batch_size": 4})
    weights, told = [], []
    for processes in (1, 2):
        db = tmp_path / str(processes) / "results.db"
        options = ["--gpus", "2"] if processes == 2 else ["--set", "train.device_batch_size=2"]
        command = [sys.executable, "-m", "stmbench", "run", "--recipe", str(path), "--mixer", "dwconv"]
        command += ["--data", str(scenes), "--stage", "detect", "--device", "cpu", "--db", str(db), *options]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr
        with open_store(str(db), create=False) as store:
            (run,) = store.runs()
            weights.append(load_file(run.folder / "plain.safetensors"))
            told.append(numbers(list(store.measurements(run.id))))
    one, two = weights
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, atol=1e-6, rtol=0)
    assert told[1]["images", "plain"] == 5  # each once, an odd share of them each
    assert told[1]["box_ap", "plain"] == pytest.approx(told[0]["box_ap", "plain"], abs=1e-3)


# Sizes and times


def test_build_tells_backbone_neck_and_heads_apart(job: Job) -> None:
    events = [each for each in build.run(job) if isinstance(each, Measurement)]
    found = {each.name: each for each in events}
    values = {name: each.value for name, each in found.items()}
    heads = [f"heads.{name}" for name in ("rpn", "box", "mask")]
    for total in ("parameters", "macs"):
        assert values[total] == sum(values[f"{total}.{part}"] for part in ("backbone", "neck", *heads))
    assert values["macs.heads"] == sum(values[f"macs.{part}"] for part in heads)
    assert found["macs"].condition == "detections=5,height=48,proposals=20,width=64"
    model = network.detector(job, 2, masks=True)
    assert values["parameters"] == sum(each.numel() for each in model.parameters())
    backbone = create_model("dwconv", "micro").macs(48, 64)
    assert values["macs.backbone"] == sum(form.total for name, form in backbone.items() if name != "head")
    assert (
        values["macs.fvcore"] == values["macs.flop_counter"] == values["macs.backbone"] + values["macs.neck"]
    )


def test_profile_times_the_detector_at_its_size(job: Job) -> None:
    make, make_control = network.makers(job)
    session = profile._Session(job, make, make_control)
    (way,) = session.ways
    assert way.shape == (3, 48, 64)
    model, control = make(), make_control()
    assert isinstance(model, Detector)
    assert isinstance(control, Detector)
    assert any(isinstance(part, Identity) for part in control.modules())
    with torch.no_grad():
        assert len(model.eval()(torch.rand(2, *way.shape))) == 2
    step = training_step(
        model,
        torch.rand(2, *way.shape),
        Setting(mode="train", batch=2, shape=way.shape),
        lambda model: make_optimizer(model, job.recipe, "cpu"),
    )
    step()
    assert all(parameter.grad is not None for parameter in model.parameters())
    heads = sum(form.total for form in model.head_macs(48, 64).values())
    assert profile._macs(model, way.shape) == count.count(model.pyramid, way.shape).macs + heads


@pytest.mark.slow
def test_profile_measures_a_detector(job: Job) -> None:
    events = [each for each in profile.run(job) if isinstance(each, Measurement)]
    latency = next(each for each in events if each.name == "latency")
    assert latency.value > 0
    assert parts_of(latency.condition)["size"] == "48x64"
    assert {"train_step", "peak_memory", "throughput", "intensity"} <= {each.name for each in events}
    assert not [each.name for each in events if each.value != each.value]


# Plans and recipes


@pytest.fixture
def ask(scenes: Path, tmp_path: Path) -> Callable[..., plan.Request]:
    path = recipe_file(tmp_path)

    def request(**options: Any) -> plan.Request:
        given = {
            "mixer": "dwconv", "scale": None, "recipe_name": str(path), "overrides": (), "stage": "all",
            "seed": 0, "data": str(scenes), "device": "cpu", "weights": None,
        }  # fmt: skip
        return plan.request(**given | options)

    return request


def test_a_plan_without_the_library_of_ap_ends_before_anything_is_trained(
    ask: Callable[..., plan.Request], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    with pytest.raises(ValueError, match=r"pip install 'stmbench\[detection\]'"):
        ask()


def test_a_plan_of_detection_takes_its_data_and_stages(ask: Callable[..., plan.Request]) -> None:
    asked = ask(mixer="halo,sra")
    assert asked.stages == ("build", "detect", "profile")
    assert (asked.info.num_train, asked.info.num_val, asked.info.num_classes) == (12, 5, 2)
    parameters, macs = plan.size(asked, "halo")
    model = network.detector(asked.job("halo", Path()), 2, masks=True)
    assert parameters == sum(each.numel() for each in model.parameters())
    assert macs is not None
    assert macs > sum(form.total for form in model.head_macs(48, 64).values())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"stage": "detect", "recipe_name": "quick"},
            r"'quick' is of classification: --recipe coco_1x detects",
        ),
        ({"stage": "train"}, r"'small' is of detection, and has no stage train"),
        ({"overrides": ["schedule.epochs=0"]}, r"with schedule\.epochs=0 give a detector as --weights"),
        ({"overrides": ["data.channels=1"]}, r"detection reads colour images"),
        ({"overrides": ["detect.anchor_sizes=[8]"]}, r"detect\.anchor_sizes needs 4 sizes, one per level"),
        ({"overrides": ['stages=["detect","eval"]']}, r"stage detect goes with build, detect, profile alone"),
        ({"overrides": ["detect.proposals=0"]}, r"detect\.proposals must be at least 1"),
        ({"mixer": "timm:vit_tiny_patch16_224"}, r"no four levels at strides 4 to 32"),
        ({"mixer": "timm:swin_tiny_patch4_window7_224"}, r"does not take images of any size"),
        ({"data": "fashion-mini"}, r"Unknown detection data set .fashion-mini.. Known: trees"),
    ],
)
def test_what_would_fail_later_is_said_at_once(
    ask: Callable[..., plan.Request], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        ask(**options)


def test_weights_that_do_not_fit_are_said_at_once(ask: Callable[..., plan.Request], tmp_path: Path) -> None:
    classifier, other = tmp_path / "classifier.safetensors", tmp_path / "other.safetensors"
    save_weights(classifier, create_model("dwconv", "micro").state_dict(), {})
    assert ask(weights=classifier).weights == str(classifier)
    with pytest.raises(ValueError, match="give a detector as --weights"):
        ask(weights=classifier, overrides=["schedule.epochs=0"])
    with pytest.raises(ValueError, match="holds another network"):
        ask(weights=classifier, mixer="halo")
    with pytest.raises(ValueError, match="give one --mixer or --model"):
        ask(weights=classifier, mixer="halo,dwconv")
    five = network.detector(ask().job("dwconv", Path()), 5, masks=True)
    save_weights(other, five.state_dict(), {})
    assert ask(weights=other).weights == str(other)
    with pytest.raises(ValueError, match="Such a detector must be trained"):
        ask(weights=other, overrides=["schedule.epochs=0"])


def test_only_protocols_of_detection_are_known_by_their_detector() -> None:
    quick, coco = recipe.load("quick"), recipe.load("coco_1x")
    assert recipe.load("quick", ["detect.proposals=7"]).digest == quick.digest
    assert recipe.load("coco_1x", ["detect.proposals=7"]).digest != coco.digest
    assert recipe.load("coco_1x", ["detect.image_size=[64,64]"]).digest == coco.digest
    with pytest.raises(ValueError, match=r"schedule\.epochs must be at least 1"):
        recipe.load("quick", ["schedule.epochs=0"])


def test_the_published_protocol_and_the_longer_one() -> None:
    short, long = recipe.load("coco_1x"), recipe.load("coco_3x")
    for protocol in (short, long):
        optimizer, schedule = protocol.optimizer, protocol.schedule
        assert (optimizer.name, optimizer.lr, optimizer.weight_decay) == ("adamw", 1e-4, 0.05)
        assert (optimizer.layer_decay, optimizer.decay_positions) == (1.0, ())
        assert (schedule.name, schedule.decay, schedule.warmup_steps) == ("multistep", 0.1, 1000)
        assert (protocol.train.batch_size, protocol.model.drop_path) == (16, None)
        assert (protocol.detect.short_side, protocol.detect.long_side, protocol.detect.flip) == (
            800,
            1333,
            0.5,
        )
        promise = recipe.promise(recipe.find(protocol.name))
        assert f"--recipe {protocol.name}" in promise
        assert all(word in promise for word in ("arXiv:", "Hardware", "not measured yet", "halo 46.9 / 42.4"))
    assert (short.schedule.epochs, short.schedule.milestones, short.detect.jitter) == (12, (8, 11), ())
    assert (long.schedule.epochs, long.schedule.milestones, long.detect.jitter) == (36, (27, 33), (0.1, 2.0))
    assert short.detect.anchor_sizes == (32, 64, 128, 256, 512)


# The recipe that a laptop can run


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("deepforest"), reason="needs the photos of deepforest")
@pytest.mark.parametrize("mixer", ["halo", "dwconv"])
def test_detect_quick_finds_trees(mixer: str, tmp_path: Path) -> None:
    job = Job(
        mixer=mixer,
        scale="micro",
        recipe=recipe.load("detect_quick"),
        stages=("detect",),
        data="trees",
        folder=tmp_path,
    )
    untrained = network.detector(job, 1, masks=False)
    save_weights(tmp_path / "untrained.safetensors", untrained.state_dict(), {})
    before = changed(
        job, tmp_path / "before", str(tmp_path / "untrained.safetensors"), schedule={"epochs": 0}
    )
    least = numbers(list(detect.run(before)))["box_ap50", "plain"]
    reached = numbers(list(detect.run(job)))["box_ap50", "plain"]
    assert least < 2
    assert reached > least + 10
