"""From what was asked to jobs: names resolved, the recipe read, stages chosen, the device found."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from timm.optim import list_optimizers

import stmbench.data
from stmbench import catalog, recipe
from stmbench.data import DataInfo
from stmbench.measure.setting import check as check_profile
from stmbench.mixers.backends import PLAIN, Backend, BackendMixer
from stmbench.nn import create_model, timm_models
from stmbench.nn.backbone import Backbone
from stmbench.nn.timm_models import is_timm
from stmbench.nn.weights import read_weights
from stmbench.recipe import Recipe
from stmbench.record import Job
from stmbench.stages.build import parameters
from stmbench.training.network import classes_of, make
from stmbench.training.optimizer import make_optimizer

KINDS = ("cuda", "mps", "cpu")  # of devices
_LOOKS = ("eval", "erf", "invariance", "robustness")  # stages that look at a network with weights
_ONLY = Backend(PLAIN, "always: there is no other", torch.nn.Module.__call__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What a user asked for, every name resolved and checked: one run for each mixer or timm model."""

    mixers: tuple[str, ...]  # names of the catalogue, or timm:NAME
    scale: str  # of the mixers
    recipe: Recipe
    overrides: tuple[str, ...]
    stages: tuple[str, ...]
    seed: int
    info: DataInfo
    device: str
    weights: str | None
    backend: str = ""  # of the mixers; "" for the best there is
    design: str = "unified"  # what stands around the mixers
    preprocessing: Mapping[str, Any] = field(default_factory=dict)
    """What the weights of a timm model put in the place of the recipe's own, by its names."""
    warnings: tuple[str, ...] = ()

    def scale_of(self, mixer: str) -> str:
        """The scale of one of the mixers; "" for a timm model, whose name settles its size."""
        return "" if is_timm(mixer) else self.scale

    def design_of(self, mixer: str) -> str:
        """What stands around one of the mixers; "" for a timm model."""
        return "" if is_timm(mixer) else self.design

    def job(self, mixer: str, folder: Path) -> Job:
        """The job of one of the mixers, which will keep its files in `folder`."""
        return Job(
            mixer=mixer,
            scale=self.scale_of(mixer),
            recipe=prepared(self.recipe, self.preprocessing),
            asked_digest=self.recipe.digest if self.preprocessing else "",
            stages=self.stages,
            seed=self.seed,
            data=self.info.source,
            device=self.device,
            weights=self.weights,
            backend=self.backend,
            design=self.design_of(mixer),
            folder=folder,
        )


def request(
    *,
    mixer: str | None,
    model: str | None = None,
    scale: str | None,
    recipe_name: str,
    overrides: Sequence[str],
    stage: str,
    seed: int,
    data: str | None,
    device: str,
    weights: Path | None,
    backend: str = "",
    design: str = "unified",
    elsewhere: bool = False,
) -> Request:
    """Check and resolve what was asked; ValueError for whatever a user can get wrong.

    `mixer` and `model` name networks, each of them mixers and timm models alike; halo if neither is given.
    With `elsewhere` the device is one of another machine and is not looked for here.
    """
    protocol = recipe.load(recipe_name, overrides)
    _check_optimizer(protocol)
    mixers = networks(mixer, model)
    if scale and all(map(is_timm, mixers)):
        raise ValueError("--scale is of the mixers' backbone; the name of a timm model settles its size.")
    scale = scale or protocol.model.scale
    for name in mixers:
        if not is_timm(name):
            catalog.rung(name, scale, design)
        check_backend(name, backend)
    source = data or protocol.data.source
    if not source:
        raise ValueError(f"Recipe '{protocol.name}' needs data: give --data PATH.")
    asked = Request(
        mixers=mixers,
        scale=scale,
        recipe=protocol,
        overrides=tuple(overrides),
        stages=_stages(stage, protocol),
        seed=seed,
        info=stmbench.data.find(source),
        device=_elsewhere(device, protocol) if elsewhere else find_device(device),
        weights=str(weights.resolve()) if weights else None,
        backend=backend,
        design=design,
    )
    check(asked, elsewhere=elsewhere)
    for name in filter(is_timm, asked.mixers):
        asked = _fit_timm(asked, name)
    return asked


