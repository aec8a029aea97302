"""What a network still recognises in changed images, and how its features move with them: a panel per change.

`invariance/1` and `invariance/published` are curves over the strengths of transformations, `equivariance/1`
over shifts, by level. Of several seeds the mean is drawn; the band reaches from the lowest to the highest end
of their 95 % intervals, so that it shows what other images and what other seeds could have given.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stmbench import catalog, style
from stmbench.pictures.networks import Group, Network, groups, origin
from stmbench.record import Measurement, condition, parts_of
from stmbench.store import RunRecord, Store

PROTOCOLS = ("invariance/1", "invariance/published")
EQUIVARIANCE = "equivariance/1"
METRICS = {
    "consistency": "consistency [%]",
    "top1": "top-1 [%]",
    "top5": "top-5 [%]",
    "cross_entropy": "cross-entropy",
    "equivariance": "similarity",
}
_PANELS = {
    "translation": "translation [px]",
    "scale": "crop / image side",
    "rotation_before": "rotation, then crop [°]",
    "rotation_after": "crop, then rotation [°]",
    "blur": "blur, $\\sigma$ [px]",
    "noise": "noise, $\\sigma$",
    "jpeg": "JPEG quality",
    "contrast": "contrast",
    "flip": "left-right flip",
}
_FALLING = ("jpeg", "contrast")  # the stronger the change, the smaller the number
_UNTOUCHED = 100.0  # in the place of a JPEG quality: what no file format has touched
_LEGEND = 8  # networks that a panel has room to name
_MARKS = 6  # along a line
_HEIGHT = 1.2  # inches of a panel

Curve = Mapping[float, Sequence[float]]  # strength -> value, lower and upper end


@dataclass(frozen=True, slots=True)
class Sweep:
    """How one run fared: a curve per panel, which is a transformation or a level."""

    metric: str
    curves: Mapping[str, Curve]
    images: float
    crop_pct: float  # the scale at which nothing is changed


def read(
    store: Store, runs: Sequence[RunRecord], *, protocol: str = PROTOCOLS[0], metric: str = "consistency"
) -> list[Group[Sweep]]:
    """The sweeps of runs, newest first, by what may stand in one picture.

    Raises:
        ValueError: an unknown protocol or metric.
    """
    catalog.known("protocol", protocol, (*PROTOCOLS, EQUIVARIANCE))
    catalog.known("metric", metric, METRICS)
    names = (metric, f"{metric}.low", f"{metric}.high")
    numbers = store.headline(("invariance",), (*names, "images"))
    found = []
    for run in runs:
        own = [
            (m, at) for m in numbers.get(run.id, ()) if (at := parts_of(m.condition))["protocol"] == protocol
        ]
        curves = _curves([each for each in own if each[0].name in names])
        if curves:
            shared = {key: own[0][1][key] for key in ("precision", "protocol", "size", "weights")}
            images = next(m.value for m, _ in own if m.name == "images")
            crop_pct = (run.recipe_values["data"] | run.preprocessing)["crop_pct"]
            found.append((run, condition(**shared), Sweep(metric, curves, images, crop_pct)))
    return groups(found)


def _curves(numbers: Sequence[tuple[Measurement, Mapping[str, str]]]) -> dict[str, dict[float, list[float]]]:
    """By panel and strength: value, low and high, which are the value where there is no interval."""
    found: defaultdict[str, dict[float, list[float]]] = defaultdict(dict)
    for m, at in sorted(numbers, key=lambda each: "." in each[0].name):  # values before their intervals
        if np.isnan(m.value):
            continue
        panel = at.get("transform") or f"level {at['level']}"
        spot = float(at.get("strength") or at["shift"])
        panel, spot = ("jpeg", _UNTOUCHED) if panel == "none" else (panel, spot)
        if m.name.endswith((".low", ".high")):
            found[panel][spot][1 + m.name.endswith(".high")] = m.value
        else:
            found[panel][spot] = [m.value] * 3
    return {panel: dict(sorted(curve.items())) for panel, curve in found.items() if len(curve) > 1}


def mean(curves: Sequence[Curve]) -> np.ndarray:
    """Of several seeds, where all have a value: strength, mean, lowest and highest end, (strengths, 4)."""
    spots = sorted(set.intersection(*map(set, curves)))
    values = np.array([[curve[spot] for spot in spots] for curve in curves])  # (seeds, strengths, 3)
    ends = values[..., 1].min(0), values[..., 2].max(0)
    return np.column_stack([spots, values[..., 0].mean(0), *ends])


def caption(group: Group[Sweep]) -> str:
    at, sweeps = parts_of(group.shared.condition), list(_sweeps(group))
    what = {
        "consistency": "share of images whose prediction is the one to the plain crop",
        "cross_entropy": "soft cross-entropy to the prediction of the plain crop",
        "equivariance": "cosine of the features of a shifted image and the shifted features",
    }.get(sweeps[0].metric, METRICS[sweeps[0].metric].removesuffix(" [%]"))
    bands = any(low < high for s in sweeps for c in s.curves.values() for _, low, high in c.values())
    several = any(len(network.seeds) > 1 for network in group.networks)
    sentences = [
        f"{at['protocol']}: {what}; {at['weights']} weights, images of {at['size']} px, {at['precision']}.",
        "Lines are means over seeds." if several else "",
        f"Bands: 95 % intervals over images{', the outer ends of all seeds' * several}." if bands else "",
        "Dotted: the scale of the plain crop." if any("scale" in s.curves for s in sweeps) else "",
        origin(group, {s.images for s in sweeps}),
    ]
    return " ".join(filter(None, sentences))


def _sweeps(group: Group[Sweep]) -> Iterator[Sweep]:
    for network in group.networks:
        yield from network.seeds.values()


def draw(group: Group[Sweep], path: Path) -> None:
    """Draw a panel per transformation or level into a PNG, SVG or PDF file; see `caption` for the rest."""
    there = {panel for sweep in _sweeps(group) for panel in sweep.curves}
    levels = sorted(there - _PANELS.keys(), key=lambda level: (len(level), level))
    panels = [panel for panel in (*_PANELS, *levels) if panel in there]
    names, looks = [network.name for network in group.networks], style.looks(len(group.networks))
    inside = len(panels) % 2 and len(names) <= _LEGEND
    rows = -(-len(panels) // 2)
    height = _HEIGHT * rows + (0 if inside else style.legend_height(names))
    with style.page(path, height, caption(group)) as figure:
        grid = figure.subplots(rows, 2, sharey=True, squeeze=False)
        for line in grid:
            line[0].set_ylabel(METRICS[next(_sweeps(group)).metric])
        for axes, panel in zip(grid.flat, panels, strict=False):
            _panel(axes, panel, group.networks, looks)
        if len(panels) % 2:
            grid.flat[-1].set_axis_off()
        if inside:
            grid.flat[-1].legend(handles=style.handles(names, looks), loc="center")
        else:
            style.legend(figure, names, looks)


def _panel(axes: Any, panel: str, networks: Sequence[Network[Sweep]], looks: Sequence[style.Look]) -> None:
    shown = [(n, look) for n, look in zip(networks, looks, strict=True) if _has(n, panel)]
    for place, (network, look) in enumerate(shown):
        curve = mean([sweep.curves[panel] for sweep in network.seeds.values() if panel in sweep.curves])
        x, y, low, high = curve.T
        if panel == "flip":
            bars = [y[-1:] - low[-1:], high[-1:] - y[-1:]]
            axes.errorbar([place], y[-1:], bars, fmt=look.marker, color=look.color, elinewidth=0.7)
        else:
            axes.fill_between(x, low, high, color=look.color, alpha=0.2, linewidth=0)
            axes.plot(x, y, markevery=max(1, len(x) // _MARKS), **style.line(look))
    axes.set_xlabel(_PANELS.get(panel, f"{panel}: shift [cells]"))
    if panel == "flip":
        axes.set(xticks=[], xlim=(-1, len(shown)))
    if panel == "scale":
        for crop in {sweep.crop_pct for network, _ in shown for sweep in network.seeds.values()}:
            axes.axvline(crop, color="0.4", linestyle=":", linewidth=0.8, zorder=1)
    if panel == "jpeg":
        axes.set_xticks([_UNTOUCHED, 50, 10], ["none", "50", "10"])
    if panel in _FALLING:
        axes.invert_xaxis()


def _has(network: Network[Sweep], panel: str) -> bool:
    return any(panel in sweep.curves for sweep in network.seeds.values())
