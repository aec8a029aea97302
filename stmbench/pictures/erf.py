"""Effective receptive fields: the map of every level, side by side, with the squares that hold shares of it.

All maps of a picture have one colour scale, of the share of the gradient that falls on a pixel: equal colours
are equal shares, in every network and level. With a scale of its own a flat field would be as bright as a
sharp one. The logarithm is the picture's alone; the squares are those that were measured, on the map itself.

Of several seeds the maps and the sides of the squares are averaged.
"""

import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stmbench import style
from stmbench.pictures.networks import Group, groups, origin
from stmbench.record import Measurement, parts_of
from stmbench.store import ArtifactRecord, RunRecord, Store

RANDOM = "random"  # the kind of weights of the control
SHARES = (20, 30, 50, 99)  # per cent
DARKEST = 0.01  # of an even spread: all the pixels that are darker hold less than 1 % of the gradient
_PANEL = 0.72  # inches
_LEVELS = 4  # that a column of a paper has room for


@dataclass(frozen=True, slots=True)
class Field:
    """What one network saw, or the mean of several such."""

    maps: np.ndarray  # (levels, H, W), each of sum 1
    centres: np.ndarray  # (levels, 2): row and column, in pixels
    sides: Mapping[tuple[int, int], float]  # pixels, by level (from 1) and share in per cent
    images: float  # that it is the mean of


Fields = Mapping[str, Field]  # by kind of weights


def read(
    store: Store, runs: Sequence[RunRecord], *, size: int = 0, weights: str = "", control: bool = False
) -> list[Group[Fields]]:
    """The fields of runs, newest first, by what may stand in one picture.

    `size` is that of the images, 0 for the recipe's; `weights` the kind, "" for that the network is known by.
    With `control` the same networks with random weights come too.

    Raises:
        RuntimeError: a file of maps is gone or damaged.
    """
    numbers = store.headline(("erf",), ("side", "images"))
    found = []
    for run in (run for run in runs if run.id in numbers):
        wanted = str(size or run.recipe_values["data"]["image_size"])
        files = {
            at["weights"]: file
            for file in store.artifacts(run.id)
            if file.kind == "erf" and (at := parts_of(file.condition))["size"] == wanted
        }
        kind = weights or next((kind for kind in files if kind != RANDOM), "")
        if kind in files:
            kinds = dict.fromkeys((kind, RANDOM) if control and RANDOM in files else (kind,))
            fields = {each: _field(run, files[each], numbers[run.id]) for each in kinds}
            found.append((run, files[kind].condition, fields))
    return groups(found)


