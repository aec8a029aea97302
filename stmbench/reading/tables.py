"""The leaderboard in words for people: cells, captions, and notes of what numbers and marks mean."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from stmbench.reading import published, readable
from stmbench.reading.columns import Column, Number
from stmbench.reading.readable import DASH, amount, macs
from stmbench.reading.rows import COLUMNS, DETECTION, NAMES, Group, Row
from stmbench.record import parts_of
from stmbench.store import RunRecord

NONE = DASH
DISTURBED = "!"
TIED = "="
_SAME = "not told apart from the first of this rank, at 5 %"
_UNPAIRED = ", by the shares alone: these are too many runs to read their predictions"
_HEADERS = {
    "parameters": "params",
    "macs": "MACs",
    "throughput": "images/s",
    "top1": "top-1 %",
    "interval": "95 %",
    "published": "published %",
    "original": "original %",
    "difference": "difference",
    "box_ap": "box AP",
    "mask_ap": "mask AP",
    "published_box_ap": "published box AP",
    "published_mask_ap": "published mask AP",
}
SHOWN = ("mixer", "scale", "parameters", "macs", "latency", "throughput", "top1", "interval", "seeds")
"""The columns of a table unless others are asked for."""
_OF_DETECTORS = (*SHOWN[: SHOWN.index("top1")], *DETECTION, "seeds")
HEADERS = ("#", *(_HEADERS.get(name, name) for name in SHOWN))
TEXTS = (
    "mixer",
    "scale",
    "design",
    "weights",
    "backend",
    "runs",
    *(name for name in ("recipe", "data", "hardware")),
)


def shown(group: Group, asked: Sequence[str] = ()) -> tuple[str, ...]:
    """The columns of a group's table: those asked for, and whatever else the group has."""
    filled = {text for row in group.rows for text in row.more}
    usual = [name for name in _OF_DETECTORS if name not in DETECTION or name in filled]
    names = [NAMES.get(name, name) for name in asked] or (usual if group.detects else SHOWN)
    paper = {column.text for column in (*published.COLUMNS, *published.DETECTION)}
    more = [column.text for column in group.columns if column.text in filled or column.text not in paper]
    return tuple(dict.fromkeys([*names, *(name for name in more if name not in DETECTION)]))


def headers(group: Group, names: Sequence[str]) -> tuple[str, ...]:
    """What heads the cells of these columns: a measurement's name and unit, and the condition asked for."""
    units = {column.text: readable.unit(column.unit)[1] for column in group.columns}

    def head(name: str) -> str:
        stem, _, at = name.partition("@")
        return ", ".join([f"{stem} {units.get(name, '')}".rstrip(), *filter(None, at.split(","))])

    return ("#", *(_HEADERS.get(name) or head(name) for name in names))


def cells(row: Row, group: Group | None = None, names: Sequence[str] = SHOWN) -> tuple[str, ...]:
    """The row as a person reads it, under `headers`; the group gives what all its rows have."""
    columns = {column.text: column for column in group.columns} if group else {}
    rank = NONE if row.rank is None else f"{row.rank}{TIED * row.tied}"
    return (rank, *(_cell(row, group, columns.get(name), name) or NONE for name in names))


def _cell(row: Row, group: Group | None, column: Column | None, name: str) -> str:
    if name in _CELLS:
        return _CELLS[name](row)
    if name in COLUMNS:
        return _plain(row.value(name))
    if number := row.more.get(name):
        return _number(number, column.unit if column else "", row.seeds)
    return getattr(group, name, "") if group else ""


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "" if value is None else readable.value(value) if isinstance(value, float) else str(value)


def _number(number: Number, unit: str, seeds: int) -> str:
    """The mean with its standard deviation, and over how many seeds where it is not all of the row's."""
    of = readable.unit(unit)[0]
    sd = None if number.sd is None else number.sd / of
    return readable.spread(number.value / of, sd) + f" (n={number.n})" * (number.n != seeds)


def _difference(row: Row) -> str:
    number = row.more.get("difference")
    if not number:
        return ""
    ends = f" ({number.low:+.1f} to {number.high:+.1f})" if number.low is not None else ""
    return f"{number.value:+.2f}{ends}"


def _published(design: str) -> Callable[[Row], str]:
    return lambda row: f"{row.more[design].value:.1f}" if design in row.more else ""


