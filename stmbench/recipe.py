"""Recipes: one protocol in one TOML file, read into frozen dataclasses, strict and hashed.

An unknown key or a wrong type is a ValueError that names the place and the nearest known key. The digest
covers every value that a result depends on, defaults and ``--set`` overrides included, so that two runs with
the same digest followed the same protocol.
"""

import dataclasses
import hashlib
import json
import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from stmbench.catalog import known, stages

_PACKED = Path(__file__).with_name("recipes")  # inside a wheel; in a checkout they lie beside the package
FOLDER = _PACKED if _PACKED.is_dir() else Path(__file__).parents[1] / "recipes"


@dataclass(frozen=True, slots=True, kw_only=True)
class Data:
    """What is read and how a plain image is made ready for the network."""

    source: str = ""  # default of --data; "" asks for one
    image_size: int = 224
    channels: Literal[1, 3] = 3
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"] = "bicubic"
    crop_pct: float = 0.875
    workers: int = 4  # loader processes; random augmentation depends on it


@dataclass(frozen=True, slots=True, kw_only=True)
class Augment:
    """Training augmentation, in timm's terms; 0 or "" switches one off."""

    crop: Literal["rrc", "rkrc", "rkrr"] = "rrc"  # random resized crop; resize keep-ratio, random crop/resize
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (0.75, 4 / 3)
    hflip: float = 0.5
    color_jitter: float = 0.0
    auto_augment: str = ""
    erase: float = 0.0
    erase_mode: Literal["const", "rand", "pixel"] = "pixel"
    mixup: float = 0.0
    cutmix: float = 0.0
    smoothing: float = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """The network; what is not said here is the catalogue's."""

    scale: str = "micro"  # default of --scale
    drop_path: float | None = None  # default: the scale's own


@dataclass(frozen=True, slots=True, kw_only=True)
class Optimizer:
    """timm's optimizer factory."""

    name: str = "adamw"
    lr: float = 1e-3
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.999)
    clip_grad: float = 0.0  # largest gradient norm; 0 for none


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """timm's scheduler factory, stepped per update."""

    name: Literal["cosine", "tanh", "poly"] = "cosine"
    epochs: int = 300
    warmup_epochs: int = 20
    warmup_lr: float = 0.0
    min_lr: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Train:
    batch_size: int = 1024  # images per optimizer step
    device_batch_size: int = 0  # images per forward pass, accumulated up to batch_size; 0: all at once
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"  # auto: the best autocast the device has
    ema_decay: float = 0.0  # 0 for none
    compile: bool = False
    checkpointing: bool = False  # compute activations again in the backward pass: less memory, more time


@dataclass(frozen=True, slots=True, kw_only=True)
class Eval:
    batch_size: int = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """What is timed: every combination of the three lists. Latency is always taken at batch 1."""

    batch_sizes: tuple[int, ...] = (1, 8, 32, 64)  # of the throughput sweep
    train_batch_size: int = 32  # of the training step; 0 leaves it out
    precisions: tuple[Literal["auto", "fp32", "tf32", "bf16", "fp16"], ...] = ("auto",)  # auto: the run's own
    executions: tuple[Literal["eager", "compiled", "cudagraph"], ...] = ("eager",)
    memory_formats: tuple[Literal["channels_last", "contiguous"], ...] = ("channels_last",)
    samples: int = 100  # of each; the protocol asks for at least 100
    control: bool = True  # also the same backbone around the identity, for what the mixer itself costs


@dataclass(frozen=True, slots=True, kw_only=True)
class Erf:
    """Effective receptive fields: see docs/analysis.md."""

    images: int = 500  # validation images, evenly spread over the data set; 0 for all
    sizes: tuple[int, ...] = ()  # of images, in pixels; none: data.image_size and twice that
    batch_size: int = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Invariance:
    """Transformations and their strengths, in pixels of data.image_size; an empty list leaves one out."""

    protocols: tuple[Literal["invariance/1", "invariance/published"], ...] = ("invariance/1",)
    images: int = 0  # validation images, evenly spread over the data set; 0 for all
    batch_size: int = 64
    translation: tuple[int, ...] = tuple(range(0, 65, 4))  # pixels, in eight directions
    rotation: tuple[int, ...] = tuple(range(0, 91, 5))  # degrees, before and after the crop
    scale: tuple[float, ...] = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.875, 1.0, 1.2, 1.4, 1.6, 1.8, 2.0)
    """Side of the crop over the image's shorter side."""
    flip: bool = True  # left to right
    jpeg: tuple[int, ...] = (90, 70, 50, 30, 20, 10)  # quality
    blur: tuple[float, ...] = (0.5, 1.0, 1.5, 2.0, 3.0, 4.0)  # standard deviation, pixels
    noise: tuple[float, ...] = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3)  # standard deviation, of a range of 1
    contrast: tuple[float, ...] = (0.8, 0.6, 0.4, 0.3, 0.2, 0.1)  # factor
    equivariance: int = 500  # images on which the shift equivariance of the features is looked at; 0 for none


