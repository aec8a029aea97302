"""From what was asked to jobs: names resolved, the recipe read, stages chosen, the device found."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from timm.optim import list_optimizers

import stmbench.data
from stmbench import catalog, recipe
from stmbench.data import DataInfo
from stmbench.nn import create_model
from stmbench.nn.weights import classes_of
from stmbench.recipe import Recipe
from stmbench.record import Job
from stmbench.stages.build import parameters
from stmbench.stages.network import make
from stmbench.stages.train import make_optimizer


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What a user asked for, every name resolved and checked: one run for each mixer."""

    mixers: tuple[str, ...]
    scale: str
    recipe: Recipe
    overrides: tuple[str, ...]
    stages: tuple[str, ...]
    seed: int
    info: DataInfo
    device: str
    weights: str | None

    def job(self, mixer: str, folder: Path) -> Job:
        """The job of one of the mixers, which will keep its files in `folder`."""
        return Job(
            mixer=mixer,
            scale=self.scale,
            recipe=self.recipe,
            stages=self.stages,
            seed=self.seed,
            data=self.info.source,
            device=self.device,
            weights=self.weights,
            folder=folder,
        )


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
    _check_optimizer(protocol)
    scale = scale or protocol.model.scale
    mixers = list(catalog.mixers()) if "all" in _names(mixer) else _names(mixer)
    for name in mixers:
        catalog.scale(name, scale)
    source = data or protocol.data.source
    if not source:
        raise ValueError(f"Recipe '{protocol.name}' needs data: give --data PATH.")
    asked = Request(
        mixers=tuple(catalog.mixer(name).name for name in mixers),
        scale=scale,
        recipe=protocol,
        overrides=tuple(overrides),
        stages=_stages(stage, protocol),
        seed=seed,
        info=stmbench.data.find(source),
        device=find_device(device),
        weights=str(weights.resolve()) if weights else None,
    )
    _check_weights(asked)
    return asked


def _check_optimizer(protocol: Recipe) -> None:
    name = catalog.known("optimizer", protocol.optimizer.name, map(str, list_optimizers()))
    try:
        make_optimizer(torch.nn.Linear(2, 2), protocol, "cpu")
    except Exception as error:  # each optimizer refuses what it does not take in its own way
        raise ValueError(f"optimizer '{name}' cannot be used with this recipe: {error}") from None


def _check_weights(asked: Request) -> None:
    """The weights are there, fit the network, and there are some for what is to be evaluated."""
    evaluates_only = "eval" in asked.stages and "train" not in asked.stages
    if asked.weights is None:
        if evaluates_only:
            raise ValueError("Nothing to evaluate: give --weights FILE, or train too (--stage train,eval).")
        return
    mixer, *others = asked.mixers
    if others:
        raise ValueError("--weights is one mixer's checkpoint: give one --mixer with it.")
    make(asked.job(mixer, Path()), asked.info.num_classes, device="cpu")
    classes = classes_of(asked.weights)
    if evaluates_only and classes != asked.info.num_classes:
        raise ValueError(
            f"{asked.weights} tells {classes or 'no'} classes apart, {asked.info.name} has "
            f"{asked.info.num_classes}: train a new classifier before evaluating it (--stage train,eval)."
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


def size(asked: Request, mixer: str) -> tuple[int, int]:
    """Parameters and MACs of one network of the request, without allocating it."""
    data = asked.recipe.data
    with torch.device("meta"):
        model = create_model(
            mixer,
            asked.scale,
            num_classes=asked.info.num_classes,
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
