"""Training curves: loss, validation loss, top-1 and learning rate by epoch.

Validation is that of the EMA weights wherever the recipe keeps them. With several seeds each is a thin line,
and their mean a thick one.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stmbench import style
from stmbench.pictures.networks import Group, groups, origin
from stmbench.record import Measurement, condition, parts_of
from stmbench.store import RunRecord, Store

_PANELS = {
    "loss": "training loss",
    "val_loss": "validation loss",
    "top1": "validation top-1 [%]",
    "lr": "learning rate",
}
_MARKS = 8  # along a line


@dataclass(frozen=True, slots=True)
class History:
    """How one run learnt."""

    curves: Mapping[str, Mapping[int, float]]  # name -> epoch -> value
    images: float | None  # that validate; None where the run was not evaluated


def read(store: Store, runs: Sequence[RunRecord]) -> list[Group[History]]:
    """The histories of runs, newest first, by what may stand in one picture."""
    counted = store.headline(("eval",), ("images",))
    found = []
    for run in runs:
        points = [m for m in store.measurements(run.id) if m.stage == "train" and m.step]
        if points:
            ema = any(m.condition == condition(weights="ema") for m in points)
            at = condition(weights="ema" if ema else "plain")
            images = next((m.value for m in counted.get(run.id, ()) if m.condition == at), None)
            found.append((run, at, History(_curves(points, at), images)))
    return groups(found)


def _curves(points: Sequence[Measurement], at: str) -> dict[str, dict[int, float]]:
    found: defaultdict[str, dict[int, float]] = defaultdict(dict)
    for m in points:
        if m.name in _PANELS and m.condition in ("", at):
            found[m.name][m.step] = m.value
    return found


def caption(group: Group[History]) -> str:
    several = any(len(network.seeds) > 1 for network in group.networks)
    images = {h.images for network in group.networks for h in network.seeds.values() if h.images is not None}
    sentences = [
        f"Training curves; validation with {parts_of(group.shared.condition)['weights']} weights.",
        "Thin: one seed; thick: the mean of the seeds." if several else "",
        origin(group, images),
    ]
    return " ".join(filter(None, sentences))


def draw(group: Group[History], path: Path) -> None:
    """Draw the four panels into a PNG, SVG or PDF file; see `caption` for what is said below."""
    names, looks = [network.name for network in group.networks], style.looks(len(group.networks))
    with style.page(path, 2.7 + style.legend_height(names), caption(group)) as figure:
        for axes, (name, title) in zip(figure.subplots(2, 2, sharex=True).flat, _PANELS.items(), strict=True):
            axes.set_title(title)
            seeds = [[h.curves.get(name, {}) for h in network.seeds.values()] for network in group.networks]
            if name == "lr" and all(curve == seeds[0][0] for each in seeds for curve in each):
                axes.plot(seeds[0][0].keys(), seeds[0][0].values(), color="0.4")
                axes.set_title(f"{title} (all the same)")
                seeds = []
            for curves, look in zip(seeds, looks, strict=False):
                _plot(axes, curves, look)
            if axes.get_subplotspec().is_last_row():
                axes.set_xlabel("epoch")
                axes.xaxis.get_major_locator().set_params(integer=True)
        style.legend(figure, names, looks)


def _plot(axes: Any, curves: Sequence[Mapping[int, float]], look: style.Look) -> None:
    """The mean of the seeds, at the epochs that all of them have, and each of several seeds."""
    epochs = sorted(set.intersection(*map(set, curves)))
    values = np.array([[curve[epoch] for epoch in epochs] for curve in curves])  # (seeds, epochs)
    if len(curves) > 1:
        axes.plot(epochs, values.T, color=look.color, linewidth=0.4)
    axes.plot(epochs, values.mean(0), markevery=max(1, len(epochs) // _MARKS), **style.line(look))
