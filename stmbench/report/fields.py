"""Effective receptive fields: a small image per network and level, all of a set on one colour scale.

The colours and the scale are those of `stmbench plot erf`. An image is at most `_SIDE` pixels wide: a
larger map is averaged over its pixels, so that colours still are shares of the gradient per pixel.
"""

import base64
import functools
import io
import math
from collections.abc import Sequence
from html import escape

import numpy as np
from PIL import Image

from stmbench.pictures import erf
from stmbench.pictures.erf import Field, Fields
from stmbench.pictures.networks import Group
from stmbench.report.looks import Looks, Members, members, origin
from stmbench.report.markup import article, attributes, section
from stmbench.store import RunRecord, Store

_SIDE = 64  # pixels
_COLOURS = 64


def read(store: Store, runs: Sequence[RunRecord]) -> tuple[list[Group[Fields]], list[str]]:
    """The fields of finished runs, newest first, by what may be compared; and what could not be read."""
    try:
        return erf.read(store, runs), []
    except RuntimeError:
        kept, lost = [], []
        for run in runs:
            try:
                erf.read(store, [run])
                kept.append(run)
            except RuntimeError as error:
                lost.append(str(error))
        return erf.read(store, kept), lost


def receptive(
    groups: Sequence[Group[Fields]], lost: Sequence[str], looks: Looks, runs: Sequence[RunRecord]
) -> str:
    """The section."""
    lead = "What of the image the centre of each level's output sees, as the gradient tells it."
    articles = "".join(_article(group, looks, members(group, runs)) for group in groups)
    notes = "".join(f'<p class="note">{escape(line)}</p>' for line in lost)
    return section("erf", "Receptive fields", lead, articles and articles + notes)


def _article(group: Group[Fields], looks: Looks, found: Members) -> str:
    shown = erf.rows(group)
    least = erf.DARKEST / shown[0][1].maps[0].size
    most = max(float(np.nanmax(field.maps)) for _, field in shown)
    rows = []
    for name, field in shown:
        run = found[name]
        known = attributes(data_mixer=run.mixer, data_scale=run.scale, data_name=name)
        levels = [_level(name, field, level, least, most) for level in range(1, len(field.maps) + 1)]
        rows.append(
            f'<div class="field"{known}><h4>{looks.mark(run)}{escape(name)}</h4>{"".join(levels)}</div>'
        )
    content = f'<div class="fields">{"".join(rows)}</div>{_bar(least, most)}'
    figure = f"<figure>{content}<figcaption>{escape(erf.caption(group))}</figcaption></figure>"
    return article(origin(group.shared), figure, recipe=group.shared.recipe)


def _level(name: str, field: Field, level: int, least: float, most: float) -> str:
    """A map with its squares over it, and their sides below."""
    values, (row, column) = field.maps[level - 1], field.centres[level - 1]
    height, width = values.shape
    sides = {share: field.sides[level, share] for share in erf.SHARES if (level, share) in field.sides}
    told = ", ".join(f"{share} % within {side:.3g} px" for share, side in sides.items())
    alt = f"{name}, level {level}: of the gradient {told}" if told else f"{name}, level {level}"
    corners = [(column + 0.5 - side / 2, row + 0.5 - side / 2, side) for side in sides.values()]
    squares = "".join(f'<rect x="{x:g}" y="{y:g}" width="{w:g}" height="{w:g}"/>' for x, y, w in corners)
    about = f"sides in pixels of the squares with {', '.join(map(str, sides))} %"
    listed = "".join(f"<li>{side:.3g}</li>" for side in sides.values())
    return (
        f'<div class="level"><span class="small">level {level}</span><div class="map">'
        f'<img alt="{escape(alt)}" width="{width}" height="{height}" src="{_image(values, least, most)}">'
        f'<svg viewBox="0 0 {width} {height}" aria-hidden="true">{squares}</svg></div>'
        + (f'<ul aria-label="{about}">{listed}</ul></div>' if sides else "</div>")
    )


def _image(values: np.ndarray, least: float, most: float) -> str:
    """A map (H, W) as an address that holds it, a PNG of few colours."""
    height, width = values.shape
    shrunk = min(1.0, _SIDE / max(height, width))
    size = (max(1, round(width * shrunk)), max(1, round(height * shrunk)))
    small = Image.fromarray(np.nan_to_num(values).astype(np.float32)).resize(size, Image.Resampling.BOX)
    logs = np.log(np.maximum(np.asarray(small), least) / least) / math.log(most / least)
    indices = np.clip(logs * (_COLOURS - 1), 0, _COLOURS - 1).round().astype(np.uint8)
    image = Image.fromarray(indices, mode="P")
    image.putpalette(_palette())
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


@functools.cache
def _palette() -> list[int]:
    """Red, green and blue of every colour."""
    from matplotlib import colormaps  # slow to import, and only these images need it

    colours = colormaps["inferno"](np.linspace(0, 1, _COLOURS))[:, :3]  # (colours, 3)
    return (255 * colours).round().astype(int).ravel().tolist()


def _bar(least: float, most: float) -> str:
    """The colour scale, in millionths of the gradient."""
    palette = np.array(_palette()).reshape(-1, 3)[:: _COLOURS // 8]  # (8, 3)
    stops = ", ".join(f"rgb({red} {green} {blue})" for red, green, blue in palette.tolist())
    ticks = []
    for exponent in range(math.ceil(math.log10(least)), math.floor(math.log10(most)) + 1):
        at = 100 * math.log(10**exponent / least) / math.log(most / least)
        ticks.append(f'<span style="left: {at:.1f}%">{10 ** (exponent + 6):,g}</span>')
    return (
        '<div class="scale">'
        f'<div class="gradient" style="background: linear-gradient(to right, {stops})"></div>'
        f'<div class="ticks">{"".join(ticks)}</div>'
        '<p class="small">share of the gradient on a pixel, in millionths</p></div>'
    )