@dataclass(frozen=True, slots=True, kw_only=True)
class Robustness:
    """Folders with other test images for ImageNet's classes; "" leaves one out."""

    v2: str = ""  # ImageNet-V2
    a: str = ""  # ImageNet-A
    r: str = ""  # ImageNet-R
    sketch: str = ""  # ImageNet-Sketch
    c: str = ""  # ImageNet-C: CORRUPTION/SEVERITY/CLASS folders


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    name: str = ""
    stages: tuple[str, ...] = ("build", "train", "eval", "profile")
    data: Data = field(default_factory=Data)
    augment: Augment = field(default_factory=Augment)
    model: Model = field(default_factory=Model)
    optimizer: Optimizer = field(default_factory=Optimizer)
    schedule: Schedule = field(default_factory=Schedule)
    train: Train = field(default_factory=Train)
    eval: Eval = field(default_factory=Eval)
    profile: Profile = field(default_factory=Profile)
    erf: Erf = field(default_factory=Erf)
    invariance: Invariance = field(default_factory=Invariance)
    robustness: Robustness = field(default_factory=Robustness)

    @property
    def digest(self) -> str:
        """Twelve hexadecimal digits of the SHA-256 of every value that a result depends on.

        Not the name, nor which stages are run, nor how a trained network is looked at, whose numbers say what
        they were taken under, nor what is computed twice.
        """
        values = self.values()
        for section in ("stages", "profile", "erf", "invariance", "robustness"):
            del values[section]
        del values["train"]["checkpointing"]
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]

    def values(self) -> dict[str, Any]:
        """Every value as plain types, as the digest covers them and `from_values` reads them."""
        values = dataclasses.asdict(self)
        del values["name"]
        return values


def from_values(values: Mapping[str, Any], name: str) -> Recipe:
    """Build a recipe from plain types; ValueError on an unknown key or a wrong type."""
    recipe: Recipe = build(Recipe, {**values, "name": name}, f"recipe '{name}': ")
    for stage in recipe.stages:
        known("stage", stage, stages())
    _check(recipe)
    return recipe


