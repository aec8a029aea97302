"""What our pictures share: kinds of files, sizes for print, colours, captions, and labels that cover nothing.

Colours are those of Okabe and Ito ("Color universal design", 2008), which the common kinds of colour
blindness keep apart. In grey some are alike, so every network also has a mark and dashes of its own.
"""

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

SUFFIXES = (".png", ".svg", ".pdf")
COLUMN = 3.5  # inches: a column of a two-column paper
FONT = 7  # typographic points; nothing is smaller
_LINE = 1.25 * FONT / 72  # inches from one line of a caption to the next
_MARGIN = 0.04  # inches
_PAPER: Any = {
    "font.size": FONT,
    "axes.titlesize": FONT,
    "axes.labelsize": FONT,
    "xtick.labelsize": FONT,
    "ytick.labelsize": FONT,
    "legend.fontsize": FONT,
    "figure.dpi": 300,
    "savefig.dpi": 300,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlepad": 3,
    "axes.labelpad": 2,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "0.9",
    "grid.linewidth": 0.5,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "xtick.major.pad": 2,
    "ytick.major.pad": 2,
    "lines.linewidth": 1.0,
    "lines.markersize": 3,
    "legend.frameon": False,
    "legend.handlelength": 3.2,
    "pdf.fonttype": 42,  # TrueType: printers and journals take no Type 3
    "svg.hashsalt": "stmbench",  # the same picture is the same file
}
_COLOURS = ("#000000", "#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1, 1)), (0, (5, 1.5, 1, 1.5)), (0, (2.5, 1.2)))
_MARKERS = "os^DvPX*"
_DIRECTIONS = ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, 1), (1, -1), (-1, -1))
_DISTANCES = (4, 10, 18, 28, 40, 56)  # typographic points from a mark to its label, tried in this order
_NEAR = 10  # the label is at home there
_CLOSE = 8  # farther labels are tied to their mark by a line


class Look(NamedTuple):
    """How one network is drawn, whatever it is drawn in."""

    color: str
    marker: str
    dashes: Any


def looks(count: int) -> list[Look]:
    """The looks of so many networks; no two of the first 280 alike."""
    cycles = (itertools.cycle(each) for each in (_COLOURS, _MARKERS, _DASHES))
    return [Look(*each) for each, _ in zip(zip(*cycles, strict=True), range(count), strict=False)]


def line(look: Look) -> dict[str, Any]:
    """The keywords of a line."""
    return {"color": look.color, "marker": look.marker, "linestyle": look.dashes, "markeredgewidth": 0}


def handles(names: Sequence[str], looks: Sequence[Look]) -> list[Any]:
    """The entries of a legend."""
    from matplotlib.lines import Line2D

    return [Line2D([], [], label=name, **line(look)) for name, look in zip(names, looks, strict=True)]


def legend(figure: Any, names: Sequence[str], looks: Sequence[Look]) -> None:
    """Say below the panels which network is which."""
    figure.legend(
        handles=handles(names, looks), loc="outside lower center", ncols=_columns(names), columnspacing=1.2
    )


