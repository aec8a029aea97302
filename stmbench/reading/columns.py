"""Any measurement as a column of the leaderboard: ``area``, ``erf.area``, ``erf.area@level=4,share=50``.

A column is asked for by a measurement's name, after its stage where several stages have that name, and with
as much of its condition, behind an ``@``, as it takes to mean one number of each run. What need not be said:

- the weights, where a run looked at several kinds: those it is known by, EMA where it keeps them, else plain;
- the way of timing, since the rows of one table were timed in one way; of a sweep over batches, the batch;
- the backend, which keeps no numbers apart.

Some have a short name: `SHORT`.

Seeds are averaged; of several runs with one seed the newest that has the number gives it.
"""

import difflib
import re
import statistics
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from stmbench.record import parts_of, without
from stmbench.store import Store, reading
from stmbench.store.reading import Kind

_LARGER_IS_BETTER = re.compile(
    r"(.+\.)?(top\d|accuracy|consistency|equivariance)|(.+_)?throughput|(matmul|copy)_share|ceiling\..+"
    r"|(detect\.)?(box|mask)_a[pr].*"
)
SHORT = {"probe": ("probe.top1", {"probe": "linear"}), "knn": ("probe.top1", {"probe": "knn"})}
"""Columns that a stage is known by: the measurement, with its stage, and what its condition has."""
_UNSAID = ("backend", "weights")  # parts of a condition that need not be said
_BATCHES = ("batch", "batches")
_WEIGHTS = ("ema", "plain")  # that a network is known by: the first kind it has


@dataclass(frozen=True, slots=True)
class Number:
    """A row's number: the mean over `n` seeds with their standard deviation, or one with its interval."""

    value: float
    sd: float | None = None
    n: int = 1
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True)
class Column:
    """A measurement as asked for, and what it was in one table: in which unit, under which condition."""

    text: str  # as asked for
    unit: str = ""
    condition: str = ""
    descending: bool = False  # whether larger is better
    beside: tuple[str, ...] = ("sd", "n", "unit", "condition")  # what else a flat record has of it

    @property
    def types(self) -> list[tuple[str, type]]:
        """What a flat record has of it, with the types of the values."""
        kinds = {"n": int, "unit": str, "condition": str}
        more = [(f"{self.text}_{name}", kinds.get(name, float)) for name in self.beside]
        return [(self.text, float), *more]

    def record(self, numbers: Mapping[str, Number]) -> dict[str, float | int | str | None]:
        """Those values, of a row that has these numbers."""
        number = numbers.get(self.text)
        values = [
            getattr(self if name in ("unit", "condition") else number, name, None) for name in self.beside
        ]
        names = [name for name, _ in self.types]
        return dict(zip(names, [getattr(number, "value", None), *values], strict=True))


def split(text: str) -> list[str]:
    """The columns in a text with commas between, and in conditions: ``top1,side@level=4,share=50``."""
    found: list[str] = []
    for part in map(str.strip, text.split(",")):
        if found and "@" in found[-1] and "=" in part and "@" not in part:
            found[-1] += f",{part}"
        else:
            found.append(part)
    return [part for part in found if part]


def known_by(stages: Collection[str]) -> list[str]:
    """The short names of what these stages measure."""
    return [short for short, (name, _) in SHORT.items() if name.partition(".")[0] in stages]


def descending(name: str) -> bool:
    """Whether larger is better; of most numbers that are no score, smaller is."""
    return bool(_LARGER_IS_BETTER.fullmatch(name))


