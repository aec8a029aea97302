"""Where weights lie: files, folders of the Hugging Face hub's, and advice for what is not here."""

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.models import save_for_hf

from stmbench.nn import checkpoint, places
from stmbench.nn.weights import save_weights


@pytest.fixture
def hub(tmp_path: Path) -> Path:
    """A model of timm as it is pushed to the hub, fine-tuned for 5 classes."""
    model = timm.create_model("test_resnet", num_classes=5)
    told = {"label_names": list("abcde")}
    save_for_hf(model, str(tmp_path / "hub"), model_config=told, safe_serialization="both")
    return tmp_path / "hub"


def test_a_folder_of_timms_names_its_model(hub: Path) -> None:
    assert places.locate(hub) == hub / "model.safetensors"
    found = checkpoint.inspect(hub)
    assert (found.path.name, found.model, found.classes) == (
        "model.safetensors",
        "timm:test_resnet.r160_in1k",
        5,
    )
    (hub / "model.safetensors").unlink()
    assert places.locate(hub) == hub / "pytorch_model.bin"
    assert checkpoint.inspect(hub).parameters == found.parameters


def test_a_folder_of_transformers_has_no_model_of_timms(hub: Path) -> None:
    (hub / "config.json").write_text(json.dumps({"architectures": ["ResNetForImageClassification"]}))
    assert checkpoint.inspect(hub).model == ""
    (hub / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json is no JSON"):
        checkpoint.inspect(hub)


def test_one_file_of_another_name_will_do_but_not_two(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"holds no weights: neither model\.safetensors nor pytorch_model\.bin"
    ):
        places.locate(tmp_path)
    save_weights(tmp_path / "plain.safetensors", {"a": torch.zeros(1)}, {})
    assert places.locate(tmp_path) == tmp_path / "plain.safetensors"
    (tmp_path / "ema.safetensors").touch()
    with pytest.raises(ValueError, match=r"several weights \(ema\.safetensors, plain\.safetensors\)"):
        places.locate(tmp_path)


def test_weights_in_parts_are_told(tmp_path: Path) -> None:
    for part in (1, 2):
        (tmp_path / f"model-0000{part}-of-00002.safetensors").touch()
    with pytest.raises(ValueError, match=r"in 2 parts: save them as one model\.safetensors"):
        places.locate(tmp_path)


@pytest.mark.parametrize(
    ("given", "networks", "advice"),
    [
        (
            "weights/unified_halonet_tiny.pth",
            ["halo"],
            "unified_halonet_tiny.pth is halo tiny as published by Hu et al. 2022 (arXiv:2211.05781): "
            "fetch it from their project, github.com/OpenGVLab/STM-Evaluation, and give its path.",
        ),
        ("unified_dcn_v3_base.pth", [], "unified_internimage_base.pth is dcnv3 base as published"),
        ("published", ["swin"], "unified_swin_small.pth is swin small as published"),
        (
            "timm",
            ["timm:resnet18"],
            "fetch it by `hf download timm/resnet18.a1_in1k model.safetensors --local-dir resnet18.a1_in1k` "
            "and give the folder, --weights resnet18.a1_in1k, or https://",
        ),
        ("timm", ["timm:resnet18.tv_in1k"], "hf download timm/resnet18.tv_in1k model.safetensors"),
        ("timm", ["timm:resnet200"], "timm has no weights of timm:resnet200 either."),
        ("hf-hub:timm/vit_tiny", [], "`hf download timm/vit_tiny --local-dir vit_tiny`"),
        (Path("https://huggingface.co/me/net"), [], "`hf download me/net --local-dir net`"),
        (Path("https://host.example/a/b.pth"), [], "fetch https://host.example/a/b.pth and give its file"),
    ],
    ids=str,
)
def test_what_is_not_here_is_told_where_to_fetch(given: Any, networks: list[str], advice: str) -> None:
    with pytest.raises(ValueError, match=r"No weights file at|Nothing is downloaded") as error:
        places.locate(given, networks, "small")
    assert advice in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "given", ["unified_internimage_large.pth", "unified_poolformer_tiny.pth", "mine.pth"]
)
def test_nothing_is_said_of_what_nobody_released(given: str) -> None:
    with pytest.raises(ValueError, match=rf"^No weights file at {given}\.$"):
        places.locate(given, ["dcnv3"], "tiny")
