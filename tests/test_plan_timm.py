"""Models of timm: found by name, checked before a run is made, fed as their weights want."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from stmbench import plan, runner
from stmbench.nn import timm_models
from stmbench.nn.weights import save_weights
from stmbench.plan import Request
from stmbench.record import Job, Measurement, Progress
from stmbench.stages import evaluate, train
from stmbench.store import open_store
from stmbench.training import network

Ask = Callable[..., Request]
COLOURS = ("data.channels=3", "data.mean=[0.4,0.4,0.4]", "data.std=[0.2,0.2,0.2]")


@pytest.fixture
def ask(tiny_recipe_file: Path, tiny_data: Path) -> Ask:
    """A request for `model` by the tiny recipe."""

    def request(model: str = "timm:test_resnet", *overrides: str, **changed) -> Request:
        given = {"mixer": None, "scale": None, "stage": "train,eval", "seed": 0, "device": "cpu"}
        given |= {"recipe_name": str(tiny_recipe_file), "data": str(tiny_data), "weights": None}
        return plan.request(model=model, overrides=overrides, **(given | changed))

    return request


@pytest.fixture
def colours(tiny_recipe_file: Path, ask: Ask) -> Ask:
    """The same by a recipe for images of three channels, none of whose values was typed by the user."""
    text = tiny_recipe_file.read_text()
    text = text.replace("channels = 1", "channels = 3").replace("[0.5]", "[0.5, 0.25, 0.5]")
    tiny_recipe_file.write_text(text)
    return ask


def checkpoint(path: Path, name: str = "test_resnet", **options: Any) -> Path:
    given: dict[str, Any] = {"num_classes": 4, "in_chans": 1} | options
    model = timm.create_model(name, **given)
    save_weights(path, model.state_dict(), {})
    return path


def configuration() -> dict[str, Any]:
    config = timm.get_pretrained_cfg("test_resnet")
    assert config
    return config.to_dict()


NAMES = [
    ("timm:resnet1", r"Unknown timm model 'resnet1'\. Did you mean 'timm:resnet1\w+'\?"),
    ("timm:resnet18.a4_in1k", r"Did you mean 'timm:resnet18\.a"),
    ("timm:qqqqqqqq", r"Unknown timm model 'qqqqqqqq'\. `timm\.list_models\(\)` lists them"),
    ("timm:hf-hub:timm/resnet18", r"would be downloaded: name one of timm's architectures"),
    ("timm:timm/resnet18.a1_in1k", r"would be downloaded"),
    ("hf:resnet18", r"--model takes models of timm, as timm:NAME, not 'hf:resnet18'"),
    ("resnet18", r"Unknown mixer 'resnet18'\. Did you mean --model timm:resnet18\?"),
    ("timm:", r"Unknown timm model ''"),
]


@pytest.mark.parametrize(("name", "line"), NAMES, ids=[name for name, _ in NAMES])
def test_a_name_that_is_none_is_one_line(ask: Ask, name: str, line: str) -> None:
    with pytest.raises(ValueError, match=line):
        ask(name)


def test_mixers_and_models_are_asked_for_together(ask: Ask) -> None:
    asked = ask("timm:test_resnet,timm:test_resnet", mixer="convnext,swin", scale="micro")
    assert asked.mixers == ("dwconv", "swin", "timm:test_resnet")
    assert [asked.job(name, Path()).scale for name in asked.mixers] == ["micro", "micro", ""]
    assert ask(None).mixers == ("halo",)
    with pytest.raises(ValueError, match="--scale is of the mixers' backbone"):
        ask(scale="micro")


def test_images_that_a_model_does_not_take_are_told_before_a_run_is_made(ask: Ask) -> None:
    line = r"timm:test_vit does not take 28x28 images of 1 channel \(.+\): --set data\.image_size=160 is"
    with pytest.raises(ValueError, match=line):
        ask("timm:test_vit")
    with pytest.raises(ValueError, match=r"timm:test_convnext does not take 28x28.*data\.image_size=160"):
        ask("timm:test_convnext")  # made without complaint: only an image tells
    model = network.make(ask("timm:test_vit", "data.image_size=48").job("timm:test_vit", Path()), 4)
    assert model(torch.zeros(1, 1, 48, 48)).shape == (1, 4)


def test_a_model_gets_the_recipes_drop_path_where_it_has_one(ask: Ask) -> None:
    def rates(name: str) -> set[float]:
        asked = ask(name, "data.image_size=32", "model.drop_path=0.5")
        model = network.make(asked.job(name, Path()), 4)
        return {m.drop_prob for m in model.modules() if isinstance(m, timm.layers.DropPath)}

    assert max(rates("timm:test_vit")) == 0.5
    assert rates("timm:dla46x_c") == set()


def test_weights_bring_their_preprocessing_and_the_recipe_keeps_its_digest(colours: Ask, tmp_path) -> None:
    weights = checkpoint(tmp_path / "given.safetensors", in_chans=3)
    asked = colours(weights=weights, stage="eval")
    config = configuration()
    assert asked.preprocessing == {key: config[key] for key in timm_models.PREPARATION}
    (warning,) = asked.warnings
    assert "The weights of timm:test_resnet want mean = [" in warning
    assert "the recipe [0.5, 0.25, 0.5]" in warning
    assert "the weights' is used" in warning
    job = asked.job("timm:test_resnet", tmp_path)
    assert (job.recipe.data.mean, job.recipe.data.image_size) == (config["mean"], 28)
    assert job.recipe_digest == asked.recipe.digest != job.recipe.digest


def test_what_the_user_types_wins_over_the_models_configuration(ask: Ask, tmp_path: Path) -> None:
    weights = checkpoint(tmp_path / "given.safetensors", in_chans=3)
    asked = ask("timm:test_resnet", *COLOURS, weights=weights)
    assert asked.job("timm:test_resnet", tmp_path).recipe.data.mean == (0.4, 0.4, 0.4)
    assert asked.preprocessing.keys() == {"interpolation", "crop_pct"}
    assert any("the recipe's is used" in line and "mean = [" in line for line in asked.warnings)


def test_without_weights_the_recipe_prepares_the_images(colours: Ask, tmp_path: Path) -> None:
    asked = colours()
    assert (asked.preprocessing, asked.warnings) == ({}, ())
    job = asked.job("timm:test_resnet", tmp_path)
    assert (job.recipe, job.recipe_digest) == (asked.recipe, asked.recipe.digest)


def test_a_crop_we_do_not_have_is_a_warning(colours: Ask, tmp_path: Path, monkeypatch) -> None:
    config = configuration() | {"crop_mode": "squash"}
    real = timm_models.resolve_model_data_config
    monkeypatch.setattr(
        timm_models, "resolve_model_data_config", lambda model, **_: real(model, pretrained_cfg=config)
    )
    asked = colours(weights=checkpoint(tmp_path / "given.safetensors", in_chans=3))
    line = "want crop_mode = squash, the recipe center: the recipe's is used."
    assert any(line in warning for warning in asked.warnings)


def test_weights_that_do_not_fit_are_one_line(ask: Ask, tmp_path: Path) -> None:
    wrong = {
        "3 channels, and the recipe's have 1": checkpoint(tmp_path / "rgb.safetensors", in_chans=3),
        "holds another network: .* keys missing": checkpoint(tmp_path / "a.safetensors", "test_efficientnet"),
        "tells 7 classes apart": checkpoint(tmp_path / "seven.safetensors", num_classes=7),
    }
    for line, weights in wrong.items():
        with pytest.raises(ValueError, match=line):
            ask(weights=weights, stage="eval")
    assert ask(weights=tmp_path / "seven.safetensors")  # a new classifier is trained
    with pytest.raises(ValueError, match="give one --mixer or --model"):
        ask("timm:test_resnet,timm:test_vit", weights=tmp_path / "seven.safetensors")


def test_weights_of_another_image_size_go_through_timms_filter(ask: Ask, tmp_path: Path) -> None:
    weights = checkpoint(tmp_path / "vit.safetensors", "test_vit", img_size=64)
    asked = ask("timm:test_vit", "data.image_size=32", weights=weights)
    model = network.make(asked.job("timm:test_vit", tmp_path), 4)
    given = load_file(weights)
    assert model.get_parameter("pos_embed").shape != given["pos_embed"].shape
    assert torch.equal(model.get_parameter("head.weight"), given["head.weight"])


def test_pickled_weights_are_read_as_ours_are(ask: Ask, tmp_path: Path) -> None:
    state = timm.create_model("test_resnet", num_classes=4, in_chans=1).state_dict()
    torch.save({"state_dict": {f"module.{key}": value for key, value in state.items()}}, tmp_path / "w.pth")
    job = ask(weights=tmp_path / "w.pth").job("timm:test_resnet", tmp_path)
    model = network.make(job, 4)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


@pytest.fixture
def job(ask: Ask, tmp_path: Path) -> Job:
    asked = ask("timm:test_resnet", "train.ema_decay=0.9", "augment.mixup=0.5")
    (tmp_path / "run").mkdir()
    return asked.job("timm:test_resnet", tmp_path / "run")


def test_a_resumed_run_of_a_model_ends_with_the_same_weights_bit_for_bit(job: Job, tmp_path: Path) -> None:
    list(train.run(job))
    broken = dataclasses.replace(job, folder=tmp_path / "broken")
    broken.folder.mkdir()
    events = train.run(broken)
    next(e for e in events if isinstance(e, Progress) and e.text == "train 2/2")
    events.close()
    torch.rand(7)  # whatever else the resuming process did with its random numbers
    list(train.run(broken))
    for kind in ("plain", "ema"):
        one, other = (load_file(network.weights_file(each, kind)) for each in (job, broken))
        assert one.keys() == other.keys()
        assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_what_a_run_trained_is_evaluated_again_as_it_was_trained(job: Job, ask: Ask, tmp_path: Path) -> None:
    def numbers(job: Job) -> dict[str, float]:
        return {e.name: e.value for e in evaluate.run(job) if isinstance(e, Measurement)}

    list(train.run(job))
    file = network.weights_file(job, "ema")
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    assert (metadata["mixer"], metadata["scale"]) == ("timm:test_resnet", "")
    assert json.loads(metadata["preprocessing"])["mean"] == [0.5]
    asked = ask(weights=file, stage="eval")  # not the model's own configuration: it was trained otherwise
    assert (asked.preprocessing["mean"], asked.warnings) == ([0.5], ())
    again = asked.job("timm:test_resnet", tmp_path)
    assert numbers(again) == numbers(dataclasses.replace(job))


def test_preprocessing_is_stored_and_comes_back(colours: Ask, tmp_path: Path) -> None:
    asked = colours(weights=checkpoint(tmp_path / "given.safetensors", in_chans=3))
    with open_store(str(tmp_path / "results.db")) as store:
        job = next(runner.start(asked, store))
        run = store.run(job.folder.name)
        assert run.id.startswith("timm-test_resnet-")
        assert (run.mixer, run.scale, run.recipe_digest) == ("timm:test_resnet", "", asked.recipe.digest)
        assert run.preprocessing["mean"] == list(asked.preprocessing["mean"])
        assert run.recipe_values["data"]["mean"] == [0.5, 0.25, 0.5]
        store.end_run(run.id, "interrupted")
        assert runner.reopen(run.id, store) == job