def _field(run: RunRecord, artifact: ArtifactRecord, numbers: Sequence[Measurement]) -> Field:
    path = run.folder / artifact.path
    try:
        with path.open("rb") as file, np.load(file) as arrays:
            maps, centres = arrays["maps"], arrays["centres"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise RuntimeError(
            f"The receptive fields {path} cannot be read: {error}. `stmbench run --stage erf` makes new ones."
        ) from None
    sides, images = {}, 0.0
    for m in numbers:
        at = parts_of(m.condition)
        if parts_of(artifact.condition).items() <= at.items():
            if m.name == "images":
                images = m.value
            else:
                sides[int(at["level"]), int(at["share"])] = m.value
    return Field(maps, centres, sides, images)


def mean(fields: Sequence[Field]) -> Field:
    """The mean of the same network's fields under several seeds."""
    first = fields[0]
    sides = {key: float(np.mean([field.sides[key] for field in fields])) for key in first.sides}
    return Field(np.mean([field.maps for field in fields], axis=0), first.centres, sides, first.images)


def caption(group: Group[Fields]) -> str:
    at = parts_of(group.shared.condition)
    fields = [
        field for network in group.networks for each in network.seeds.values() for field in each.values()
    ]
    kinds = list(dict.fromkeys(kind for n in group.networks for each in n.seeds.values() for kind in each))
    several = any(len(network.seeds) > 1 for network in group.networks)
    images = {field.images for field in fields}
    sentences = [
        f"Effective receptive fields, {at['protocol']}: {' and '.join(kinds)} weights, "
        f"images of {at['size']} px.",
        "Colour: share of the gradient on a pixel, on one logarithmic scale for all maps. It ends where all "
        "darker pixels of a map hold less than 1 % together.",
        "Squares around the centre pixel (ticks) hold 20, 30, 50 and 99 % of it; their sides in pixels stand "
        "below, in this order.",
        "Maps and sides are means over seeds." if several else "",
        origin(group, images),
    ]
    return " ".join(filter(None, sentences))


def rows(group: Group[Fields]) -> list[tuple[str, Field]]:
    """What is drawn, by name: every network, each followed by its control."""
    found = []
    for network in group.networks:
        kinds = next(iter(network.seeds.values()))
        for kind in kinds:
            fields = [each[kind] for each in network.seeds.values() if kind in each]
            random = kind == RANDOM and len(kinds) > 1
            found.append((network.name + ", random" * random, mean(fields)))
    return found


def draw(group: Group[Fields], path: Path) -> None:
    """Draw a row per network, a column per level, into a PNG, SVG or PDF file; see `caption` for the rest."""
    from matplotlib.colors import LogNorm

    shown = rows(group)
    levels = max(len(field.maps) for _, field in shown)
    most = max(float(np.nanmax(field.maps)) for _, field in shown)
    norm = LogNorm(DARKEST / shown[0][1].maps[0].size, most)
    height, width = (_PANEL + 0.32) * len(shown) + 0.6, style.COLUMN * max(1, levels / _LEVELS)
    with style.page(path, height, caption(group), width) as figure:
        figure.get_figure(root=True).get_layout_engine().set(w_pad=0.01, wspace=0, hspace=0)
        grid = figure.subplots(len(shown), levels, squeeze=False)
        images = []
        for line, (name, field) in zip(grid, shown, strict=True):
            line[0].set_ylabel("\n".join(style.wrap(name, _PANEL)))
            for level, axes in enumerate(line, 1):
                if level <= len(field.maps):
                    images.append(_panel(axes, field, level, norm))
                else:
                    axes.set_axis_off()
        for level, axes in enumerate(grid[0], 1):
            axes.set_title(f"level {level}")
        bar = figure.colorbar(images[0], ax=grid, location="bottom", extend="min", aspect=40, pad=0.02)
        bar.ax.xaxis.set_major_formatter(
            lambda value, _: f"{1e6 * value:,g}"
        )  # exponents are too small in print
        bar.set_label("share of the gradient on a pixel [millionths]")


def _panel(axes: Any, field: Field, level: int, norm: Any) -> Any:
    """One map with its squares, whose sides stand below; return the image."""
    from matplotlib import colormaps
    from matplotlib.patches import Rectangle
    from matplotlib.patheffects import Normal, Stroke

    values, (row, column) = field.maps[level - 1], field.centres[level - 1]
    height, width = values.shape
    dark = colormaps["inferno"](0.0)
    image = axes.imshow(values, norm=norm, cmap=colormaps["inferno"].with_extremes(bad=dark, under=dark))
    axes.set(xticks=[column], yticks=[row])
    axes.tick_params(labelbottom=False, labelleft=False, length=2)
    axes.grid(False)
    texts = []
    for share in SHARES:
        side = field.sides.get((level, share), np.nan)
        texts.append(f"{side:.3g}")
        left, top = max(column - side / 2, -0.5), max(row - side / 2, -0.5)
        right, bottom = min(column + side / 2, width - 0.5), min(row + side / 2, height - 0.5)
        square = Rectangle((left, top), right - left, bottom - top, fill=False, color="white", linewidth=0.5)
        square.set_path_effects([Stroke(linewidth=1, foreground="black"), Normal()])
        square.set_clip_on(False)  # one around the whole image would lose half its line
        axes.add_patch(square)
    axes.set_xlabel(" · ".join(texts[:2]) + "\n" + " · ".join(texts[2:]), labelpad=1)
    return image
