"""The roofline of a device with networks under it, as a picture.

After Williams, Waterman and Patterson, "Roofline: an insightful visual performance model for multicore
architectures" (CACM 52(4), 2009), with two departures: work is counted in MACs (a half of its FLOPs), and
both roofs are measured, by a large copy and by a large matrix product per precision, instead of looked up.

Everything is black or grey: precisions differ by their marks and dashes, and each point bears its name.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stmbench.record import Measurement, parts_of
from stmbench.style import Box, around, check, extent, label

_STYLES: Mapping[str, tuple[str, Any]] = {
    "fp32": ("o", "solid"),
    "tf32": ("s", "dashed"),
    "bf16": ("^", "dashdot"),
    "fp16": ("D", "dotted"),
}
_LINE: Mapping[str, Any] = {"color": "black", "linewidth": 1.3, "markersize": 5, "markerfacecolor": "0.6"}


@dataclass(frozen=True, slots=True)
class Point:
    """A network as it ran: MACs per byte it has to move, and MACs per second it reached."""

    network: str
    condition: str  # see `stmbench.record.condition`
    intensity: float
    rate: float

    @property
    def parts(self) -> dict[str, str]:
        return parts_of(self.condition)


@dataclass(frozen=True, slots=True)
class Ceilings:
    """What the device reaches at most: bytes/s in a copy, MACs/s in a matrix product by precision."""

    copy: float
    matmul: Mapping[str, float]


def read(network: str, measurements: Sequence[Measurement]) -> tuple[list[Point], Ceilings | None]:
    """The points of a run's profile, one for each way and batch it ran in, and the ceilings it was held to.

    No points and None where the run was not profiled so.
    """
    found = {(m.name, m.condition): m.value for m in measurements if m.stage == "profile" and m.value > 0}
    copies = [value for (name, _), value in found.items() if name == "ceiling.copy"]
    matmul = {
        parts_of(at)["precision"]: value for (name, at), value in found.items() if name == "ceiling.matmul"
    }
    if not copies or not matmul:
        return [], None
    points = []
    for (name, at), intensity in found.items():
        if name == "intensity" and ("matmul_share", at) in found:
            share = found["matmul_share", at] / 100
            points.append(Point(network, at, intensity, share * matmul[parts_of(at)["precision"]]))
    return points, Ceilings(max(copies), matmul)


def best(points: Iterable[Point]) -> list[Point]:
    """Of each network in each way it ran, the batch with the highest rate."""
    found: dict[tuple[str, ...], Point] = {}
    for point in points:
        parts = point.parts.items()
        way = (point.network, *(f"{key}={value}" for key, value in parts if key not in ("batch", "backend")))
        found[way] = max(point, found.get(way, point), key=lambda each: each.rate)
    return list(found.values())


def draw(points: Sequence[Point], ceilings: Ceilings, path: Path, title: str) -> None:
    """Draw at least one point under the ceilings of its device into a PNG, SVG or PDF file.

    What all points ran under is said below the title, the rest beside each.

    Raises:
        ValueError: another kind of file.
    """
    from matplotlib.figure import Figure  # slow to import, and only a picture needs it

    check(path)
    labels, common = _labels(points)
    figure = Figure(figsize=(8, 5.5), dpi=150, layout="constrained")
    axes = figure.add_subplot(xscale="log", yscale="log", title=common)
    axes.title.set_fontsize(8)
    figure.suptitle(title)
    axes.set(xlabel="arithmetic intensity [MACs/byte]", ylabel="achieved [MACs/s]")
    _frame(axes, points, ceilings)
    _legend(figure, ceilings)
    figure.draw_without_rendering()  # settles where the axes lie, which labels are placed by
    _points(axes, points, labels, _roofs(axes, ceilings))
    figure.savefig(path)


def _labels(points: Sequence[Point]) -> tuple[list[str], str]:
    """What to write beside each point, and what is true of all. A mark tells the precision already."""
    parts = [point.parts for point in points]
    common = [
        item for item in parts[0].items() if item[0] != "batch" and all(item in p.items() for p in parts)
    ]
    said = {"precision", *dict(common)}
    labels = []
    for point in points:
        own = {key: value for key, value in point.parts.items() if key not in said}
        batch = [f"batch {own.pop('batch')}"] if "batch" in own else []
        labels.append(", ".join([point.network, *batch, *own.values()]))
    return labels, ", ".join(f"{key} {value}" for key, value in common)


def _frame(axes: Any, points: Sequence[Point], ceilings: Ceilings) -> None:
    """Limits that show every point, every ridge and some room around them; ticks in plain numbers."""
    from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

    highest, lowest = max(ceilings.matmul.values()), min(ceilings.matmul.values())
    x = [point.intensity for point in points] + [highest / ceilings.copy, lowest / ceilings.copy]
    y = [point.rate for point in points] + [highest, lowest]
    axes.set_xlim(min(x) / 2.5, max(x) * 4)
    axes.set_ylim(min(y) / 2.5, max(y) * 2)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=30))
        axis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_major_formatter(EngFormatter(sep=""))
    axes.grid(which="major", color="0.9", linewidth=0.6)
    axes.set_axisbelow(True)


def _legend(figure: Any, ceilings: Ceilings) -> None:
    """What marks and dashes mean, below the picture, where it hides nothing."""
    from matplotlib.lines import Line2D

    handles = []
    for precision, matmul in ceilings.matmul.items():
        marker, linestyle = _STYLES[precision]
        label = f"{precision}, {_amount(matmul)}MACs/s in a matrix product"
        handles.append(Line2D([], [], marker=marker, linestyle=linestyle, label=label, **_LINE))
    figure.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False, fontsize=8)


def _roofs(axes: Any, ceilings: Ceilings) -> list[Box]:
    """Draw the roofs, name the slope, and return what labels of points must not cover."""
    left, right = axes.get_xlim()
    ridges = {precision: matmul / ceilings.copy for precision, matmul in ceilings.matmul.items()}
    slope = np.geomspace(left, max(ridges.values()), 200)
    lines = [(slope, ceilings.copy * slope, "solid")]
    for precision, matmul in ceilings.matmul.items():
        flat = np.geomspace(ridges[precision], right, 200)
        lines.append((flat, np.full_like(flat, matmul), _STYLES[precision][1]))
    taken = []
    for x, y, linestyle in lines:
        axes.plot(x, y, linestyle=linestyle, **_LINE)
        taken += [around(u, v, 3, 3) for u, v in axes.transData.transform(np.column_stack([x, y]))]
    return [*taken, _name_slope(axes, ceilings.copy, end=min(ridges.values()))]


def _name_slope(axes: Any, copy: float, end: float) -> Box:
    """Name the sloping roof along its visible part, which ends at the intensity `end`."""
    start = max(axes.get_xlim()[0], axes.get_ylim()[0] / copy)
    (x0, y0), (x1, y1) = axes.transData.transform([(start, copy * start), (end, copy * end)])
    middle = (start * end) ** 0.5
    text = axes.annotate(
        f"copy: {_amount(copy)}B/s",
        (middle, copy * middle),
        (-6, 6),
        textcoords="offset points",
        rotation=float(np.degrees(np.arctan2(y1 - y0, x1 - x0))),
        ha="center",
        va="center",
        fontsize=8,
    )
    return extent(text)


def _points(axes: Any, points: Sequence[Point], labels: Sequence[str], taken: Sequence[Box]) -> None:
    """Draw the points, and beside each its label, where it covers nothing."""
    for point in points:
        marker = _STYLES[point.parts["precision"]][0]
        axes.plot(point.intensity, point.rate, marker, **_LINE)
    label(axes, [(point.intensity, point.rate) for point in points], labels, taken, size=8)


def _amount(value: float) -> str:
    """Three digits and a prefix: ``41.3 G``."""
    prefix, unit = next((p, u) for p, u in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("", 1)) if value >= u)
    return f"{value / unit:.3g} {prefix}"
