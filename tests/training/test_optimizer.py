"""What the optimizer decays, and how fast each layer learns."""

import dataclasses
from typing import Any

import pytest
import timm
import torch
from timm.optim import param_groups_layer_decay, param_groups_weight_decay
from timm.scheduler import create_scheduler_v2
from torch import nn

import stmbench
from stmbench import catalog
from stmbench.recipe import Recipe, from_values, load
from stmbench.training import optimizer as own
from stmbench.training.optimizer import decayed_parameters, make_optimizer, parameter_layers

MIXERS = ("halo", "swin", "sra", "dwconv", "dcnv3")


def network(mixer: str, design: str = "unified", **options: Any) -> nn.Module:
    with torch.device("meta"):
        return stmbench.create_model(mixer, "micro", design=design, **options)


def recipe(**optimizer: Any) -> Recipe:
    return from_values({"optimizer": optimizer}, "test")


def by_name(model: nn.Module, protocol: Recipe) -> dict[str, dict[str, Any]]:
    """The group of each parameter."""
    optimizer = make_optimizer(model, protocol, "cpu")
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {names[p]: group for group in optimizer.param_groups for p in group["params"]}


class Detector(nn.Module):
    """What detectors look like from here: a network that gives features, and layers around it."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.backbone = nn.ModuleDict({"body": body, "fpn": nn.Conv2d(8, 8, 1)})
        self.stem = nn.Linear(8, 8)  # of the same name as the network's own first layer


@pytest.mark.parametrize("mixer", MIXERS)
def test_nothing_but_weights_of_convolutions_and_linear_layers_is_decayed(mixer: str) -> None:
    model = network(mixer)
    groups = by_name(model, recipe(weight_decay=0.3))
    assert groups.keys() == dict(model.named_parameters()).keys()
    weights = {
        f"{name}.weight"
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
    }
    assert {name for name, group in groups.items() if group["weight_decay"]} == weights
    assert {group["weight_decay"] for group in groups.values()} == {0.0, 0.3}


@pytest.mark.parametrize("name", ["imagenet_attention", "imagenet_conv"])
@pytest.mark.parametrize("mixer", MIXERS)
def test_the_published_recipes_decay_some_of_some_mixers(mixer: str, name: str) -> None:
    model = network(mixer)
    more = decayed_parameters(model, load(name).optimizer) - decayed_parameters(
        model, load("imagenet_fair").optimizer
    )
    kinds = {each.rpartition(".")[2] for each in more}
    tables = {"halo": {"height_rel", "width_rel"}, "sra": {"position_map"}}.get(mixer, set())
    scales = {"gamma1", "gamma2"} if mixer in ("halo", "dwconv") else set()
    assert kinds == tables | scales
    all_of_them = [each for each, _ in model.named_parameters() if each.rpartition(".")[2] in kinds]
    assert more == set(all_of_them)


def test_all_mixers_can_be_named_at_once_and_biases_decayed_as_in_detection() -> None:
    model = network("swin")
    options = {"decay_biases": True, "decay_positions": ["all"], "decay_layer_scales": ["all"]}
    free = dict(model.named_parameters()).keys() - decayed_parameters(model, recipe(**options).optimizer)
    norms = (nn.LayerNorm, nn.BatchNorm2d)
    of_norms = {f"{name}." for name, module in model.named_modules() if isinstance(module, norms)}
    assert free == {each + kind for each in of_norms for kind in ("weight", "bias")}


def test_a_network_inside_a_detector_keeps_its_rules() -> None:
    model = Detector(network("swin"))
    decayed = decayed_parameters(model, recipe(decay_layer_scales=["swin"]).optimizer)
    place = "backbone.body.levels.0.blocks.0"
    assert f"{place}.mixer.relative_position_bias_table" not in decayed
    assert {f"{place}.gamma1", f"{place}.mlp.fc1.weight", "backbone.fpn.weight", "stem.weight"} <= decayed
    assert "backbone.fpn.bias" not in decayed


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "convnext_femto", "deit_tiny_patch16_224"])
def test_timm_models_are_grouped_as_timm_groups_them(name: str) -> None:
    with torch.device("meta"):
        model: Any = timm.create_model(name, global_pool="avg")
    told = recipe(weight_decay=0.05, layer_decay=0.8, decay_positions=["all"], decay_layer_scales=["all"])
    groups = by_name(model, told)
    free = model.no_weight_decay() if hasattr(model, "no_weight_decay") else ()
    for theirs in param_groups_layer_decay(model, 0.05, free, layer_decay=0.8):
        for parameter in theirs["params"]:
            found = next(group for group in groups.values() if any(p is parameter for p in group["params"]))
            assert found["weight_decay"] == theirs["weight_decay"]
            assert found["lr_scale"] == pytest.approx(theirs["lr_scale"])
    plain = by_name(model, recipe(weight_decay=0.05))
    (_, decayed) = param_groups_weight_decay(model, 0.05, no_weight_decay_list=free)
    assert sum(group["weight_decay"] > 0 for group in plain.values()) == len(decayed["params"])


@pytest.mark.parametrize(
    ("mixer", "design"), [(mixer, design) for mixer in MIXERS for design in catalog.rungs(mixer, "micro")]
)
def test_layers_are_the_stem_each_block_with_what_leads_into_it_and_the_head(mixer: str, design: str) -> None:
    model: Any = network(mixer, design)
    depths = [len(level.blocks) for level in model.levels]
    starts = [1 + sum(depths[:level]) for level in range(4)]
    for name, layer in parameter_layers(model).items():
        match name.split("."):
            case ["stem", *_]:
                expected = 0
            case ["levels", level, "blocks", block, *_]:
                expected = starts[int(level)] + int(block)
            case ["levels", level, "downsample" | "position_map", *_]:
                expected = starts[int(level)]
            case ["levels", level, "norm", *_]:
                expected = starts[int(level)] + depths[int(level)] - 1
            case _:
                assert name.startswith("head.")
                expected = 1 + sum(depths)
        assert layer == expected, name


def test_each_layer_learns_so_many_times_as_fast_as_the_next() -> None:
    model = network("halo")  # micro: 2-2-9-2 blocks between stem and head
    groups = by_name(model, recipe(lr=1e-2, layer_decay=0.5, decay_layer_scales=["halo"]))
    assert groups["head.fc.weight"]["lr_scale"] == groups["head.norm.weight"]["lr_scale"] == 1
    assert groups["levels.3.blocks.1.mlp.fc2.weight"]["lr_scale"] == 0.5
    assert groups["levels.3.norm.weight"]["lr_scale"] == 0.5
    assert groups["levels.3.downsample.conv.weight"]["lr_scale"] == 0.5**2
    assert groups["levels.2.blocks.8.gamma1"]["lr_scale"] == 0.5**3
    assert groups["levels.0.blocks.0.norm1.weight"]["lr_scale"] == 0.5**15
    assert groups["stem.first.conv.weight"]["lr_scale"] == 0.5**16
    assert groups["levels.2.blocks.8.gamma1"]["weight_decay"] == 0.05
    assert groups["levels.2.blocks.8.norm1.weight"]["weight_decay"] == 0


def test_what_is_around_a_network_in_a_detector_learns_at_the_full_rate() -> None:
    body: Any = network("dwconv")
    body.reset_classifier(0)
    for detector in (Detector(body), Detector(timm.create_model("unified_dwconv_micro", features_only=True))):
        layers = parameter_layers(detector)
        last = max(layers.values())
        around = {name for name in layers if not name.startswith("backbone.body.")}
        assert around == {"backbone.fpn.weight", "backbone.fpn.bias", "stem.weight", "stem.bias"}
        assert {layers[name] for name in around} == {last}
        assert set(layers.values()) == set(range(last + 1))


def test_schedules_keep_the_scale_of_every_group() -> None:
    model = stmbench.create_model("dwconv", "micro", num_classes=2)
    protocol = recipe(lr=1e-2, layer_decay=0.7)
    optimizer = make_optimizer(model, protocol, "cpu")
    scheduler, _ = create_scheduler_v2(
        optimizer, "cosine", num_epochs=4, warmup_epochs=1, warmup_lr=1e-3, min_lr=1e-4, step_on_epochs=False,
        updates_per_epoch=3,
    )  # fmt: skip
    assert scheduler
    full = []
    for update in range(1, 13):
        head = max(group["lr"] for group in optimizer.param_groups)
        full.append(head)
        for group in optimizer.param_groups:
            assert group["lr"] == pytest.approx(head * group["lr_scale"])
        optimizer.step()
        scheduler.step_update(update)
    assert full[:3] == pytest.approx([1e-3, 4e-3, 7e-3])
    assert full[3] == max(full) > full[-1]
    assert len({group["lr_scale"] for group in optimizer.param_groups}) == 3 + 3 + 8 + 3 + 2


def test_frozen_parameters_are_left_out() -> None:
    model = stmbench.create_model("dwconv", "micro", num_classes=2)
    model.stem.requires_grad_(False)
    assert not any(name.startswith("stem.") for name in by_name(model, recipe()))


def test_what_has_no_layers_and_what_names_no_mixer_is_told() -> None:
    with pytest.raises(ValueError, match=r"Linear does not tell its layers apart.*layer_decay=1.0"):
        make_optimizer(nn.Linear(2, 2), recipe(layer_decay=0.5), "cpu")
    own.check(recipe(layer_decay=0.5).optimizer)
    with pytest.raises(ValueError, match=r"Unknown mixer 'hallo'\. Did you mean 'halo'"):
        recipe(decay_positions=["hallo"])
    with pytest.raises(ValueError, match="layer_decay must be at most 1"):
        recipe(layer_decay=1.1)
    with pytest.raises(ValueError, match="decay_layer_scales must be a list"):
        recipe(decay_layer_scales=True)


def test_the_rules_count_for_the_digest() -> None:
    plain = recipe()
    changed = [recipe(decay_biases=True), recipe(decay_positions=["sra"]), recipe(layer_decay=0.9)]
    assert len({each.digest for each in (plain, *changed)}) == 4
    assert dataclasses.replace(plain, name="other").digest == plain.digest


def test_sgd_is_not_fused_since_a_skipped_first_step_would_spoil_its_momentum() -> None:
    made = {name: make_optimizer(nn.Linear(2, 2), recipe(name=name), "cpu") for name in ("sgd", "adamw")}
    assert not made["sgd"].defaults["fused"]
    assert made["adamw"].defaults["fused"]
