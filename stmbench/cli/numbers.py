"""A run's numbers in few lines: what belongs together stands together.

An interval stands behind its number. Numbers that differ in how strong something was are one line with a bar
for each; in a share of one whole or in the batch, one line with a column for each; in which thing was looked
at (a transform, a corruption, a level, a part of the network), one line for each thing. Any other number has
a line of its own.
"""

import dataclasses
import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.markup import escape
from rich.measure import Measurement as Width
from rich.table import Table

from stmbench.cli.layout import DASH, UNLIMITED, sparkline, table
from stmbench.reading.readable import unit, value
from stmbench.record import Measurement, parts_of

# Parts of a condition, and what becomes of the numbers that have one; of several the first here decides.
_BARS = ("strength", "severity", "shift")
_COLUMNS = {"share": "{} %", "batch": "batch {}"}  # and how its values head the columns
_LINES = ("transform", "corruption", "set", "level", "part")
_NUMBER = "number"  # heads the names of numbers, beside the parts of conditions
_ENDS = {"stem": 0, "head": 2}  # a network's parts in its order, any others by name between


@dataclass(frozen=True, slots=True)
class Number:
    """A measurement with its interval."""

    of: Measurement
    parts: Mapping[str, str]  # of its condition
    low: float | None
    high: float | None

    @property
    def text(self) -> str:
        return value(self.of.value / unit(self.of.unit)[0])

    @property
    def unit(self) -> str:
        return unit(self.of.unit)[1]

    @property
    def name(self) -> str:
        """Its name and unit."""
        return " ".join(dict.fromkeys(filter(None, (self.of.name, self.unit))))

    @property
    def interval(self) -> str:
        if self.low is None or self.high is None:
            return ""
        return f"({value(self.low, 3)}{DASH}{value(self.high, 3)})"


def folded(measurements: Iterable[Measurement]) -> list[Number]:
    """The measurements without those that end in .low and .high, which are the others' intervals."""
    found = {(m.stage, m.name, m.condition, m.step): m for m in measurements}
    numbers = []
    for (stage, name, at, step), m in found.items():
        stem, dot, end = name.rpartition(".")
        if dot and end in ("low", "high") and (stage, stem, at, step) in found:
            continue
        ends = [found.get((stage, f"{name}.{end}", at, step)) for end in ("low", "high")]
        low, high = (end.value if end else None for end in ends)
        numbers.append(Number(m, parts_of(m.condition), low, high))
    return numbers


def _by_part(numbers: Sequence[Number]) -> list[Number]:
    """The numbers, with a part of the network where a name ends in one: ``macs.level1.mixers``.

    Parts are what several names end in, and what those parts have themselves. Of one network all were counted
    under one condition.
    """
    ends = [number.of.name.partition(".")[::2] for number in numbers]
    stems: defaultdict[str, set[str]] = defaultdict(set)
    for stem, end in ends:
        stems[end] |= {stem}
    parts = {end for end, names in stems.items() if end and len(names) > 1}
    inner = {end.rpartition(".")[2] for end in stems if end.partition(".")[0] in parts and "." in end}
    found = []
    for number, (stem, end) in zip(numbers, ends, strict=True):
        if end in parts or end in inner or end.partition(".")[0] in parts:
            of = dataclasses.replace(number.of, name=stem)
            number = dataclasses.replace(number, of=of, parts={"part": end})
        found.append(number)
    return found


def told(measurements: Sequence[Measurement]) -> list[Group]:
    """Stage by stage, tables of all numbers that are not points of a training curve."""
    stages: dict[str, list[Number]] = defaultdict(list)
    for number in folded(m for m in measurements if m.step == 0):
        stages[number.of.stage].append(number)
    return [part for stage, numbers in stages.items() for part in _stage(stage, numbers)]


def _stage(stage: str, numbers: Sequence[Number]) -> list[Group]:
    """First the numbers on their own, under what most conditions have in common, then those alike."""
    groups: dict[tuple[str, str], list[Number]] = defaultdict(list)
    for number in _by_part(numbers) if stage == "build" else numbers:
        keys = (key for key in (*_BARS, *_COLUMNS, *_LINES) if key in number.parts)
        key = "" if number.of.reason else next(keys, "")
        groups[number.parts.get("protocol", "") if key else "", key].append(number)
    alike = {
        group: members
        for group, members in groups.items()
        if group[1] and len({number.parts[group[1]] for number in members}) > 1
    }
    single = [number for group, members in groups.items() if group not in alike for number in members]
    common = _common([number.of.condition for number in numbers if number.of.condition])
    caption = f"[bold]{stage}[/]  [dim]{escape(', '.join(common))}[/]"
    tables = [_group(stage, key, members) for (_, key), members in alike.items()]
    return [Group(caption, _lines(single, common))] * bool(single) + tables


def _lines(numbers: Sequence[Number], common: Sequence[str] = ()) -> Table:
    """One line per number, with what its condition says beside the `common` parts."""
    lines = []
    for number, parts in _merged(numbers):
        said = [f"{key}={text}" for key, text in parts.items()]
        if {part.partition("=")[0] for part in common} <= parts.keys():
            said = [part for part in said if part not in common]
        where = ": ".join(filter(None, [", ".join(said), number.of.reason]))
        text = "[red]failed[/]" if number.of.reason else number.text
        lines.append((escape(number.of.name), text, number.interval, number.unit, escape(where)))
    headers = ("number", "value", "95 %", "unit", "condition")
    filled = [i for i, header in enumerate(headers) if header == "number" or any(line[i] for line in lines)]
    made = table(*(headers[i] for i in filled), right=("value",), wrap=("condition",))
    for line in lines:
        made.add_row(*(line[i] for i in filled))
    return made


