"""Top-1 against what it costs: MACs, parameters, latency and memory, with the Pareto front.

A picture shows one group of the leaderboard, which is what may be compared, and its numbers are those of its
rows. A network is on the front when no other is as good or better at the same cost or less, and ahead in one.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from stmbench import catalog, style
from stmbench.pictures.networks import facts, family, named, place
from stmbench.reading.front import front
from stmbench.reading.rows import Group, Row
from stmbench.record import Measurement, parts_of
from stmbench.store import Store

COSTS = {"macs": "MACs", "parameters": "parameters", "latency": "latency", "memory": "memory"}
_UNITS = {"latency": "s", "memory": "B"}
_PREFIXES = {1e9: "G", 1e6: "M", 1e3: "k", 1: "", 1e-3: "m"}
_WIDE = 5  # times the least cost: from here on the scale is logarithmic
_CROWD = 8  # more marks than this have no room for their names


@dataclass(frozen=True, slots=True)
class Point:
    """One network with its row of the leaderboard, and what it costs, as far as that was measured."""

    name: str
    row: Row
    costs: Mapping[str, float]  # of `COSTS`; seconds and bytes
    seeds: Sequence[int]


@dataclass(frozen=True, slots=True)
class Board:
    """A group of the leaderboard as points, in the catalogue's order."""

    group: Group
    scale: str  # of all; "" where they differ and their names say it
    points: Sequence[Point]
    costs: Sequence[str]  # those drawn, of `COSTS`

    @property
    def families(self) -> list[str]:
        return list(dict.fromkeys(family(point.row) for point in self.points))

    @property
    def scales(self) -> list[str]:
        """From the smallest."""
        return list(dict.fromkeys(p.row.scale for p in sorted(self.points, key=lambda p: place(p.row)[1])))

    @property
    def labelled(self) -> bool:
        """Each mark by its name; else a legend tells the families, and a mark's size the scale."""
        return len(self.points) == len(self.families) <= _CROWD


def read(store: Store, groups: Sequence[Group], costs: str = ",".join(COSTS)) -> list[Board]:
    """The groups that have something to draw: networks with top-1 and one of `costs`, names with commas.

    Raises:
        ValueError: an unknown cost.
    """
    wanted = [catalog.known("cost", name.strip(), COSTS) for name in costs.split(",")]
    resident = store.headline(("profile",), ("peak_memory", "base_memory"))
    runs = store.named([run for group in groups for row in group.rows for run in row.runs])
    boards = []
    for group in groups:
        rows = sorted(
            (row for row in group.rows if row.top1 is not None), key=lambda row: (*place(row), row.mixer)
        )
        scale, names = named(rows, [row.runs[0] for row in rows])
        points = [
            Point(text, row, _costs(row, group, resident), sorted({runs[run].seed for run in row.runs}))
            for text, row in zip(names, rows, strict=True)
        ]
        drawn = [cost for cost in wanted if any(cost in point.costs for point in points)]
        if drawn:
            boards.append(Board(group, scale, points, drawn))
    return boards


def _costs(row: Row, group: Group, resident: Mapping[str, Sequence[Measurement]]) -> dict[str, float]:
    """Every cost that is known; memory is what the network's passes added, where its latency was taken."""
    memory = []
    for run in row.runs:
        found = {
            m.name: m.value for m in resident.get(run, ()) if _at(m) == parts_of(group.latency_condition)
        }
        if len(found) == 2:
            memory.append(found["peak_memory"] - found["base_memory"])
    costs = {
        "macs": row.macs,
        "parameters": row.parameters,
        "latency": row.latency and row.latency / 1e3,
        "memory": fmean(memory) if memory else None,
    }
    return {name: value for name, value in costs.items() if value is not None and value > 0}


def _at(m: Measurement) -> dict[str, str]:
    return {key: value for key, value in parts_of(m.condition).items() if key != "backend"}


def caption(board: Board) -> str:
    group = board.group
    timed = bool(_UNITS.keys() & board.costs)
    images = [point.row.images for point in board.points if point.row.images]
    disturbed = [point.name for point in board.points if point.row.disturbed]
    timing = {key: value for key, value in parts_of(group.latency_condition).items() if key != "device"}
    where = ", ".join(f"{key} {value}" for key, value in timing.items())
    sentences = [
        "Top-1 (mean over seeds; bars: 95 % interval over test images) against cost.",
        "Grey line and filled marks: the Pareto front.",
        "" if board.labelled or board.scale else f"Marks grow with scale: {', '.join(board.scales)}.",
        facts(group, board.scale, images, {point.name: point.seeds for point in board.points}),
        f"Times and memory: {group.hardware} [{group.device}]; {where}." if timed else "",
        f"Timed on a disturbed machine: {', '.join(disturbed)}." if timed and disturbed else "",
    ]
    return " ".join(filter(None, sentences))


