"""From what was asked to jobs: names resolved, the recipe read, stages chosen, the device found."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from timm.optim import list_optimizers

import stmbench.data
from stmbench import catalog, devices, recipe
from stmbench.data import DataInfo, DetectionInfo
from stmbench.measure.count import declared
from stmbench.measure.setting import check as check_profile
from stmbench.mixers.backends import PLAIN, Backend, BackendMixer
from stmbench.nn import create_model, places, timm_models
from stmbench.nn.backbone import Backbone
from stmbench.nn.detector import check_pyramid
from stmbench.nn.detector_weights import holds_detector
from stmbench.nn.timm_models import is_timm
from stmbench.nn.weights import read_weights, remarks
from stmbench.recipe import Recipe
from stmbench.record import Job
from stmbench.stages.build import parameters
from stmbench.stages.probe import check as check_probe
from stmbench.training import optimizer
from stmbench.training.network import classes_of, image_shape, make, start_detector

_LOOKS = ("eval", "erf", "invariance", "robustness", "probe")  # stages that look at a network with weights
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
    info: DataInfo | DetectionInfo
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
    recipe_name: str | Recipe,
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
    `recipe_name` is a recipe's name, its file, or the recipe itself.
    With `elsewhere` the device is one of another machine and is not looked for here.
    """
    load = recipe.load if isinstance(recipe_name, str) else recipe.changed
    protocol = load(recipe_name, overrides)  # pyright: ignore[reportArgumentType]
    _check_optimizer(protocol)
    mixers = networks(mixer, model)
    if scale and all(map(is_timm, mixers)):
        raise ValueError("--scale is of the mixers' backbone; the name of a timm model settles its size.")
    scale = scale or protocol.model.scale
    for name in mixers:
        if not is_timm(name):
            catalog.rung(name, scale, design)
        check_backend(name, backend)
        if any(typed.partition("=")[0].strip() == "model.window" for typed in overrides):
            catalog.check_window(name, protocol.model.window)
    source = data or protocol.data.source
    if not source:
        raise ValueError(f"Recipe '{protocol.name}' needs data: give --data PATH.")
    asked = Request(
        mixers=mixers,
        scale=scale,
        recipe=protocol,
        overrides=tuple(overrides),
        stages=stages(stage, protocol),
        seed=seed,
        info=find_data(source, protocol),
        device=devices.elsewhere(device, protocol) if elsewhere else devices.find(device),
        weights=str(places.locate(weights, mixers, scale).resolve()) if weights else None,
        backend=backend,
        design=design,
    )
    check(asked, elsewhere=elsewhere)
    for name in filter(is_timm, () if protocol.detects else asked.mixers):
        asked = _fit_timm(asked, name)
    return dataclasses.replace(asked, warnings=(*asked.warnings, *_remarks(asked)))


def _remarks(asked: Request) -> list[str]:
    """What is to be known of the weights of a classifier of ours."""
    if asked.weights is None or asked.recipe.detects or is_timm(asked.mixers[0]):
        return []
    window = catalog.window(asked.mixers[0], asked.recipe.model.window)
    return remarks(asked.weights, sketch(asked.mixers[0], asked.scale, design=asked.design, window=window))


def find_data(source: str, protocol: Recipe) -> DataInfo | DetectionInfo:
    """The data set that the recipe is for; ValueError where there is none."""
    return stmbench.data.find_detection(source) if protocol.detects else stmbench.data.find(source)


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
    info = asked.info
    if "profile" in asked.stages and not elsewhere:
        check_profile(asked.device, asked.recipe.profile)
    if isinstance(info, DetectionInfo):
        if "detect" in asked.stages and not elsewhere:
            stmbench.data.masks.library()  # AP is first asked for after an epoch
        _check_detection(asked, info)
        return
    _check_weights(asked)
    if {"erf", "invariance"} & set(asked.stages):
        stmbench.data.spread(info, 1)  # these choose images; a stream has none to choose from
    if "probe" in asked.stages:
        check_probe(info, asked.recipe.probe)
    if "robustness" in asked.stages:
        stmbench.data.find_robustness(asked.recipe.robustness, info)


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
        optimizer.check(protocol.optimizer)
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
    judged = evaluates_only and looks != ["probe"]  # which learns its own classes
    if judged and classes != asked.info.num_classes:
        raise ValueError(
            f"{asked.weights} tells {classes or 'no'} classes apart, {asked.info.name} has "
            f"{asked.info.num_classes}: train a new classifier before evaluating it (--stage train,eval)."
        )


def _check_detection(asked: Request, info: DetectionInfo) -> None:
    """Every network can become a detector, and there is one with weights where none is trained."""
    if asked.weights and len(asked.mixers) > 1:
        raise ValueError("--weights is one network's checkpoint: give one --mixer or --model with it.")
    trains = bool(asked.recipe.schedule.epochs) or "detect" not in asked.stages
    if not (trains or (asked.weights and holds_detector(asked.weights))):
        raise ValueError("Nothing to evaluate: with schedule.epochs=0 give a detector as --weights FILE.")
    for name in asked.mixers:
        job = asked.job(name, Path())
        model, left = start_detector(job, info.num_classes, masks=info.has_masks, device="cpu")
        if left and not trains:
            raise ValueError(f"{left} Such a detector must be trained: give it schedule.epochs.")
        if is_timm(name):
            check_pyramid(model.pyramid, name)


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
    metadata, config = read_weights(asked.weights)[1], places.config_of(Path(asked.weights))
    images = config.get("pretrained_cfg")  # what timm's own folders say of them
    own = timm_models.preparation(model, metadata, channels=data.channels, config=images)
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


def size(asked: Request, mixer: str) -> tuple[int, int | None]:
    """Parameters, and MACs where the network declares them, of one network of the request."""
    data = asked.recipe.data
    if isinstance(asked.info, DetectionInfo):
        return _detector_size(asked, mixer, asked.info)
    if is_timm(mixer):
        model = make(asked.job(mixer, Path()), asked.info.num_classes, device="cpu")
        return sum(parameter.numel() for parameter in model.parameters()), None
    size, channels = data.image_size, data.channels
    model = sketch(
        mixer,
        asked.scale,
        design=asked.design,
        window=catalog.window(mixer, asked.recipe.model.window),
        image_size=size,
        in_channels=channels,
        num_classes=asked.info.num_classes,
    )
    return weigh(model, size)


def _detector_size(asked: Request, mixer: str, info: DetectionInfo) -> tuple[int, int | None]:
    job = asked.job(mixer, Path())
    model, _ = start_detector(job, info.num_classes, masks=info.has_masks, device="cpu")
    _, height, width = image_shape(asked.recipe)
    forms = declared(model.pyramid, height, width)
    macs = sum(form.total for form in (*forms.values(), *model.head_macs(height, width).values()))
    return sum(parameter.numel() for parameter in model.parameters()), macs if forms else None


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


def stages(text: str, protocol: Recipe) -> tuple[str, ...]:
    """The stages to run, in the catalogue's order whatever order they were typed in."""
    chosen = protocol.stages if text == "all" else _names(text)
    for name in chosen:
        catalog.known("stage", name, catalog.stages())
        if protocol.detects and name not in catalog.DETECTION:
            raise ValueError(f"Recipe '{protocol.name}' is of detection, and has no stage {name}.")
        if name == "detect" and not protocol.detects:
            raise ValueError(f"Recipe '{protocol.name}' is of classification: --recipe coco_1x detects.")
    return tuple(name for name in catalog.stages() if name in chosen)