def load(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe by name (``recipes/NAME.toml``) or path, and apply ``section.key=value`` overrides."""
    path = find(name)
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid TOML: {error}") from None
    values.pop("name", None)
    for override in overrides:
        _apply(values, override)
    return from_values(values, path.stem)


def differences(first: Recipe, second: Recipe) -> dict[str, tuple[str, str]]:
    """The values in which two recipes differ, as text, by ``section.key``."""
    old, new = (_flat(recipe.values()) for recipe in (first, second))
    return {name: (old[name], new[name]) for name in old if old[name] != new[name]}


def _flat(values: Mapping[str, Any]) -> dict[str, str]:
    flat = {}
    for section, value in values.items():
        inner = value.items() if isinstance(value, Mapping) else [("", value)]
        flat |= {f"{section}.{key}".rstrip("."): json.dumps(each, ensure_ascii=False) for key, each in inner}
    return flat


def find(name: str) -> Path:
    """The file of a recipe; ValueError names the nearest one."""
    path = Path(name)
    if path.suffix == ".toml" or path.is_file():
        if not path.is_file():
            raise ValueError(f"No recipe file at {path}.")
        return path
    return FOLDER / f"{known('recipe', name, names())}.toml"


def names() -> list[str]:
    """The recipes that come with stmbench."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def promise(path: Path) -> str:
    """The comment a recipe opens with."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        lines.append(line[1:].strip())
    return "\n".join(lines)


def _apply(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    section, dot, option = key.strip().partition(".")
    if not equals or (not dot and section != "stages"):
        raise ValueError(f"--set takes section.key=value, not '{override}'.")
    if "\n" in text:
        raise ValueError(f"--set takes one value, not several lines: '{override}'.")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()  # a bare word is a string
    if not dot:
        values[section] = value
    else:
        known("recipe section", section, [f.name for f in dataclasses.fields(Recipe)])
        values[section] = {**values.get(section, {}), option: value}


def build(cls: type, values: Mapping[str, Any], where: str, section: str = "") -> Any:
    """A frozen dataclass from plain types; ValueError, which begins with `where`, as for a recipe."""
    hints = get_type_hints(cls)
    for key in values:
        try:
            known("key", f"{section}{key}", [f"{section}{name}" for name in hints])
        except ValueError as error:
            raise ValueError(f"{where}{error}") from None
    arguments = {}
    for key, value in values.items():
        hint = hints[key]
        if dataclasses.is_dataclass(hint):
            if not isinstance(value, Mapping):
                raise ValueError(f"{where}{key} must be a [section], not {value!r}.")
            arguments[key] = build(hint, value, where, f"{key}.")  # pyright: ignore[reportArgumentType]
        else:
            arguments[key] = _coerce(value, hint, f"{where}{section}{key}")
    return cls(**arguments)


def _coerce(value: Any, hint: Any, where: str) -> Any:
    """`value` as the annotated type: an int where a float is meant, a list for a tuple."""
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return None if value is None else _coerce(value, next(a for a in args if a is not NoneType), where)
    if origin is Literal:
        if value in args and type(value) is type(args[args.index(value)]):
            return value
        raise ValueError(f"{where} must be one of {', '.join(map(repr, args))}, not {value!r}.")
    if origin is tuple and isinstance(value, list | tuple):
        kinds = args[:1] * len(value) if args[-1] is Ellipsis else args
        if len(kinds) != len(value):
            raise ValueError(f"{where} must have {len(kinds)} values, not {len(value)}.")
        return tuple(_coerce(v, kind, where) for v, kind in zip(value, kinds, strict=True))
    if hint is float and type(value) is int:
        return float(value)
    if type(value) is hint:
        return value
    kinds = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
    kind = kinds.get(hint, "a [section]" if hint is dict else "a list")
    raise ValueError(f"{where} must be {kind}, not {value!r}.")


# Smallest values that make sense, for the numbers a typing error would turn into a crash far from here.
_AT_LEAST = {
    ("data", "image_size"): 1,
    ("data", "crop_pct"): 0.01,
    ("data", "workers"): 0,
    ("augment", "color_jitter"): 0,
    ("augment", "mixup"): 0,
    ("augment", "cutmix"): 0,
    ("optimizer", "lr"): 0,
    ("optimizer", "weight_decay"): 0,
    ("optimizer", "clip_grad"): 0,
    ("schedule", "warmup_lr"): 0,
    ("schedule", "min_lr"): 0,
    ("schedule", "epochs"): 1,
    ("schedule", "warmup_epochs"): 0,
    ("train", "batch_size"): 2,
    ("train", "device_batch_size"): 0,
    ("eval", "batch_size"): 1,
    ("profile", "batch_sizes"): 1,
    ("profile", "train_batch_size"): 0,
    ("profile", "samples"): 1,
    ("erf", "images"): 0,
    ("erf", "sizes"): 1,
    ("erf", "batch_size"): 1,
    ("invariance", "images"): 0,
    ("invariance", "batch_size"): 1,
    ("invariance", "translation"): 0,
    ("invariance", "scale"): 0.01,
    ("invariance", "jpeg"): 1,
    ("invariance", "blur"): 0,
    ("invariance", "noise"): 0,
    ("invariance", "contrast"): 0,
    ("invariance", "equivariance"): 0,
}
_AT_MOST = {("invariance", "jpeg"): 100}
_SHARES = (
    ("data", "crop_pct"), ("augment", "hflip"), ("augment", "erase"), ("augment", "smoothing"),
    ("train", "ema_decay"), ("model", "drop_path"),
)  # fmt: skip


def _check(recipe: Recipe) -> None:
    """ValueError for values of the right type that no protocol can have."""
    try:
        _check_ranges(recipe)
        _check_together(recipe)
    except ValueError as error:
        raise ValueError(f"recipe '{recipe.name}': {error}") from None


def _check_ranges(recipe: Recipe) -> None:
    for section, values in recipe.values().items():
        for key, value in values.items() if isinstance(values, dict) else ():
            numbers = value if isinstance(value, tuple) else (value,)
            least, most = _AT_LEAST.get((section, key), -math.inf), _AT_MOST.get((section, key), math.inf)
            for number in numbers:
                if isinstance(number, float) and not math.isfinite(number):
                    raise ValueError(f"{section}.{key} must be finite, not {number}.")
                if isinstance(number, int | float) and number < least:
                    raise ValueError(f"{section}.{key} must be at least {least}, not {number}.")
                if isinstance(number, int | float) and number > most:
                    raise ValueError(f"{section}.{key} must be at most {most}, not {number}.")
                if (section, key) in _SHARES and number is not None and not 0 <= number <= 1:
                    raise ValueError(f"{section}.{key} must be from 0 to 1, not {number}.")


def _check_together(recipe: Recipe) -> None:
    train, data, augment = recipe.train, recipe.data, recipe.augment
    if not recipe.stages:
        raise ValueError(f"there are no stages; list some of {', '.join(stages())}.")
    for key in ("batch_sizes", "precisions", "executions", "memory_formats"):
        if not getattr(recipe.profile, key):
            raise ValueError(f"profile.{key} is empty; to time nothing, leave the stage `profile` out.")
    for key, (low, high) in {"scale": augment.scale, "ratio": augment.ratio}.items():
        if not 0 < low <= high:
            raise ValueError(f"augment.{key} must be [low, high], not [{low}, {high}].")
    if train.device_batch_size and train.batch_size % train.device_batch_size:
        raise ValueError(
            f"train.batch_size {train.batch_size} is not a multiple of "
            f"train.device_batch_size {train.device_batch_size}."
        )
    for key, values in {"mean": data.mean, "std": data.std}.items():
        if len(values) != data.channels:
            raise ValueError(f"data.{key} needs {data.channels} values, one per channel.")
    if min(data.std) <= 0:
        raise ValueError(f"data.std must be above 0, not {list(data.std)}.")