def _ap(name: str) -> Callable[[Row], str]:
    def cell(row: Row) -> str:
        number = row.more.get(name)
        return (
            f"{number.value:.2f}" + (f" ±{number.sd:.2f}" if number.sd is not None else "") if number else ""
        )

    return cell


def _latency(row: Row) -> str:
    ms = row.latency
    return "" if ms is None else (f"{ms:.3g} ms" if ms < 100 else f"{ms:,.0f} ms") + DISTURBED * row.disturbed


def _throughput(row: Row) -> str:
    return "" if row.throughput is None else f"{row.throughput:,.0f}" + DISTURBED * row.disturbed


def _top1(row: Row) -> str:
    sd = f" ±{row.top1_sd:.2f}" if row.top1_sd is not None else ""
    return "" if row.top1 is None else f"{row.top1:.2f}{sd}"


_CELLS: dict[str, Callable[[Row], str]] = {
    "mixer": lambda row: network(row),
    "parameters": lambda row: "" if row.parameters is None else amount(row.parameters),
    "macs": lambda row: "" if row.macs is None else macs(row.macs),
    "latency": _latency,
    "throughput": _throughput,
    "top1": _top1,
    "interval": lambda row: "" if row.top1_low is None else f"{row.top1_low:.1f}{NONE}{row.top1_high:.1f}",
    "runs": lambda row: " ".join(row.runs),
    "published": _published("published"),
    "original": _published("original"),
    "box_ap": _ap("box_ap"),
    "mask_ap": _ap("mask_ap"),
    "published_box_ap": _published("published_box_ap"),
    "published_mask_ap": _published("published_mask_ap"),
    "difference": _difference,
}


def network(of: RunRecord | Row, mixer: str = "") -> str:
    """What a network is called: with its design, the backend it was forced to, and the file it started from.

    `mixer` is another name of its mixer.
    """
    name = f"{mixer or of.mixer}{readable.design(of.design)}"
    forced = f" ({of.backend})" if of.backend else ""
    return name + forced + (f" from {_origin(Path(of.weights))}" if of.weights else "")


def _origin(weights: Path) -> str:
    """The file, or of a file that a run left the run."""
    return weights.parent.name if weights.name in ("ema.safetensors", "plain.safetensors") else weights.name


def caption(group: Group) -> str:
    """What the rows of a group have in common, in one line."""
    name = f"recipe {group.recipe} ({group.recipe_digest})"
    return f"{name}, data {group.data}, {group.hardware} [{group.device}], {group.precision}"


def conditions(group: Group, names: Sequence[str] = SHOWN) -> str:
    """What latency and throughput were measured under, and what the marks mean; "" where there is neither.

    `names` are the columns shown: a mark that stands in none of them is not explained.
    """
    found = {"latency": group.latency_condition, "images/s": group.throughput_condition}
    parts = {name: at.split(",") for name, at in found.items() if at}
    common = set.intersection(*map(set, parts.values())) if parts else set()
    shared = sorted(part for part in common if not part.startswith("batch"))
    own = {name: ", ".join(part for part in at if part not in shared) for name, at in parts.items()}
    notes = [f"{name} at {at}" for name, at in own.items() if at] + [", ".join(shared)] * bool(shared)
    if any(row.disturbed for row in group.rows) and {"latency", "throughput"} & set(names):
        notes.append(f"{DISTURBED} the machine was disturbed: `stmbench show RUN` says how")
    if any(row.tied for row in group.rows):
        same = _SAME + _UNPAIRED * (not group.paired)
        notes.append(f"{TIED} {same if group.ranked_by == 'top1' else 'equal'}")
    return "; ".join(notes)


def notes(group: Group) -> list[str]:
    """What else is to be said of a group: under what its columns were measured, and its own notes."""
    timed, lines = parts_of(group.latency_condition), defaultdict(list)
    for column in group.columns:
        name, _, asked = column.text.partition("@")
        known = {*parts_of(asked), "backend"}
        parts = {key: value for key, value in parts_of(column.condition).items() if key not in known}
        rest = ", ".join(f"{key}={value}" for key, value in parts.items() if timed.get(key) != value)
        lines[rest].append(name)
    said = [f"{', '.join(dict.fromkeys(names))} at {rest}" for rest, names in lines.items() if rest]
    return [*said, *group.notes]
