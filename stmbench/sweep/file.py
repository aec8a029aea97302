"""Sweep files: networks x scales x recipes x seeds x overrides in one TOML file, as strict as a recipe."""

import itertools
import json
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from stmbench.catalog import known
from stmbench.recipe import build

_PACKED = Path(__file__).parents[1] / "sweeps"  # inside a wheel; in a checkout they lie beside the package
FOLDER = _PACKED if _PACKED.is_dir() else Path(__file__).parents[2] / "sweeps"

Variant = tuple[str, ...]  # overrides, section.key=value


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """What a sweep file says; every list is multiplied with every other."""

    name: str = ""
    mixers: tuple[str, ...] = ()
    models: tuple[str, ...] = ()  # of timm, as timm:NAME
    scales: tuple[str, ...] = ()  # of the mixers; none: the recipe's own
    designs: tuple[str, ...] = ("unified",)  # what stands around the mixers: see `catalog.rungs`
    recipes: tuple[str, ...] = ("quick",)
    seeds: tuple[int, ...] = (0,)
    stages: tuple[str, ...] = ("all",)  # of each run
    data: str = ""  # "": the recipe's
    device: str = "auto"
    weights: str = ""
    backend: str = ""
    overrides: list = field(default_factory=list)  # alternatives: see `variants`
    grid: dict = field(default_factory=dict)  # section.key = [values], each with each
    slurm: dict = field(default_factory=dict)  # what a job is given: see `stmbench.sweep.slurm`
    ray: dict = field(default_factory=dict)  # see `stmbench.sweep.rays`

    def variants(self) -> tuple[Variant, ...]:
        """The ways in which the recipe is changed, each once; the recipe as it is, where none is named."""
        alternatives = [_settings(one) for one in self.overrides] or [()]
        axes = [[f"{key}={_text(value)}" for value in values] for key, values in _flat(self.grid)]
        points = list(itertools.product(*axes))
        return tuple(dict.fromkeys((*one, *point) for one in alternatives for point in points))


def load(name: str) -> Sweep:
    """Read a sweep by name (``sweeps/NAME.toml``) or path; ValueError names what is wrong with it."""
    path = find(name)
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid TOML: {error}") from None
    sweep: Sweep = build(Sweep, values, f"{path}: ")
    try:
        _check(sweep)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return replace(sweep, name=sweep.name or path.stem)


def find(name: str) -> Path:
    """The file of a sweep; ValueError names the nearest one."""
    path = Path(name)
    if path.suffix == ".toml" or path.is_file():
        if not path.is_file():
            raise ValueError(f"No sweep file at {path}.")
        return path
    return FOLDER / f"{known('sweep', name, names())}.toml"


def names() -> list[str]:
    """The sweeps that come with stmbench."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def _check(sweep: Sweep) -> None:
    if not sweep.mixers and not sweep.models:
        raise ValueError('nothing to run: name mixers = ["halo", "swin"], or ["all"], or models of timm.')
    for key in ("designs", "recipes", "seeds", "stages"):
        if not getattr(sweep, key):
            raise ValueError(f"{key} is empty: leave it out for its default.")
    if wrong := [seed for seed in sweep.seeds if not 0 <= seed < 2**32]:
        raise ValueError(f"a seed is from 0 to {2**32 - 1}, not {wrong[0]}.")
    for key, values in _flat(sweep.grid):
        if not isinstance(values, list) or not values:
            raise ValueError(f"grid.{key} must be a list of values, not {values!r}.")
    sweep.variants()


def _settings(alternative: Any) -> Variant:
    """One entry of `overrides`: text, a list of texts, or a table."""
    if isinstance(alternative, Mapping):
        return tuple(f"{key}={_text(value)}" for key, value in _flat(alternative))
    entries = [alternative] if isinstance(alternative, str) else alternative
    if not isinstance(entries, list) or not all(isinstance(entry, str) for entry in entries):
        raise ValueError(
            f"an entry of overrides is a list of section.key=value or a table, not {alternative!r}."
        )
    return tuple(entries)


def _flat(table: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """The values of nested tables by dotted keys, which TOML reads as tables where they are not quoted."""
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{key}.")
        else:
            yield f"{before}{key}", value


def _text(value: Any) -> str:
    """A value as an override has it: of text, numbers, lists and truth TOML and JSON write the same."""
    return json.dumps(value, default=str)
