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

from stmbench.catalog import DETECTION, known, mixers, stages
from stmbench.sections import (
    AT_LEAST,
    AT_MOST,
    SHARES,
    Augment,
    Data,
    Detect,
    Erf,
    Eval,
    Invariance,
    Model,
    Optimizer,
    Probe,
    Profile,
    Robustness,
    Schedule,
    Train,
)

_PACKED = Path(__file__).with_name("recipes")  # inside a wheel; in a checkout they lie beside the package
FOLDER = _PACKED if _PACKED.is_dir() else Path(__file__).parents[1] / "recipes"
WAYS = (("data", "workers"), ("data", "cache"), ("train", "checkpointing"))  # to the same results


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
    probe: Probe = field(default_factory=Probe)
    detect: Detect = field(default_factory=Detect)

    @property
    def detects(self) -> bool:
        """Whether it is a protocol of detection, not of classification."""
        return "detect" in self.stages

    @property
    def digest(self) -> str:
        """Twelve hexadecimal digits of the SHA-256 of every value that a trained network depends on.

        So not of how it is looked at either, by stages whose numbers say what they were taken under.
        """
        values = self.deciding()
        for section in ("profile", "erf", "invariance", "robustness", "probe"):
            del values[section]
        del values["detect"]["image_size"]
        if not self.detects:
            del values["detect"]
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]

    def deciding(self) -> dict[str, Any]:
        """The values that results depend on: not the name, nor which stages are run, nor how work is done."""
        values = self.values()
        del values["stages"]
        for section, key in WAYS:
            del values[section][key]
        return values

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


def changed(recipe: Recipe, overrides: Sequence[str]) -> Recipe:
    """The recipe with ``section.key=value`` overrides."""
    values = recipe.values()
    for override in overrides:
        _apply(values, override)
    return from_values(values, recipe.name)


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
            least, most = AT_LEAST.get((section, key), -math.inf), AT_MOST.get((section, key), math.inf)
            for number in numbers:
                if isinstance(number, float) and not math.isfinite(number):
                    raise ValueError(f"{section}.{key} must be finite, not {number}.")
                if isinstance(number, int | float) and number < least:
                    raise ValueError(f"{section}.{key} must be at least {least}, not {number}.")
                if isinstance(number, int | float) and number > most:
                    raise ValueError(f"{section}.{key} must be at most {most}, not {number}.")
                if (section, key) in SHARES and number is not None and not 0 <= number <= 1:
                    raise ValueError(f"{section}.{key} must be from 0 to 1, not {number}.")


def _check_stages(recipe: Recipe) -> None:
    if not recipe.stages:
        raise ValueError(f"there are no stages; list some of {', '.join(stages())}.")
    if recipe.detects:
        _check_detection(recipe)
    elif not recipe.schedule.epochs:
        raise ValueError("schedule.epochs must be at least 1, not 0, which is for evaluating a detector.")


def _check_detection(recipe: Recipe) -> None:
    if others := [stage for stage in recipe.stages if stage not in DETECTION]:
        raise ValueError(f"the stage detect goes with {', '.join(DETECTION)} alone, not with {others[0]}.")
    if recipe.data.channels != 3:
        raise ValueError("detection reads colour images: data.channels must be 3.")
    if len(recipe.detect.anchor_sizes) not in (4, 5):
        raise ValueError("detect.anchor_sizes needs 4 sizes, one per level, or a fifth for a pooled map.")
    jitter = recipe.detect.jitter
    if jitter and (len(jitter) != 2 or jitter[0] > jitter[1]):
        raise ValueError(f"detect.jitter must be [low, high], or [] for none, not {list(jitter)}.")


def _check_augment(augment: Augment, batch: int) -> None:
    for key, (low, high) in {"scale": augment.scale, "ratio": augment.ratio}.items():
        if not 0 < low <= high:
            raise ValueError(f"augment.{key} must be [low, high], not [{low}, {high}].")
    if augment.repeats > 1 and batch < 2 * augment.repeats:
        raise ValueError(
            f"augment.repeats {augment.repeats} leaves a batch of {batch} with one image or none."
        )


def _check_together(recipe: Recipe) -> None:
    train, data = recipe.train, recipe.data
    _check_stages(recipe)
    for key in ("batch_sizes", "precisions", "executions", "memory_formats"):
        if not getattr(recipe.profile, key):
            raise ValueError(f"profile.{key} is empty; to time nothing, leave the stage `profile` out.")
    if (recipe.schedule.name == "multistep") != bool(recipe.schedule.milestones):
        raise ValueError('schedule.milestones belong to schedule.name = "multistep", which needs some.')
    _check_augment(recipe.augment, train.batch_size)
    for name in (*recipe.optimizer.decay_positions, *recipe.optimizer.decay_layer_scales):
        known("mixer", name, [*mixers(), "all"])
    for key, values in {"mean": data.mean, "std": data.std}.items():
        if len(values) != data.channels:
            raise ValueError(f"data.{key} needs {data.channels} values, one per channel.")
    if min(data.std) <= 0:
        raise ValueError(f"data.std must be above 0, not {list(data.std)}.")
