"""The optimizer of a recipe, through timm's factory."""

import inspect
from typing import Any

import torch
from timm.optim import create_optimizer_v2, get_optimizer_class
from torch import nn

from stmbench.recipe import Recipe


def make_optimizer(model: nn.Module, protocol: Recipe, device: str) -> torch.optim.Optimizer:
    """The recipe's optimizer over the model's parameters, without weight decay where the model wants none."""
    recipe = protocol.optimizer
    known = inspect.signature(get_optimizer_class(recipe.name, bind_defaults=False)).parameters
    options: dict[str, Any] = {"betas": recipe.betas} if "betas" in known else {}
    if "fused" in known and not device.startswith("mps"):
        options["fused"] = True  # one kernel per step: on a CPU 5 times as fast as the default loop
    return create_optimizer_v2(model, recipe.name, lr=recipe.lr, weight_decay=recipe.weight_decay, **options)