def draw(board: Board, path: Path) -> None:
    """Draw a panel per cost into a PNG, SVG or PDF file; see `caption` for what is said below."""
    several = len(board.costs) > 1
    rows, columns = (-(-len(board.costs) // 2), 2) if several else (1, 1)
    height = 1.75 * rows if several else 2.4
    height += 0 if board.labelled else style.legend_height(board.families)
    with style.page(path, height, caption(board)) as figure:
        panels = list(figure.subplots(rows, columns, sharey=True, squeeze=False).flat)
        for axes in panels[len(board.costs) :]:
            axes.set_axis_off()
        drawn = [_Panel(axes, board, cost) for axes, cost in zip(panels, board.costs, strict=False)]
        for axes in panels[::columns]:
            axes.set_ylabel("top-1 [%]")
        if not board.labelled:
            style.legend(figure, board.families, style.looks(len(board.families)))
        figure.get_figure(root=True).draw_without_rendering()  # settles where the axes lie
        for panel in drawn if board.labelled else ():
            panel.label()


class _Panel:
    """Top-1 against one cost."""

    def __init__(self, axes: Any, board: Board, cost: str) -> None:
        self.axes = axes
        shown = [point for point in board.points if cost in point.costs]
        self.names = [point.name for point in shown]
        self.spots = [(point.costs[cost], point.row.top1 or 0.0) for point in shown]
        self.lines: list[tuple[Any, Any]] = []  # drawn ones: (x, x), (y, y), upright or level
        self._scale(cost)
        self._front()
        best = front(self.spots)
        for name, look in zip(board.families, style.looks(len(board.families)), strict=True):
            members = [i for i, point in enumerate(shown) if family(point.row) == name]
            if len(members) > 1:
                line = np.array([self.spots[i] for i in members])  # (scales, 2)
                axes.plot(*line.T, color=look.color, linestyle=look.dashes, linewidth=0.6)
            for i in members:
                size = 4 if board.labelled else 3 + board.scales.index(shown[i].row.scale)
                self._mark(self.spots[i], shown[i].row, look, size, filled=i in best)

    def _mark(self, spot: tuple[float, float], row: Row, look: style.Look, size: float, filled: bool) -> None:
        x, y = spot
        if row.top1_low is not None:
            self._line((x, x), (row.top1_low, row.top1_high), color=look.color, linewidth=0.7)
        fill = look.color if filled else "white"
        self.axes.plot(x, y, look.marker, color=look.color, markerfacecolor=fill, markersize=size)

    def _scale(self, cost: str) -> None:
        """Room for labels, and ticks in plain numbers."""
        from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

        axis, costs = self.axes.xaxis, [x for x, _ in self.spots]
        least, most = min(costs), max(costs)
        if most > _WIDE * least:
            self.axes.set_xscale("log")
            self.axes.set_xlim(least / 2, most * 2)
            ticks = (1,) if most > 100 * least else (1, 3) if most > 12 * least else (1, 2, 5)
            axis.set_major_locator(LogLocator(subs=ticks, numticks=9))
            axis.set_minor_formatter(NullFormatter())
        else:
            room = 0.3 * (most - least) or 0.1 * most
            self.axes.set_xlim(least - room, most + room)
            axis.set_major_locator(MaxNLocator(4))
        size, prefix = next(
            (each for each in _PREFIXES.items() if (least * most) ** 0.5 >= each[0]), (1e-3, "m")
        )
        axis.set_major_formatter(lambda value, _: f"{value / size:g}")
        self.axes.set_xlabel(f"{COSTS[cost]} [{prefix}{_UNITS.get(cost, '')}]")
        self.axes.margins(y=0.15)

    def _front(self) -> None:
        best = [self.spots[i] for i in front(self.spots)]
        ends = [*(x for x, _ in best[1:]), self.axes.get_xlim()[1]]
        for (x, y), end in zip(best, ends, strict=True):
            self._line((x, end), (y, y))
        for (_, low), (x, high) in itertools.pairwise(best):
            self._line((x, x), (low, high))

    def _line(self, x: tuple[Any, Any], y: tuple[Any, Any], **look: Any) -> None:
        self.axes.plot(x, y, **({"color": "0.55", "linewidth": 0.8, "zorder": 1.5} | look))
        self.lines.append((x, y))

    def label(self) -> None:
        """Name the marks, once the layout is settled."""
        boxes = []
        for x, y in self.lines:
            (left, bottom), (right, top) = self.axes.transData.transform(list(zip(x, y, strict=True)))
            boxes.append(style.Box(left - 2, bottom - 2, right + 2, top + 2))
        style.label(self.axes, self.spots, self.names, [], style.FONT, shared=boxes)
