"""The charts that the browser draws: what stands in them, and the figures that they are drawn into."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from stmbench.pictures import curves, invariance, pareto
from stmbench.pictures.invariance import Sweep
from stmbench.pictures.networks import Group, place
from stmbench.reading.rows import Group as Board
from stmbench.reading.rows import Row
from stmbench.report.looks import Looks, members, origin
from stmbench.report.markup import Pool, article, rounded, section
from stmbench.store import RunRecord, Store

CURVES = {"loss": "training loss", "val_loss": "validation loss", "top1": "validation top-1 [%]"}
_UNITS = {"latency": "s", "memory": "B"}
_METRICS = ("consistency", "top1")
# Of each transformation: its name, what stands across, whether the stronger has the smaller number
_PANELS = {
    "translation": ("translation", "pixels", False),
    "scale": ("scale", "crop / image side", False),
    "rotation_before": ("rotation, then crop", "degrees", False),
    "rotation_after": ("crop, then rotation", "degrees", False),
    "blur": ("blur", "sigma in pixels", False),
    "noise": ("noise", "sigma", False),
    "jpeg": ("JPEG", "quality", True),
    "contrast": ("contrast", "factor", True),
    "flip": ("left-right flip", "", False),
}


def _known(name: str, network: RunRecord | Row, looks: Looks) -> dict[str, Any]:
    return {
        "name": name,
        "look": looks.of(network),
        "mixer": network.mixer,
        "scale": network.scale,
        "size": place(network)[1],  # of its scale among the mixer's
    }


def _figure(kind: str, number: int, caption: str) -> str:
    return (
        f'<figure class="chart" data-kind="{kind}" data-number="{number}"><div class="drawing"></div>'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


# Top-1 against cost


def costs(store: Store, groups: Sequence[Board], looks: Looks) -> tuple[str, list[Any]]:
    """The section, and what is drawn in it."""
    boards = pareto.read(store, groups)
    articles, drawn = "", []
    for number, board in enumerate(boards):
        group = board.group
        title = f"{origin(group)}, {group.hardware}, {group.precision}"
        articles += article(title, _figure("costs", number, pareto.caption(board)), recipe=group.recipe)
        drawn.append(
            {
                "costs": [[cost, pareto.COSTS[cost], _UNITS.get(cost, "")] for cost in board.costs],
                "points": [_point(point, looks) for point in board.points],
            }
        )
    lead = "Is it worth what it costs? Filled marks are on the Pareto front: none is as good for less."
    return section("costs", "Top-1 against cost", lead, articles), drawn


def _point(point: pareto.Point, looks: Looks) -> dict[str, Any]:
    row = point.row
    return _known(point.name, row, looks) | {
        "top1": rounded(row.top1),
        "low": rounded(row.top1_low),
        "high": rounded(row.top1_high),
        "costs": {cost: rounded(value) for cost, value in point.costs.items()},
        "seeds": len(point.seeds),
        "run": row.runs[-1],
    }


# Training curves


def training(store: Store, runs: Sequence[RunRecord], looks: Looks, histories: Pool) -> tuple[str, list[Any]]:
    """The section, and what is drawn in it: each network's seeds, as places in the pool of histories."""
    articles, drawn = "", []
    for number, group in enumerate(curves.read(store, runs)):
        found = members(group, runs)
        figure = _figure("training", number, curves.caption(group))
        articles += article(origin(group.shared), figure, recipe=group.shared.recipe)
        drawn.append(
            [
                _known(network.name, found[network.name], looks)
                | {"seeds": [[seed, histories.place(history(h.curves))] for seed, h in network.seeds.items()]}
                for network in group.networks
            ]
        )
    lead = "How the networks learnt, by epoch."
    return section("training", "Training", lead, articles), drawn


def history(found: Mapping[str, Mapping[int, float]]) -> dict[str, list[float | None]]:
    """Curves as lists, whose first value is that of epoch 1."""
    return {
        name: [rounded(found[name].get(epoch), 4) for epoch in range(1, max(found[name]) + 1)]
        for name in CURVES
        if found.get(name)
    }


# Invariance and equivariance


def sweeps(store: Store, runs: Sequence[RunRecord], looks: Looks) -> tuple[str, list[Any]]:
    """The section, and what is drawn in it: a figure per protocol, whose metric the reader chooses."""
    wanted = [(protocol, metric) for protocol in invariance.PROTOCOLS for metric in _METRICS]
    wanted.append((invariance.EQUIVARIANCE, "equivariance"))
    figures: dict[Any, list[dict[str, Any]]] = {}
    for protocol, metric in wanted:
        for group in invariance.read(store, runs, protocol=protocol, metric=metric):
            found = members(group, runs)
            figures.setdefault((protocol, group.shared), []).append(
                {
                    "metric": metric,
                    "label": invariance.METRICS[metric],
                    "caption": invariance.caption(group),
                    "networks": [_known(n.name, found[n.name], looks) for n in group.networks],
                    "panels": _panels(group),
                }
            )
    articles = "".join(
        article(
            f"{protocol}: {origin(shared)}",
            _figure("sweeps", number, metrics[0]["caption"]),
            recipe=shared.recipe,
        )
        for number, ((protocol, shared), metrics) in enumerate(figures.items())
    )
    lead = "What is still recognised, and how the features move, as images are changed more and more."
    return section("invariance", "Invariance", lead, articles), list(figures.values())


def _panels(group: Group[Sweep]) -> list[dict[str, Any]]:
    """A panel per transformation or level, each with a curve per network: strength, mean, low and high."""
    there = {panel for n in group.networks for sweep in n.seeds.values() for panel in sweep.curves}
    levels = sorted(there - _PANELS.keys(), key=lambda level: (len(level), level))
    panels = []
    for name in (*(panel for panel in _PANELS if panel in there), *levels):
        title, across, falling = _PANELS.get(name, (name, "shift in cells", False))
        found = []
        for number, network in enumerate(group.networks):
            own = [sweep.curves[name] for sweep in network.seeds.values() if name in sweep.curves]
            if own:
                columns = invariance.mean(own).T.tolist()  # strength, mean, low, high
                found.append([number, *([rounded(value, 4) for value in column] for column in columns)])
        panels.append({"key": name, "title": title, "across": across, "falling": falling, "curves": found})
        if name == "scale":  # where nothing is changed
            crops = {sweep.crop_pct for network in group.networks for sweep in network.seeds.values()}
            panels[-1]["rules"] = sorted(crops)
    return panels
