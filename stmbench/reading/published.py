"""The paper's results, beside ours where the two may be compared.

`published.csv` holds what the STM-Evaluation project published (Hu et al. 2022, arXiv:2211.05781): top-1 of
networks in the unified design, and of the original ones; box and mask AP of the former in Mask R-CNN. A group
may be compared when its recipe trains for 300 epochs on images of 224 pixels and is tested on 50,000 images,
as many as ImageNet-1k has for it; one of detectors, when it trains for 12 epochs on images of 800 and at most
1,333 pixels and is tested on 5,000 images, as many as COCO has for it.

One run was published of each network, and no interval: that of a difference is the one of our top-1 alone.
"""

import csv
import functools
from collections.abc import Collection, Sequence
from importlib import resources

from stmbench.reading.columns import Column, Number
from stmbench.store import RunRecord

_SIZE, _EPOCHS, _IMAGES = 224, 300, 50_000  # of the published protocol
_SIDES, _DETECTION_EPOCHS, _DETECTION_IMAGES = (800, 1333), 12, 5_000

COLUMNS = (
    Column("published", "%", descending=True, beside=()),
    Column("original", "%", descending=True, beside=()),
    Column("difference", "points", descending=True, beside=("low", "high")),
)
DETECTION = (
    Column("published_box_ap", "%", descending=True, beside=()),
    Column("published_mask_ap", "%", descending=True, beside=()),
    Column("difference", "points", descending=True, beside=("low", "high")),
)


@functools.cache
def results(name: str = "top1") -> dict[tuple[str, str, str], float]:
    """The published top-1, `box_ap` or `mask_ap` in per cent, by mixer, design and scale."""
    text = resources.files("stmbench.reading").joinpath("published.csv").read_text(encoding="utf-8")
    rows = csv.DictReader(line for line in text.splitlines() if not line.startswith("#"))
    return {(row["mixer"], row["design"], row["scale"]): float(row[name]) for row in rows if row[name]}


def comparable(run: RunRecord, images: Sequence[float]) -> bool:
    """Whether the group of this run, of networks tested on so many images, follows the published protocol."""
    return _protocol(run) == (_SIZE, _EPOCHS) and set(images) == {_IMAGES}


def note(run: RunRecord, images: Sequence[float]) -> str:
    """What the published columns are, or why they are empty."""
    theirs = f"ImageNet-1k, {_SIZE} px, {_EPOCHS} epochs"
    if comparable(run, images):
        return (
            f"published: arXiv:2211.05781, {theirs}, a run each, in the unified and the original design; "
            "difference: top-1 less published, with the interval of ours alone"
        )
    size, epochs = _protocol(run)
    tested = f", {max(images):,.0f} test images" if images else ""
    ours = f"{run.data_name}, {size} px, {epochs} epochs{tested}"
    return f"not comparable with the published results ({theirs}): {ours}"


def beside(
    mixer: str, design: str, scale: str, top1: float | None, low: float | None, high: float | None
) -> dict[str, Number]:
    """The paper's columns of one of our networks, of `COLUMNS`, as far as it published any.

    The difference is to what it published of the network's own design.
    """
    unified, original = (results().get((mixer, design, scale)) for design in ("unified", "original"))
    found = {"published": unified, "original": original}
    numbers = {name: Number(value) for name, value in found.items() if value is not None}
    theirs = results().get((mixer, design, scale))
    if theirs is not None and top1 is not None:
        ends = (None if end is None else end - theirs for end in (low, high))
        numbers["difference"] = Number(top1 - theirs, None, 1, *ends)
    return numbers


def detection_comparable(run: RunRecord, images: Collection[float]) -> bool:
    """Whether this run's group, of detectors tested on so many images, follows the published protocol."""
    return _detection_protocol(run) == (_SIDES, _DETECTION_EPOCHS) and set(images) == {_DETECTION_IMAGES}


def detection_note(run: RunRecord, images: Collection[float]) -> str:
    """What the published columns of a group of detectors are, or why they are empty."""
    theirs = f"COCO, Mask R-CNN, {_SIDES[0]}/{_SIDES[1]} px, {_DETECTION_EPOCHS} epochs"
    if detection_comparable(run, images):
        return (
            f"published: arXiv:2211.05781, {theirs}, a run each, from weights trained on ImageNet-1k; "
            "difference: box AP less published"
        )
    (short, long), epochs = _detection_protocol(run)
    tested = f", {max(images):,.0f} test images" if images else ""
    ours = f"{run.data_name}, {short}/{long} px, {epochs} epochs{tested}"
    return f"not comparable with the published results ({theirs}): {ours}"


def detection_beside(mixer: str, design: str, scale: str, box_ap: float | None) -> dict[str, Number]:
    """The paper's columns of one of our detectors, of `DETECTION`, as far as it published any."""
    found = {name: results(name).get((mixer, design, scale)) for name in ("box_ap", "mask_ap")}
    numbers = {f"published_{name}": Number(value) for name, value in found.items() if value is not None}
    if found["box_ap"] is not None and box_ap is not None:
        numbers["difference"] = Number(box_ap - found["box_ap"])
    return numbers


def _detection_protocol(run: RunRecord) -> tuple[tuple[int | None, int | None], int | None]:
    detect, schedule = (run.recipe_values.get(section, {}) for section in ("detect", "schedule"))
    return (detect.get("short_side"), detect.get("long_side")), schedule.get("epochs")


def _protocol(run: RunRecord) -> tuple[int | None, int | None]:
    values = run.recipe_values
    return values.get("data", {}).get("image_size"), values.get("schedule", {}).get("epochs")