def _merged(numbers: Sequence[Number]) -> Iterator[tuple[Number, Mapping[str, str]]]:
    """Numbers with the parts of their conditions; those that are equal under every one of several are one."""
    alike: dict[tuple[str, ...], list[Number]] = defaultdict(list)
    for number in numbers:
        alike[number.of.name, number.unit, number.text, number.interval, number.of.reason].append(number)
    for members in alike.values():
        names = dict.fromkeys(name for number in members for name in number.parts)
        values = {name: dict.fromkeys(number.parts.get(name, "") for number in members) for name in names}
        if math.prod(map(len, values.values())) == len(members):
            yield members[0], {name: "|".join(found) for name, found in values.items()}
        else:
            yield from ((number, number.parts) for number in members)


def _common(conditions: Sequence[str]) -> list[str]:
    """The parts that most conditions have, where they are worth a line of their own."""
    counts = Counter(part for condition in conditions for part in condition.split(","))
    frequent = [part for part, count in counts.items() if count > max(1, len(conditions) / 2)]
    common = [part for part in frequent if not part.startswith("batch")]  # which differs by its nature
    return common if len(common) > 1 else []


def _group(stage: str, key: str, numbers: Sequence[Number]) -> Group:
    """The numbers that have a part `key` in their condition, under what all of them have in common."""
    rows: dict[tuple[tuple[str, str], ...], dict[str, Number]] = defaultdict(dict)
    for number in numbers:
        parts, column = dict(number.parts), number.name
        if key not in _LINES:
            parts[_NUMBER], column = column, parts.pop(key)
        rows[tuple(sorted(parts.items()))][column] = number
    everything = [dict(row) for row in rows]
    names = dict.fromkeys(name for parts in everything for name in parts)
    values = {name: {parts.get(name, "") for parts in everything} for name in names}
    shown = [name for name in values if len(values[name]) > 1 or name in (key, _NUMBER)]
    shown.sort(key=lambda name: (len(values[name]), name != key))  # what changes least often first
    heads = [[parts.get(name, "") for name in shown] for parts in everything]
    lines = sorted(zip(heads, rows.values(), strict=True), key=lambda line: list(map(_order, line[0])))
    common = [f"{name}={next(iter(values[name]))}" for name in sorted(values) if name not in shown]
    made = _bars(key, shown, lines) if key in _BARS else _Columns(key, shown, lines, numbers, common)
    return Group(f"[bold]{stage}[/] by {key}  [dim]{escape(', '.join(common))}[/]", made)


_Lines = Sequence[tuple[Sequence[str], Mapping[str, Number]]]  # what heads a line, and its numbers by column


def _bars(key: str, shown: Sequence[str], lines: _Lines) -> Table:
    """A bar for each number; a whole one is the largest that this name has in the table."""
    most: dict[str, float] = defaultdict(float)
    for _, cells in lines:
        for number in cells.values():
            most[number.name] = max(most[number.name], number.of.value)
    made = table(*shown, key, "curve", "first", "last", right=("first", "last"))
    for head, cells in lines:
        strengths = sorted(cells, key=_natural)
        points = [cells[strength].of.value for strength in strengths]
        span = DASH.join(dict.fromkeys((strengths[0], strengths[-1])))
        bars = sparkline(points, most=most[cells[strengths[0]].name])
        last = value(points[-1]) if len(points) > 1 else ""
        made.add_row(*map(escape, head), span, bars, value(points[0]), last)
    return made


class _Columns:
    """A column for each share or name; in a narrow terminal the intervals give way, then the columns."""

    def __init__(
        self,
        key: str,
        shown: Sequence[str],
        lines: _Lines,
        numbers: Sequence[Number],
        common: Sequence[str],
    ) -> None:
        self.shown, self.lines, self.numbers, self.common = shown, lines, numbers, common
        self.names = list(dict.fromkeys(name for _, cells in lines for name in cells))
        if key in _COLUMNS:
            self.names.sort(key=_natural)
        self.headers = [_COLUMNS.get(key, "{}").format(name) for name in self.names]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        unbounded = options.update(max_width=UNLIMITED)
        whole = self._table(lambda number: f"{number.text} {number.interval}".strip(), wrap=False)
        plain = self._table(lambda number: number.text, wrap=True)
        if Width.get(console, unbounded, whole).maximum <= options.max_width:
            yield whole
        elif Width.get(console, unbounded, plain).minimum <= options.max_width:
            yield plain
            if any(number.interval for number in self.numbers):
                yield "[dim]no room for the 95 % intervals[/]"
        else:
            yield _lines(self.numbers, self.common)

    def _table(self, text: Callable[[Number], str], *, wrap: bool) -> Table:
        made = table(*self.shown, *self.headers, right=self.headers, wrap=self.headers if wrap else ())
        for head, cells in self.lines:
            texts = (text(cells[name]) if name in cells else "" for name in self.names)
            made.add_row(*map(escape, head), *texts)
        return made


def _order(text: str) -> tuple[int, float, str]:
    return (_ENDS.get(text, 1), *_natural(text))


def _natural(text: str) -> tuple[float, str]:
    """Sorts numbers by size, and before other texts."""
    return (float(text), "") if re.fullmatch(r"-?\d+(\.\d+)?", text) else (float("inf"), text)
