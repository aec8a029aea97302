"""From what was asked to jobs: names resolved, the recipe read, stages chosen, the device found."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from timm.optim import list_optimizers

from stmbench import catalog, recipe
from stmbench.nn import create_model
from stmbench.recipe import Recipe
from stmbench.stages.build import parameters


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What a user asked for, every name resolved and checked: one run for each mixer."""

    mixers: tuple[str, ...]
    scale: str
    recipe: Recipe
    overrides: tuple[str, ...]
    stages: tuple[str, ...]
    seed: int
    data: str
    device: str
    weights: str | None


def request(
    *,
    mixer: str,
    scale: str | None,
    recipe_name: str,
    overrides: Sequence[str],
    stage: str,
    seed: int,
    data: str | None,
    device: str,
    weights: Path | None,
) -> Request:
    """Check and resolve what was asked; ValueError for whatever a user can get wrong."""
    protocol = recipe.load(recipe_name, overrides)
    mixers = tuple(catalog.mixers()) if mixer == "all" else tuple(_names(mixer))
    scale = scale or protocol.model.scale
    for name in mixers:
        catalog.scale(name, scale)
    if weights and not weights.is_file():
        raise ValueError(f"No weights file at {weights}.")
    if weights and len(mixers) > 1:
        raise ValueError("--weights is one mixer's checkpoint: give one --mixer with it.")
    if not (data or protocol.data.source):
        raise ValueError(f"Recipe '{protocol.name}' needs data: give --data PATH.")
    catalog.known("optimizer", protocol.optimizer.name, map(str, list_optimizers()))
    stages = _stages(stage, protocol)
    if "eval" in stages and "train" not in stages and not weights:
        raise ValueError(
            "Nothing to evaluate: add the train stage (--stage train,eval) or give --weights FILE."
        )
    return Request(
        mixers=tuple(catalog.mixer(name).name for name in mixers),
        scale=scale,
        recipe=protocol,
        overrides=tuple(overrides),
        stages=stages,
        seed=seed,
        data=data or protocol.data.source,
        device=find_device(device),
        weights=str(weights.resolve()) if weights else None,
    )


def find_device(name: str) -> str:
    """`auto` as the best device there is; ValueError for one that is not here."""
    here = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        return next(device for device in ("cuda", "mps", "cpu") if here[device])
    kind, _, index = name.partition(":")
    catalog.known("device", kind, ["auto", *here])
    if not here[kind]:
        raise ValueError(f"No {kind} device here. Use --device auto; `stmbench doctor` shows what there is.")
    if index and (not index.isdigit() or kind != "cuda" or int(index) >= torch.cuda.device_count()):
        raise ValueError(f"No device '{name}' here; `stmbench doctor` shows what there is.")
    return name


def size(asked: Request, mixer: str, num_classes: int) -> tuple[int, int]:
    """Parameters and MACs of one network of the request, without allocating it."""
    data = asked.recipe.data
    with torch.device("meta"):
        model = create_model(
            mixer,
            asked.scale,
            num_classes=num_classes,
            in_channels=data.channels,
            image_size=data.image_size,
        )
    return sum(parameters(model).values()), sum(model.macs(data.image_size, data.image_size).values())


def _names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise ValueError("--mixer and --stage take names, separated by commas, or `all`.")
    return names


def _stages(text: str, protocol: Recipe) -> tuple[str, ...]:
    """The stages to run, in the catalogue's order whatever order they were typed in."""
    chosen = protocol.stages if text == "all" else _names(text)
    for name in chosen:
        catalog.known("stage", name, catalog.stages())
    return tuple(name for name in catalog.stages() if name in chosen)