def seeds(text: str) -> tuple[int, ...]:
    """Seeds with commas between, each once; ValueError for what is none."""
    try:
        found = [int(seed) for seed in text.split(",")]
    except ValueError:
        raise ValueError(f"--seeds takes whole numbers with commas between, not '{text}'.") from None
    if not all(0 <= seed < 2**32 for seed in found):
        raise ValueError(f"A seed is from 0 to {2**32 - 1}: --seeds {text}.")
    return tuple(dict.fromkeys(found))


def check(asked: Request, *, elsewhere: bool = False) -> None:
    """ValueError for what a stage would refuse, hours later perhaps."""
    if "profile" in asked.stages and not elsewhere:
        check_profile(asked.device, asked.recipe.profile)
    _check_weights(asked)
    if {"erf", "invariance"} & set(asked.stages):
        stmbench.data.spread(asked.info, 1)  # these choose images; a stream has none to choose from
    if "robustness" in asked.stages:
        stmbench.data.find_robustness(asked.recipe.robustness, asked.info)


def backends_of(mixer: str) -> tuple[Backend, ...]:
    """The ways in which a mixer of the catalogue can be computed, the best first and the plain one last."""
    made = catalog.resolve(catalog.mixer(mixer).target)
    chooses = isinstance(made, type) and issubclass(made, BackendMixer)
    return made.backends if chooses else (_ONLY,)


def check_backend(network: str, backend: str) -> None:
    """ValueError where a mixer, or a timm model (which has no choice), lacks the backend; "" is anybody's."""
    if not backend:
        return
    if is_timm(network):
        raise ValueError(f"{network} has no backends to choose from: they are of our mixers alone.")
    catalog.known(f"backend of {network}", backend, [each.name for each in backends_of(network)])


def _check_optimizer(protocol: Recipe) -> None:
    name = catalog.known("optimizer", protocol.optimizer.name, map(str, list_optimizers()))
    try:
        make_optimizer(torch.nn.Linear(2, 2), protocol, "cpu")
    except Exception as error:  # each optimizer refuses what it does not take in its own way
        raise ValueError(f"optimizer '{name}' cannot be used with this recipe: {error}") from None


def _check_weights(asked: Request) -> None:
    """The weights are there, fit the network, and there are some for what is to be evaluated."""
    looks = [stage for stage in asked.stages if stage in _LOOKS]
    evaluates_only = bool(looks) and "train" not in asked.stages
    if asked.weights is None:
        if evaluates_only:
            raise ValueError(
                f"Nothing to evaluate: give --weights FILE, or train too (--stage train,{looks[0]})."
            )
        return
    mixer, *others = asked.mixers
    if others:
        raise ValueError("--weights is one network's checkpoint: give one --mixer or --model with it.")
    job = asked.job(mixer, Path())
    classes = classes_of(job, make(job, asked.info.num_classes, device="cpu"))
    if evaluates_only and classes != asked.info.num_classes:
        raise ValueError(
            f"{asked.weights} tells {classes or 'no'} classes apart, {asked.info.name} has "
            f"{asked.info.num_classes}: train a new classifier before evaluating it (--stage train,eval)."
        )


def _fit_timm(asked: Request, name: str) -> Request:
    """Check that a timm model takes the recipe's images; with weights, prepare them as these want it."""
    data = asked.recipe.data
    model = make(asked.job(name, Path()), asked.info.num_classes, device="cpu")
    timm_models.check_images(
        model,
        name,
        num_classes=asked.info.num_classes,
        in_channels=data.channels,
        image_size=data.image_size,
    )
    if not asked.weights:
        return asked  # nothing was learnt yet under any other preprocessing than the recipe's
    own = timm_models.preparation(model, read_weights(asked.weights)[1], channels=data.channels)
    typed = {override.partition("=")[0].strip().removeprefix("data.") for override in asked.overrides}
    used = {key: own[key] for key in timm_models.PREPARATION if key in own and key not in typed}
    return dataclasses.replace(asked, preprocessing=used, warnings=_mismatches(asked, name, own, typed))


