"""A run's numbers in few lines: what belongs together stands together.

An interval stands behind its number. Numbers that differ in how strong something was are one line with a bar
for each; in a share of one whole, one line with a column for each; in which thing was looked at (a transform,
a corruption, a level), one line for each thing. Any other number has a line of its own.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.markup import escape
from rich.measure import Measurement as Width
from rich.table import Table

from stmbench.cli.layout import DASH, UNLIMITED, sparkline, table, value
from stmbench.record import Measurement, parts_of

# Parts of a condition, and what becomes of the numbers that have one; of several the first here decides.
_BARS = ("strength", "severity", "shift")
_COLUMNS = {"share": "{} %"}  # and how its values head the columns
_LINES = ("transform", "corruption", "set", "level")
_NUMBER = "number"  # heads the names of numbers, beside the parts of conditions


@dataclass(frozen=True, slots=True)
class Number:
    """A measurement with its interval."""

    of: Measurement
    parts: Mapping[str, str]  # of its condition
    low: float | None
    high: float | None

    @property
    def name(self) -> str:
        """Its name and unit."""
        return " ".join(dict.fromkeys(filter(None, (self.of.name, self.of.unit))))

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


def told(measurements: Sequence[Measurement]) -> list[Table | Group]:
    """Tables of all numbers that are not points of a training curve."""
    groups: dict[tuple[str, str, str], list[Number]] = defaultdict(list)
    for number in folded(m for m in measurements if m.step == 0):
        keys = (key for key in (*_BARS, *_COLUMNS, *_LINES) if key in number.parts)
        key = "" if number.of.reason else next(keys, "")
        groups[number.of.stage, number.parts.get("protocol", "") if key else "", key].append(number)
    alike = {group: numbers for group, numbers in groups.items() if group[2] and len(numbers) > 1}
    single = [number for group, numbers in groups.items() if group not in alike for number in numbers]
    tables = [_group(stage, key, numbers) for (stage, _, key), numbers in alike.items()]
    return [_lines(single)] * bool(single) + tables


def _lines(numbers: Sequence[Number]) -> Table:
    """One line per number; what most conditions of a stage have in common is said once, in its last line."""
    sure = ["95 %"] * any(number.interval for number in numbers)
    headers = ("stage", "number", "value", *sure, "unit", "condition")
    made = table(*headers, right=("value",), wrap=("condition",))
    stages: dict[str, list[Number]] = defaultdict(list)
    for number in numbers:
        stages[number.of.stage].append(number)
    for stage, members in stages.items():
        common = _common([number.of.condition for number in members if number.of.condition])
        for number in members:
            m, parts = number.of, number.of.condition.split(",")
            if all(part in parts for part in common):
                parts = [part for part in parts if part not in common]
            said = "[red]failed[/]" if m.reason else value(m.value)
            where = escape(": ".join(filter(None, [", ".join(parts), m.reason])))
            made.add_row(stage, escape(m.name), said, *[number.interval] * len(sure), escape(m.unit), where)
        if common:
            blank = [""] * (2 + len(sure))
            made.add_row(stage, "[dim]the rest at[/]", *blank, f"[dim]{escape(', '.join(common))}[/]")
    return made


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
    lines = sorted(zip(heads, rows.values(), strict=True), key=lambda line: list(map(_natural, line[0])))
    common = ", ".join(f"{name}={next(iter(values[name]))}" for name in sorted(values) if name not in shown)
    made = _bars(key, shown, lines) if key in _BARS else _Columns(key, shown, lines, numbers)
    return Group(f"[bold]{stage}[/] by {key}  [dim]{escape(common)}[/]", made)


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

    def __init__(self, key: str, shown: Sequence[str], lines: _Lines, numbers: Sequence[Number]) -> None:
        self.shown, self.lines, self.numbers = shown, lines, numbers
        self.names = list(dict.fromkeys(name for _, cells in lines for name in cells))
        if key in _COLUMNS:
            self.names.sort(key=_natural)
        self.headers = [_COLUMNS.get(key, "{}").format(name) for name in self.names]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        unbounded = options.update(max_width=UNLIMITED)
        whole = self._table(lambda number: f"{value(number.of.value)} {number.interval}".strip(), wrap=False)
        plain = self._table(lambda number: value(number.of.value), wrap=True)
        if Width.get(console, unbounded, whole).maximum <= options.max_width:
            yield whole
        elif Width.get(console, unbounded, plain).minimum <= options.max_width:
            yield plain
            if any(number.interval for number in self.numbers):
                yield "[dim]no room for the 95 % intervals[/]"
        else:
            yield _lines(self.numbers)

    def _table(self, text: Callable[[Number], str], *, wrap: bool) -> Table:
        made = table(*self.shown, *self.headers, right=self.headers, wrap=self.headers if wrap else ())
        for head, cells in self.lines:
            texts = (text(cells[name]) if name in cells else "" for name in self.names)
            made.add_row(*map(escape, head), *texts)
        return made


def _natural(text: str) -> tuple[float, str]:
    """Sorts numbers by size, and before other texts."""
    return (float(text), "") if re.fullmatch(r"-?\d+(\.\d+)?", text) else (float("inf"), text)
