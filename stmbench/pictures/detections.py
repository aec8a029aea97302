"""What a detector found, beside what is annotated: boxes, and masks if any, on some validation images.

The images are evenly spread over the validation images, not chosen. What was found is the file that the stage
`detect` kept; the images are the data set's own, which must be where the run had it. It is the one picture
that needs torch, with which data sets are read.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from stmbench import style
from stmbench.data import DetectionInfo, find_detection, masks
from stmbench.measure import ap
from stmbench.pictures.networks import family
from stmbench.record import condition, parts_of
from stmbench.store import ArtifactRecord, RunRecord, Store

_COLOURS = (
    "#E69F00",
    "#56B4E9",
    "#CC79A7",
    "#009E73",
    "#F0E442",
    "#D55E00",
)  # of classes; black is read on all
_CROWD = "#FFFFFF"
_ALPHA = 0.45  # of a mask
_FAR = 0.7  # share of an image's width, from which on a box's label is at its right
_PANEL = style.COLUMN / 2  # inches


@dataclass(frozen=True, slots=True)
class Thing:
    """An object that is annotated, or was found."""

    box: tuple[float, float, float, float]  # left, top, width and height in pixels
    label: int  # from 1
    text: str  # "" where the data set has one class
    mask: np.ndarray | None = None  # (H, W) uint8
    crowd: bool = False


@dataclass(frozen=True, slots=True)
class Shown:
    """One validation image."""

    image: Image.Image
    annotated: Sequence[Thing]
    found: Sequence[Thing]


@dataclass(frozen=True, slots=True)
class Picture:
    run: RunRecord
    weights: str  # the kind
    score: float  # the least that is shown
    numbers: Sequence[tuple[str, float]]  # AP of all images, in per cent
    images: int  # of all
    shown: Sequence[Shown]


def read(store: Store, run: RunRecord, *, images: int, score: float, weights: str = "") -> list[Picture]:
    """The picture of a run, or none if it kept no detections.

    So many `images` are shown, and what was found there with at least this `score`; `weights` is the kind, ""
    for that the detector is known by.

    Raises:
        ValueError: the file of detections is gone or another one, or the data set is.
    """
    files = {parts_of(file.condition)["weights"]: file for file in store.artifacts(run.id) if _is_ours(file)}
    kind = weights or ("ema" if "ema" in files else "plain")
    if kind not in files:
        return []
    found = ap.load(_checked(run, files[kind]))
    info = find_detection(run.data_source)
    if info.fingerprint != run.data_fingerprint:
        raise ValueError(f"The data at {info.source} are no longer those that {run.id} was evaluated on.")
    asked = {name: f"{name.removesuffix('_ap')} AP" for name in ("box_ap", "mask_ap")}
    numbers = [
        (asked[m.name], m.value)
        for m in store.headline(("detect",), tuple(asked)).get(run.id, ())
        if m.condition == condition(weights=kind)
    ]
    total, count = info.num_val, min(images, info.num_val)
    shown = [_shown(info, i * total // count, found, score) for i in range(count)]
    return [Picture(run, kind, score, numbers, total, shown)]


def _is_ours(file: ArtifactRecord) -> bool:
    return (file.stage, file.kind) == ("detect", "detections")


def _checked(run: RunRecord, file: ArtifactRecord) -> Path:
    """The path of the file, if it is the one that the run wrote or there is none."""
    path = run.folder / file.path
    if path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() != file.sha256:
        raise ValueError(f"{path} is no longer the file that {run.id} wrote.")
    return path


def _shown(info: DetectionInfo, index: int, found: ap.Found, score: float) -> Shown:
    val = info.val
    results = [r for r in found.results if r["image_id"] == val.image_ids[index] and r["score"] >= score]
    results.sort(key=lambda result: result["score"])  # the surest on top
    return Shown(
        val.image(index),
        [_thing(info, index, each) for each in val.annotations[index]],
        [_thing(info, index, result, f" {result['score']:.2f}") for result in results],
    )


def _thing(info: DetectionInfo, index: int, of: Any, more: str = "") -> Thing:
    label = info.val.labels[of["category_id"]]
    text = info.class_names[label - 1] + more if info.num_classes > 1 else ""
    mask = masks.decode([of["segmentation"]], *info.val.sizes[index])[0] if info.has_masks else None
    return Thing(of["bbox"], label, text, mask, bool(of.get("iscrowd")))


def caption(picture: Picture) -> str:
    run = picture.run
    scores = ", ".join(f"{name} {value:.1f}" for name, value in picture.numbers)
    crowd = any(thing.crowd for shown in picture.shown for thing in shown.annotated)
    sentences = [
        f"Annotated (left) and found (right) by {family(run, run.scale)}, {picture.weights} weights, with a "
        f"score of {picture.score:g} or more.",
        f"{len(picture.shown)} of {picture.images:,} validation images, evenly spread"
        + (f"; on all of them {scores}." if scores else "."),
        "Dashed: not counted (crowds)." if crowd else "",
        f"Data {run.data_name} ({run.data_fingerprint}), recipe {run.recipe_name} ({run.recipe_digest}), "
        f"seed {run.seed}.",
    ]
    return " ".join(filter(None, sentences))


def draw(picture: Picture, path: Path) -> None:
    """Draw a row per image into a PNG, SVG or PDF file; see `caption` for the rest."""
    heights = [_PANEL * shown.image.height / shown.image.width for shown in picture.shown]
    with style.page(path, sum(heights) + 0.2, caption(picture)) as figure:
        figure.get_figure(root=True).get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0, hspace=0)
        grid = figure.subplots(len(picture.shown), 2, squeeze=False, height_ratios=heights)
        for (left, right), shown in zip(grid, picture.shown, strict=True):
            _panel(left, shown.image, shown.annotated)
            _panel(right, shown.image, shown.found)
        grid[0][0].set_title("annotated")
        grid[0][1].set_title("found")


def _panel(axes: Any, image: Image.Image, things: Sequence[Thing]) -> None:
    from matplotlib.colors import to_rgb
    from matplotlib.patches import Rectangle
    from matplotlib.patheffects import Normal, Stroke

    extent = (0, image.width, image.height, 0)  # boxes count from the edge of the first pixel, not its centre
    axes.imshow(image, extent=extent)
    axes.set_axis_off()
    for thing in things:
        color = _CROWD if thing.crowd else _COLOURS[(thing.label - 1) % len(_COLOURS)]
        if thing.mask is not None:
            layer = np.zeros((*thing.mask.shape, 4))  # (H, W, 4)
            layer[thing.mask > 0] = (*to_rgb(color), _ALPHA)
            axes.imshow(layer, extent=extent)
        left, top, width, height = thing.box
        dashes = (0, (2, 2)) if thing.crowd else "-"
        box = Rectangle((left, top), width, height, fill=False, color=color, linewidth=0.8, linestyle=dashes)
        box.set_path_effects([Stroke(linewidth=1.6, foreground="black"), Normal()])
        axes.add_patch(box)
        if thing.text:
            far = left > _FAR * image.width
            axes.text(
                left + width * far, top, thing.text, color="black", ha="right" if far else "left", va="top",
                clip_on=True, bbox={"facecolor": color, "edgecolor": "none", "pad": 0.5},
            )  # fmt: skip
