"""The optimizer of a recipe, through timm's factory: what is decayed, and how fast each layer learns.

Weights of convolutions and linear layers are decayed; their biases, tables of positions and layer scales
where the recipe says so, for the runs of Hu et al. 2022 (arXiv:2211.05781) decayed some of them for some
mixers alone; norms never. A timm model has its own say in what is not (`no_weight_decay`).

With layer decay (Bao et al. 2022, "BEiT", arXiv:2106.08254) each layer learns so many times as fast as the
next one, and the head at the full rate. The layers are those of timm's `group_matcher`, and timm's schedules
keep each group's scale.
"""

import fnmatch
import inspect
from collections.abc import Iterator
from typing import Any

import torch
from timm.models._manipulate import group_with_matcher
from timm.optim import create_optimizer_v2, get_optimizer_class
from torch import nn

from stmbench.nn.backbone import Backbone
from stmbench.recipe import Recipe
from stmbench.sections import Optimizer


def make_optimizer(model: nn.Module, protocol: Recipe, device: str) -> torch.optim.Optimizer:
    """The recipe's optimizer over the model's parameters that learn, in groups that differ in decay and rate.

    Raises:
        ValueError: the recipe decays rates by layer, and neither the model nor a network in it knows its own.
    """
    return _create(_groups(model, protocol.optimizer), protocol.optimizer, device)


def check(recipe: Optimizer) -> None:
    """Raise what the optimizer raises where it does not take the recipe's values."""
    _create([{"params": [nn.Parameter(torch.zeros(2, 2))]}], recipe, "cpu")


def _create(groups: list[dict[str, Any]], recipe: Optimizer, device: str) -> torch.optim.Optimizer:
    known = inspect.signature(get_optimizer_class(recipe.name, bind_defaults=False)).parameters
    options: dict[str, Any] = {"betas": recipe.betas} if "betas" in known else {}
    if options and "fused" in known and not device.startswith("mps"):
        # One kernel per step: on a CPU 5 times as fast as the default loop. Not SGD's, whose momentum is left
        # uninitialised where the first step is skipped, as the loss scale of fp16 makes it.
        options["fused"] = True
    return create_optimizer_v2(groups, recipe.name, lr=recipe.lr, weight_decay=recipe.weight_decay, **options)


def _groups(model: nn.Module, recipe: Optimizer) -> list[dict[str, Any]]:
    """Parameters by layer and by whether they are decayed, each group with its decay and its rate's scale."""
    decayed = decayed_parameters(model, recipe)
    layers = parameter_layers(model) if recipe.layer_decay < 1 else {}
    last = max(layers.values(), default=0)
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        layer, decays = layers.get(name, last), name in decayed
        if (layer, decays) not in groups:
            scale = recipe.layer_decay ** (last - layer)
            weight_decay = recipe.weight_decay if decays else 0.0
            groups[layer, decays] = {"params": [], "weight_decay": weight_decay, "lr_scale": scale}
        groups[layer, decays]["params"].append(parameter)
    return list(groups.values())


def decayed_parameters(model: nn.Module, recipe: Optimizer) -> set[str]:
    """The names of the parameters whose weights the recipe decays."""
    modules = list(model.named_modules())
    decayed = {name for at, each in modules for name in _weights(at, each, biases=recipe.decay_biases)}
    for prefix, module in modules:
        free = set(_within(prefix, module, "no_weight_decay"))
        if isinstance(module, Backbone):
            if _chosen(recipe.decay_positions, module.mixer_name):
                free = set()
            if _chosen(recipe.decay_layer_scales, module.mixer_name):
                decayed |= set(_within(prefix, module, "layer_scales"))
        decayed -= free
    return decayed


def _chosen(mixers: tuple[str, ...], name: str) -> bool:
    return "all" in mixers or name in mixers


def _weights(prefix: str, module: nn.Module, *, biases: bool) -> set[str]:
    """Of one layer's own parameters the weights, unless they are a norm's, and with `biases` theirs."""
    own = dict(module.named_parameters(prefix, recurse=False))
    weights = {name for name, each in own.items() if each.ndim > 1 and not name.endswith("bias")}
    return weights | {name for name in own if biases and weights and name.endswith("bias")}


def _within(prefix: str, module: nn.Module, method: str) -> Iterator[str]:
    """The names in the whole model of what a network in it tells by `method`, in names or patterns."""
    names = [name for name, _ in module.named_parameters()]
    for pattern in getattr(module, method, set)():
        yield from (f"{prefix}.{name}".lstrip(".") for name in fnmatch.filter(names, pattern))


def parameter_layers(model: nn.Module) -> dict[str, int]:
    """The layer of each parameter by its name, the stem's 0, as the model's `group_matcher` has it.

    A model that has none (a detector) may hold a network that has: what is around that one is its last layer.

    Raises:
        ValueError: there is no such network.
    """
    for prefix, module in model.named_modules():
        matcher: Any = getattr(module, "group_matcher", None)
        if matcher is None:
            continue
        own = {f"{prefix}.{name}".lstrip("."): name for name, _ in module.named_parameters()}
        names = {name: own.get(name, f"outside {name}") for name, _ in model.named_parameters()}
        found: Any = group_with_matcher(((each, None) for each in names.values()), matcher(), reverse=True)
        return {name: found[each] for name, each in names.items()}
    raise ValueError(
        f"{type(model).__name__} does not tell its layers apart: set optimizer.layer_decay=1.0 for it."
    )
