"""What timm's users and scripts do with a model of ours."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import published_weights
import pytest
import timm
import torch
from timm.data.config import resolve_model_data_config
from timm.models import group_parameters
from timm.optim._optim_factory import create_optimizer_v2
from timm.utils.model_ema import ModelEmaV3

import stmbench
from stmbench import catalog


def create(name: str, **options: Any) -> Any:
    return timm.create_model(name, **options)


@pytest.mark.parametrize(
    "imports",
    [
        "import stmbench, timm",
        "import timm, stmbench",
        "import stmbench.nn, timm",
        "import stmbench.nn.weights, timm",
    ],
)
def test_models_are_known_whichever_is_imported_first(imports: str) -> None:
    code = f"{imports}; print(timm.is_model('unified_halo_tiny'), len(timm.list_models('unified_*')))"
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", code], capture_output=True, text=True
    )
    names = {
        f"{prefix}_{scale}"
        for row in catalog.mixers().values()
        for prefix in (f"unified_{row.name}", *filter(None, [row.published]))
        for scale in row.scales
    }
    assert done.stdout.split() == ["True", str(len(names))], done.stderr


def test_create_model_with_timms_arguments() -> None:
    model = create(
        "unified_sra_micro",
        pretrained=False,
        in_chans=1,
        num_classes=7,
        img_size=(64, 96),
        drop_rate=0.1,
        drop_path_rate=0.2,
        global_pool="max",
    )
    assert model(torch.randn(2, 1, 64, 96)).shape == (2, 7)
    assert model.levels[0].position_map.shape == (1, 32, 16, 24)
    assert model.levels[3].blocks[1].drop_path.drop_prob == pytest.approx(0.2)
    assert model.head.drop_rate == 0.1
    assert model.pretrained_cfg["architecture"] == "unified_sra_micro"
    with pytest.raises(TypeError, match="unknown_option"):
        create("unified_sra_micro", unknown_option=1)


def test_published_names_are_the_same_networks() -> None:
    for published, name in (("pvt", "sra"), ("convnext", "dwconv"), ("dcn_v3", "dcnv3")):
        ours = create(f"unified_{name}_micro").state_dict()
        theirs = create(f"unified_{published}_micro").state_dict()
        assert [*ours] == [*theirs]


def test_data_config() -> None:
    model = create("unified_halo_micro")
    config = resolve_model_data_config(model)
    assert config["input_size"] == (3, 224, 224)
    assert config["mean"] == (0.485, 0.456, 0.406)
    assert (config["crop_pct"], config["interpolation"]) == (0.875, "bicubic")
    assert stmbench.create_model("halo", "micro", in_channels=1, image_size=64).pretrained_cfg[
        "input_size"
    ] == (
        1,
        64,
        64,
    )
    assert model.get_submodule(model.pretrained_cfg["classifier"]) is model.get_classifier()
    assert model.get_submodule(model.pretrained_cfg["first_conv"]).in_channels == 3


def test_there_are_no_weights_to_download() -> None:
    with pytest.raises(RuntimeError, match=r"(?i)pretrained"):
        create("unified_halo_micro", pretrained=True)


def test_features_only() -> None:
    model = create("unified_swin_micro", features_only=True, out_indices=(0, 2))
    features = model(torch.randn(1, 3, 64, 96))
    assert [tuple(each.shape) for each in features] == [(1, 32, 16, 24), (1, 128, 4, 6)]
    assert (model.feature_info.channels(), model.feature_info.reduction()) == ([32, 128], [4, 16])
    names = {name.removeprefix("model.") for name, _ in model.named_parameters()}
    assert not [name for name in names if name.startswith(("levels.3", "head"))]
    assert len(create("unified_swin_micro", features_only=True)(torch.randn(1, 3, 64, 96))) == 4


def test_heads() -> None:
    model = create("unified_dwconv_micro", num_classes=0).eval()
    images = torch.randn(2, 3, 64, 64)
    features = model.forward_features(images)
    assert features.shape == (2, model.num_features, 2, 2)
    assert model(images).shape == (2, model.head_hidden_size)
    assert torch.equal(model(images), model.forward_head(features, pre_logits=True))
    model.reset_classifier(5)
    assert (model.num_classes, model(images).shape) == (5, (2, 5))
    assert model.get_classifier().out_features == 5
    model.reset_classifier(0, "")
    assert model(images).shape == (2, model.head_hidden_size, 2, 2)
    with pytest.raises(ValueError, match="Nothing to classify"):
        model.reset_classifier(5)


def test_weight_decay_and_layer_groups() -> None:
    sra = create("unified_sra_micro")
    assert sra.no_weight_decay() == {f"levels.{i}.position_map" for i in range(4)}
    assert len(create("unified_swin_micro").no_weight_decay()) == 15
    assert len(create("unified_halo_micro").no_weight_decay()) == 30
    assert create("unified_dwconv_micro").no_weight_decay() == set()
    optimizer = create_optimizer_v2(sra, opt="adamw", lr=1e-3, weight_decay=0.05)
    decayed = {id(p) for group in optimizer.param_groups if group["weight_decay"] for p in group["params"]}
    assert id(sra.levels[0].position_map) not in decayed
    assert id(sra.levels[0].blocks[0].gamma1) not in decayed
    assert id(sra.levels[0].blocks[0].mixer.q.weight) in decayed
    groups = group_parameters(sra, sra.group_matcher(), reverse=True)
    assert [groups[name] for name in ("stem.first.conv.weight", "levels.0.position_map")] == [0, 1]
    assert groups["levels.0.norm.weight"] == groups["levels.0.blocks.1.norm2.weight"] == 2
    assert groups["head.fc.weight"] == max(groups.values()) == 10
    coarse = group_parameters(sra, sra.group_matcher(coarse=True), reverse=True)
    assert coarse["levels.3.blocks.0.norm1.weight"] == 4


def test_published_files_through_timm(tmp_path: Path) -> None:
    path = tmp_path / "unified_pvt_micro.pth"
    torch.save(published_weights.make_checkpoint("unified_pvt_micro"), path)
    images = torch.from_numpy(published_weights.make_images())
    model = create("unified_pvt_micro", checkpoint_path=str(path)).eval()
    with torch.no_grad():
        published_weights.check("unified_pvt_micro", model(images).numpy(), rtol=1e-4)
    own = stmbench.create_model("sra", "micro", image_size=64, weights=path).state_dict()
    tuned = create(
        "unified_pvt_micro",
        pretrained=True,
        pretrained_cfg_overlay={"file": str(path)},
        num_classes=4,
        img_size=64,
    ).state_dict()
    assert {key for key in own if not torch.equal(own[key], tuned[key])} == {"head.fc.weight", "head.fc.bias"}
    backbone = create(
        "unified_pvt_micro",
        features_only=True,
        pretrained=True,
        pretrained_cfg_overlay={"file": str(path)},
    )
    assert torch.equal(
        backbone.state_dict()["model.levels.3.norm.weight"],
        model.state_dict()["levels.3.norm.weight"],
    )


def test_an_average_of_the_weights_can_be_kept() -> None:
    model = create("unified_dcnv3_micro")
    average = ModelEmaV3(model, decay=0.5)
    average.update(model)
    assert torch.equal(average.module.head.fc.weight, model.head.fc.weight)