def legend_height(names: Sequence[str]) -> float:
    """Inches that a legend below the panels takes."""
    return 1.6 * FONT / 72 * -(-len(names) // _columns(names)) + 0.1


def _columns(names: Sequence[str]) -> int:
    """As many as a column of a paper has room for, at 60 letters, 8 of them for a line."""
    return max(1, min(len(names), 60 // (8 + max(map(len, names)))))


def check(path: Path) -> None:
    """ValueError for a file that is not a kind of picture we draw, or in no folder."""
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"A picture is a {', '.join(SUFFIXES)} file, not '{path.name}'.")
    if not path.parent.is_dir():
        raise ValueError(f"There is no folder {path.parent} for the picture.")


@contextmanager
def page(path: Path, height: float, caption: str, width: float = COLUMN) -> Iterator[Any]:
    """A (sub)figure to draw into, `height` inches high; it is then written, its caption below it.

    Raises:
        ValueError: another kind of file, or no such folder.
    """
    import matplotlib as mpl  # slow to import, and only a picture needs it
    from matplotlib.figure import Figure

    check(path)
    with mpl.rc_context(_PAPER):
        lines = wrap(caption, width - 2 * _MARGIN)
        below = _LINE * len(lines) + 2 * _MARGIN
        figure = Figure(figsize=(width, height + below), layout="constrained")
        engine: Any = figure.get_layout_engine()
        engine.set(w_pad=_MARGIN, h_pad=_MARGIN)
        parts: Any = figure.subfigures(2, 1, height_ratios=(height, below))
        drawing, foot = parts
        place = (_MARGIN / width, 1 - _MARGIN / below)
        foot.text(*place, "\n".join(lines), va="top", linespacing=1.25)
        yield drawing
        figure.savefig(path)


def wrap(text: str, width: float) -> list[str]:
    """Break a text into lines of at most so many inches."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import TextToPath

    font, measure = FontProperties(size=FONT), TextToPath().get_text_width_height_descent
    lines = [""]
    for word in text.split(" "):
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and measure(longer, font, ismath=False)[0] > 72 * width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


# Labels


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle on the figure, in pixels."""

    left: float
    bottom: float
    right: float
    top: float

    def meets(self, other: "Box") -> bool:
        apart = self.right <= other.left or other.right <= self.left
        return not (apart or self.top <= other.bottom or other.top <= self.bottom)

    def holds(self, other: "Box") -> bool:
        across = self.left <= other.left and other.right <= self.right
        return across and self.bottom <= other.bottom and other.top <= self.top


def around(x: float, y: float, half_width: float, half_height: float) -> Box:
    return Box(x - half_width, y - half_height, x + half_width, y + half_height)


def extent(text: Any) -> Box:
    return Box(*text.get_window_extent().extents)


def label(
    axes: Any,
    points: Sequence[tuple[float, float]],
    labels: Sequence[str],
    taken: Sequence[Box],
    size: float,
    shared: Sequence[Box] = (),
) -> None:
    """Write beside each point its label, where it covers no mark, no other label and nothing `taken`.

    What is `shared` it may cover rather than be far from its mark. The layout must be settled: see
    `Figure.draw_without_rendering`.
    """
    from matplotlib.patheffects import withStroke

    spots = axes.transData.transform(points)
    texts = [axes.annotate(label, (0, 0), xycoords="figure pixels", fontsize=size) for label in labels]
    sizes = [(box.right - box.left, box.top - box.bottom) for box in map(extent, texts)]
    for text in texts:
        text.remove()
    dots = axes.figure.dpi / 72  # pixels in a typographic point
    places = _places(spots, sizes, taken, shared, Box(*axes.bbox.extents), dots)
    for point, text, (x, y, distance) in zip(points, labels, places, strict=True):
        end = ((1 - np.sign(x)) / 2, (1 - np.sign(y)) / 2)  # of the label, the one that faces the mark
        tie = {"arrowstyle": "-", "color": "0.5", "linewidth": 0.7, "shrinkB": 3, "relpos": end}
        axes.annotate(
            text,
            point,
            (x / dots, y / dots),
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=size,
            arrowprops=tie if distance > _CLOSE else None,
            path_effects=[withStroke(linewidth=1.5, foreground="white")],
        )


def _places(
    spots: Any,
    sizes: Sequence[tuple[float, float]],
    taken: Sequence[Box],
    shared: Sequence[Box],
    frame: Box,
    dots: float,
) -> list[tuple[float, float, float]]:
    """For each label its centre's way from its spot, in pixels, and how far it is from the mark.

    A place inside the frame that covers nothing: a near one, over what is shared if need be, else the first
    of the others. Where there is none, the nearest.
    """
    obstacles = [*taken, *(around(x, y, 3.5 * dots, 3.5 * dots) for x, y in spots)]
    found = []
    for (x, y), (width, height) in zip(spots, sizes, strict=True):
        ways = [
            (across * (d * dots + width / 2), up * (d * dots + height / 2), d)
            for d in _DISTANCES
            for across, up in _DIRECTIONS
        ]
        boxes = [around(x + dx, y + dy, width / 2, height / 2) for dx, dy, _ in ways]
        free = [i for i, box in enumerate(boxes) if frame.holds(box) and not any(map(box.meets, obstacles))]
        costs = {i: (ways[i][2] > _NEAR, any(map(boxes[i].meets, shared)), i) for i in free}
        best = min(free, key=costs.__getitem__, default=0)
        obstacles.append(boxes[best])
        found.append(ways[best])
    return found