def _mismatches(asked: Request, name: str, own: Mapping[str, Any], typed: set[str]) -> tuple[str, ...]:
    """What the recipe does to images otherwise than the model's weights want, and which of them is done."""
    recipes = dataclasses.asdict(asked.recipe.data) | {"crop_mode": "center"}  # we know no other
    kept = typed | {"crop_mode"}
    warnings = []
    for keys, winner in ((own.keys() - kept, "weights'"), (own.keys() & kept, "recipe's")):
        differing = [
            f"{key} = {_plain(own[key])}, the recipe {_plain(recipes[key])}"
            for key in own
            if key in keys and _plain(own[key]) != _plain(recipes[key])
        ]
        if differing:
            warnings.append(f"The weights of {name} want {'; '.join(differing)}: the {winner} is used.")
    return tuple(warnings)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def prepared(protocol: Recipe, preprocessing: Mapping[str, Any]) -> Recipe:
    """The recipe with some of its data section's values replaced."""
    values = protocol.values()
    return recipe.from_values(values | {"data": values["data"] | dict(preprocessing)}, protocol.name)


def find_device(name: str) -> str:
    """`auto` as the best device there is; ValueError for one that is not here."""
    here = dict.fromkeys(KINDS, False) | dict.fromkeys(devices(), True)
    if name == "auto":
        return devices()[0]
    kind, _, index = name.partition(":")
    catalog.known("device", kind, ["auto", *here])
    if not here[kind]:
        raise ValueError(f"No {kind} device here. Use --device auto; `stmbench doctor` shows what there is.")
    if index and (not index.isdigit() or kind != "cuda" or int(index) >= torch.cuda.device_count()):
        raise ValueError(f"No device '{name}' here; `stmbench doctor` shows what there is.")
    return name


def _elsewhere(name: str, protocol: Recipe) -> str:
    """The device of another machine, where nothing depends on what only that machine knows."""
    if name == "auto":
        raise ValueError("Which device is best elsewhere is not known here: give --device cuda or cpu.")
    catalog.known("device", name, KINDS)
    if name == "cuda" and protocol.train.precision == "auto":
        raise ValueError(
            "train.precision = auto depends on a GPU that is elsewhere: set train.precision=bf16."
        )
    return name


def devices() -> list[str]:
    """The kinds of devices that are here, the fastest first."""
    here = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    return [kind for kind in KINDS if here[kind]]


def size(asked: Request, mixer: str) -> tuple[int, int | None]:
    """Parameters, and MACs where the network declares them, of one network of the request."""
    data = asked.recipe.data
    if is_timm(mixer):
        model = make(asked.job(mixer, Path()), asked.info.num_classes, device="cpu")
        return sum(parameter.numel() for parameter in model.parameters()), None
    size, channels = data.image_size, data.channels
    model = sketch(
        mixer,
        asked.scale,
        design=asked.design,
        image_size=size,
        in_channels=channels,
        num_classes=asked.info.num_classes,
    )
    return weigh(model, size)


def sketch(mixer: str, scale: str, **options: Any) -> Backbone:
    """The network of a mixer without any numbers in it: made in no time, and on no device."""
    with torch.device("meta"):
        return create_model(mixer, scale, **options)


def weigh(model: Backbone, image_size: int) -> tuple[int, int]:
    """Parameters, and MACs of an image of so many pixels squared."""
    macs = sum(form.total for form in model.macs(image_size, image_size).values())
    return sum(parameters(model).values()), macs


def networks(mixer: str | None, model: str | None) -> tuple[str, ...]:
    """The catalogue's names of all mixers asked for, and the timm models', each once."""
    wanted = _names("halo" if mixer is None else mixer) if mixer is not None or model is None else []
    wanted += _names(model) if model is not None else []
    found: list[str] = []
    for name in wanted:
        if is_timm(name):
            timm_models.check_name(name)
            found.append(name)
        elif ":" in name:
            raise ValueError(f"--model takes models of timm, as timm:NAME, not '{name}'.")
        else:
            found += list(catalog.mixers()) if name == "all" else [_mixer(name)]
    return tuple(dict.fromkeys(found))


def _mixer(name: str) -> str:
    try:
        return catalog.mixer(name).name
    except ValueError:
        if timm_models.is_known(name):
            raise ValueError(f"Unknown mixer '{name}'. Did you mean --model timm:{name}?") from None
        raise


def _names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise ValueError("--mixer, --model and --stage take names, separated by commas, or `all`.")
    return names


def _stages(text: str, protocol: Recipe) -> tuple[str, ...]:
    """The stages to run, in the catalogue's order whatever order they were typed in."""
    chosen = protocol.stages if text == "all" else _names(text)
    for name in chosen:
        catalog.known("stage", name, catalog.stages())
    return tuple(name for name in catalog.stages() if name in chosen)
