"""Curves of invariance and equivariance: what is averaged, what is a band, and what is never mixed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from stmbench.pictures import invariance
from stmbench.store import RunRecord, Store

Add = Callable[..., RunRecord]
STRENGTHS = {
    "none": (0,),
    "translation": (0, 4, 8),
    "rotation_before": (0, 45),
    "rotation_after": (0, 45),
    "scale": (0.5, 0.875, 1.2),
    "flip": (0, 1),
    "jpeg": (90, 10),
    "blur": (0, 1),
    "noise": (0, 0.1),
    "contrast": (1, 0.1),
}


@pytest.fixture
def sweep(add: Add) -> Callable[..., RunRecord]:
    """Add a run whose consistency is 100 % at the plain point and `value` elsewhere, give or take 5."""

    def sweep(
        value: float = 80.0, *, protocol: str = "invariance/1", precision: str = "fp32", **fields: Any
    ) -> RunRecord:
        under = {"precision": precision, "protocol": protocol, "size": 28, "weights": "plain"}
        numbers: list[tuple[Any, ...]] = [("invariance", "images", 2000.0, under)]
        for transform, strengths in STRENGTHS.items():
            for place, strength in enumerate(strengths):
                at = under | {"strength": f"{strength:g}", "transform": transform}
                plain = transform == "none" or (place == 0 and transform not in ("scale", "jpeg"))
                level = 100.0 if plain else value
                numbers.append(("invariance", "cross_entropy", 0.5, at))
                for name, more in (("consistency", 0), ("top1", -10)):
                    numbers.append(("invariance", name, level + more, at))
                    numbers.append(("invariance", f"{name}.low", level + more - 5, at))
                    numbers.append(("invariance", f"{name}.high", level + more + 5, at))
        return add(*numbers, **fields)

    return sweep


def panel(figure: Figure, label: str) -> Axes:
    return next(axes for axes in figure.get_axes() if axes.get_xlabel().startswith(label))


def test_a_panel_for_each_transformation(
    store: Store, sweep: Callable[..., RunRecord], drawn: list[Figure], tmp_path: Path
) -> None:
    sweep()
    (group,) = invariance.read(store, store.runs())
    invariance.draw(group, tmp_path / "invariance.png")
    labels = [axes.get_xlabel() for axes in drawn[0].get_axes()]
    assert len([label for label in labels if label]) == len(STRENGTHS) - 1
    line = panel(drawn[0], "translation").lines[0]
    assert list(np.asarray(line.get_xdata())) == [0, 4, 8]
    assert list(np.asarray(line.get_ydata())) == [100, 80, 80]
    assert drawn[0].get_axes()[0].get_ylabel() == "consistency [%]"


def test_seeds_are_averaged_and_the_band_holds_all_their_intervals() -> None:
    one, other = {0.0: (90.0, 85.0, 95.0), 4.0: (1.0, 1.0, 1.0)}, {0.0: (80.0, 78.0, 82.0)}
    assert invariance.mean([one, other]).tolist() == [[0, 85, 78, 95]]


def test_an_untouched_image_begins_the_jpeg_curve(store: Store, sweep: Callable[..., RunRecord]) -> None:
    sweep(80)
    (group,) = invariance.read(store, store.runs())
    curves = group.networks[0].seeds[0].curves
    assert {quality: point[0] for quality, point in curves["jpeg"].items()} == {10: 80, 90: 80, 100: 100}
    assert "none" not in curves


def test_stronger_is_to_the_right(
    store: Store, sweep: Callable[..., RunRecord], drawn: list[Figure], tmp_path: Path
) -> None:
    sweep()
    (group,) = invariance.read(store, store.runs())
    invariance.draw(group, tmp_path / "invariance.png")
    for label, left in {"JPEG": "falling", "contrast": "falling", "blur": "rising"}.items():
        low, high = panel(drawn[0], label).get_xlim()
        assert (low > high) == (left == "falling")


def test_the_scale_of_the_plain_crop_is_marked(
    store: Store, sweep: Callable[..., RunRecord], drawn: list[Figure], tmp_path: Path
) -> None:
    sweep(mixer="halo")
    sweep(mixer="timm:resnet18", preprocessing={"crop_pct": 0.95})
    (group,) = invariance.read(store, store.runs())
    invariance.draw(group, tmp_path / "invariance.png")
    axes = panel(drawn[0], "crop / image side")
    dotted = {float(np.asarray(line.get_xdata())[0]) for line in axes.lines if line.get_linestyle() == ":"}
    assert dotted == {0.875, 0.95}


def test_protocols_are_never_in_one_picture(store: Store, sweep: Callable[..., RunRecord]) -> None:
    sweep(mixer="halo")
    sweep(mixer="swin", protocol="invariance/published")
    (ours,) = invariance.read(store, store.runs())
    (published,) = invariance.read(store, store.runs(), protocol="invariance/published")
    assert [network.name for network in ours.networks] == ["halo"]
    assert [network.name for network in published.networks] == ["swin"]
    assert invariance.caption(published).startswith("invariance/published: ")
    with pytest.raises(ValueError, match="Unknown protocol 'invariance/2'"):
        invariance.read(store, store.runs(), protocol="invariance/2")


def test_precisions_are_not_mixed(store: Store, sweep: Callable[..., RunRecord]) -> None:
    sweep(mixer="halo")
    sweep(mixer="swin", precision="bf16")
    assert len(invariance.read(store, store.runs())) == 2


def test_other_metrics(
    store: Store, sweep: Callable[..., RunRecord], drawn: list[Figure], tmp_path: Path
) -> None:
    sweep()
    (top1,) = invariance.read(store, store.runs(), metric="top1")
    assert top1.networks[0].seeds[0].curves["blur"][1.0] == [70, 65, 75]
    (entropy,) = invariance.read(store, store.runs(), metric="cross_entropy")
    assert entropy.networks[0].seeds[0].curves["blur"][1.0] == [0.5] * 3
    assert "Bands" in invariance.caption(top1)
    assert "Bands" not in invariance.caption(entropy)  # it has no intervals
    invariance.draw(entropy, tmp_path / "invariance.svg")
    assert drawn[0].get_axes()[0].get_ylabel() == "cross-entropy"


def test_the_caption(store: Store, sweep: Callable[..., RunRecord]) -> None:
    for seed in (0, 1):
        sweep(seed=seed)
    (group,) = invariance.read(store, store.runs())
    assert invariance.caption(group) == (
        "invariance/1: share of images whose prediction is the one to the plain crop; plain weights, images "
        "of 28 px, fp32. Lines are means over seeds. Bands: 95 % intervals over images, the outer ends of "
        "all seeds. Dotted: the scale of the plain crop. Data fashion_mini (0123456789ab), recipe quick "
        "(3f9c21aa8b10), scale micro, n = 2,000 images, seeds 0, 1."
    )


@pytest.mark.parametrize("count", [2, 12])
def test_every_network_is_in_the_legend(
    store: Store, sweep: Callable[..., RunRecord], drawn: list[Figure], tmp_path: Path, count: int
) -> None:
    for i in range(count):
        sweep(mixer=f"timm:model{i}", scale="")
    (group,) = invariance.read(store, store.runs())
    invariance.draw(group, tmp_path / "invariance.png")
    inside = drawn[0].get_axes()[-1].get_legend()
    below = drawn[0].subfigs[0].legends
    assert (inside is None) == bool(below) == (count == 12)
    (legend,) = below or [inside]
    assert legend is not None
    assert len(legend.get_texts()) == count


def test_equivariance_has_a_panel_per_level(
    store: Store, add: Add, drawn: list[Figure], tmp_path: Path
) -> None:
    under = {"precision": "fp32", "protocol": "equivariance/1", "size": 28, "weights": "plain"}
    numbers: list[tuple[Any, ...]] = [("invariance", "images", 500.0, under)]
    for level in range(1, 13):
        for shift in ("0.5", "1"):
            at = under | {"level": level, "shift": shift}
            values = (("", 0.8), (".low", 0.7), (".high", 0.9)) if level < 12 else (("", float("nan")),)
            numbers += [("invariance", f"equivariance{end}", value, at) for end, value in values]
    add(*numbers)
    (group,) = invariance.read(store, store.runs(), protocol="equivariance/1", metric="equivariance")
    invariance.draw(group, tmp_path / "equivariance.pdf")
    labels = [axes.get_xlabel() for axes in drawn[0].get_axes() if axes.get_xlabel()]
    assert labels == [f"level {level}: shift [cells]" for level in range(1, 12)]
    line = panel(drawn[0], "level 3").lines[0]
    assert list(np.asarray(line.get_xdata())) == [0.5, 1]
    assert "n = 500 images" in invariance.caption(group)