class Finder:
    """Finds the columns asked for among the measurements of a store's runs."""

    def __init__(self, store: Store, asked: Iterable[str]) -> None:
        self._store = store
        self._asked = {text: _parse(text) for text in asked}
        self._missing = set(self._asked)
        names = {name for name, _ in self._asked.values()}
        self._names = sorted(names | {name.partition(".")[2] for name in names} - {""})

    def columns(self, runs: Sequence[str], timed: str) -> list[tuple[Column, list[Kind]]]:
        """The columns of one table, whose times were taken under `timed`; each with the kinds that give it.

        Raises:
            ValueError: a column that means several numbers; the choices are named.
        """
        if not self._asked:
            return []
        measured = reading.kinds(self._store, runs, self._names)
        kinds = [kind for kind in measured if _of_this_timing(kind, timed)]
        found = []
        for text, (name, parts) in self._asked.items():
            _, meant = SHORT.get(text.partition("@")[0], (name, {}))
            called = [kind for kind in kinds if name in (kind.name, f"{kind.stage}.{kind.name}")]
            called = [kind for kind in called if meant.items() <= parts_of(kind.condition).items()]
            chosen = [kind for kind in called if parts.items() <= parts_of(kind.condition).items()]
            if called and not chosen:
                raise ValueError(f"Nobody measured '{text}'. {_choices(text, called)}")
            if "weights" not in parts:
                chosen = _known_by(chosen)
            _check_one(text, chosen)
            if chosen:
                self._missing -= {text}
            one = chosen[0] if chosen else Kind("", name, "", "")
            found.append((Column(text, one.unit, one.condition, descending(one.name)), chosen))
        return found

    def check(self, runs: Sequence[str], fields: Iterable[str]) -> None:
        """Refuse a column that no table had; the nearest of what was measured or of `fields` is named."""
        for text in sorted(self._missing):
            pairs = reading.names(self._store, runs)
            names = {name for _, name in pairs} | {f"{stage}.{name}" for stage, name in pairs} | set(fields)
            near = difflib.get_close_matches(text.partition("@")[0], sorted(names), n=1)
            hint = f"Did you mean '{near[0]}'?" if near else "`stmbench show RUN` lists what a run measured."
            raise ValueError(f"Unknown column '{text}': nobody measured it. {hint}")

    def values(self, runs: Sequence[str], kinds: Sequence[Kind]) -> dict[str, float]:
        """A column's number of each run that has it."""
        return {
            run: value for kind in reversed(kinds) for run, value in reading.values(self._store, runs, kind)
        }


def averaged(values: Mapping[str, float], seeds: Iterable[tuple[str, int]]) -> Number | None:
    """The mean over the seeds of one network: of its runs with their seeds, oldest first."""
    newest = {seed: values[run] for run, seed in seeds if run in values}
    if not newest:
        return None
    numbers = list(newest.values())
    sd = statistics.stdev(numbers) if len(numbers) > 1 else None
    return Number(statistics.fmean(numbers), sd, len(numbers))


def _parse(text: str) -> tuple[str, dict[str, str]]:
    name, at, condition = text.partition("@")
    parts = parts_of(condition)
    if at and len(parts) != len(condition.split(",")):
        raise ValueError(f"Cannot read the column '{text}': it is NAME, or NAME@KEY=VALUE,KEY=VALUE.")
    name, known = SHORT.get(name, (name, {}))
    return name, known | parts


def _of_this_timing(kind: Kind, timed: str) -> bool:
    """Times count where all they were taken under, but for the batch, is not unlike those of the table."""
    if kind.stage != "profile":
        return True
    way = parts_of(without(timed, *_BATCHES))
    return all(way.get(key, value) == value for key, value in parts_of(kind.condition).items())


def _known_by(kinds: Sequence[Kind]) -> list[Kind]:
    """Without those of weights that a network is not known by; first those of the weights that decide."""
    if not any("weights" in parts_of(kind.condition) for kind in kinds):
        return list(kinds)
    return [kind for each in _WEIGHTS for kind in kinds if parts_of(kind.condition).get("weights") == each]


def _check_one(text: str, kinds: Sequence[Kind]) -> None:
    name, stages = text.partition("@")[0], sorted({kind.stage for kind in kinds})
    if len(stages) > 1:
        several = ", ".join(f"{stage}.{name}" for stage in stages)
        raise ValueError(f"The column '{text}' was measured by several stages: choose one of {several}.")
    if len({without(kind.condition, *_UNSAID) for kind in kinds}) > 1:
        raise ValueError(f"The column '{text}' means several numbers. {_choices(text, kinds)}")


def _choices(text: str, kinds: Sequence[Kind]) -> str:
    """What in their conditions tells the kinds apart, and an example of one."""
    conditions = [parts_of(without(kind.condition, *_UNSAID)) for kind in kinds]
    keys = dict.fromkeys(key for parts in conditions for key in parts)
    values = {key: sorted({parts.get(key, "") for parts in conditions} - {""}, key=_natural) for key in keys}
    unlike = {
        key: found
        for key, found in values.items()
        if len(found) > 1 or any(key not in parts for parts in conditions)
    }
    if not unlike:
        return f"It was measured under {kinds[0].condition}."
    said = " and ".join(f"{key} ({', '.join(found)})" for key, found in unlike.items())
    example = next((parts for parts in conditions if unlike.keys() <= parts.keys()), conditions[0])
    first = ",".join(f"{key}={example[key]}" for key in unlike if key in example)
    return f"Choose by {said}, such as {text.partition('@')[0]}@{first}."


def _natural(text: str) -> tuple[float, str]:
    """Sorts numbers by size, and before other texts."""
    return (float(text), "") if re.fullmatch(r"-?\d+(\.\d+)?", text) else (float("inf"), text)
