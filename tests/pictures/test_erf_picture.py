"""The picture of receptive fields: squares as they were measured, one colour scale, means over seeds."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from stmbench.pictures import erf
from stmbench.record import Artifact, condition
from stmbench.store import RunRecord, Store

Add = Callable[..., RunRecord]
SIDES = {20: 1, 30: 3, 50: 5, 99: 27}


@pytest.fixture
def look(store: Store, add: Add) -> Callable[..., Path]:
    """Add a run that looked at two levels of a network; return the file of its maps."""

    def look(
        peak: float = 0.5,
        *,
        kinds: tuple[str, ...] = ("plain",),
        size: int = 28,
        grow: int = 0,
        **fields: Any,
    ) -> Path:
        maps = np.full((2, size, size), (1 - peak) / (size * size - 1), np.float32)
        maps[:, size // 2, size // 2] = peak
        numbers, path = [], Path()
        for kind in kinds:
            at = {"protocol": "erf/1", "size": size, "weights": kind}
            numbers.append(("erf", "images", 500.0, at))
            for level in (1, 2):
                for share, side in SIDES.items():
                    at_level = at | {"level": level, "precision": "fp32", "share": share}
                    numbers.append(("erf", "side", side + grow + 2 * (level - 1), at_level))
        run = add(*numbers, **fields)
        for kind in kinds:
            path = run.folder / f"erf_{size}_{kind}.npz"
            np.savez_compressed(path, maps=maps, centres=np.full((2, 2), size // 2))
            at = condition(protocol="erf/1", size=size, weights=kind)
            store.attach(run.id, Artifact("erf", "erf", path, at), run.folder)
        return path

    return look


def panels(figure: Figure) -> list[Axes]:
    return [axes for axes in figure.get_axes() if axes.images]


def squares(axes: Axes) -> list[tuple[float, float, float, float]]:
    found = [patch for patch in axes.patches if isinstance(patch, Rectangle)]
    return [(*patch.get_xy(), patch.get_width(), patch.get_height()) for patch in found]


def test_squares_are_those_that_were_measured(
    store: Store, look: Callable[..., Path], drawn: list[Figure], tmp_path: Path
) -> None:
    look()
    (group,) = erf.read(store, store.runs())
    erf.draw(group, tmp_path / "erf.png")
    first, second = panels(drawn[0])
    assert squares(first)[:3] == [(13.5, 13.5, 1, 1), (12.5, 12.5, 3, 3), (11.5, 11.5, 5, 5)]
    # 27 pixels around pixel 14 of 28 reach one beyond the last; what is drawn ends with the image
    assert squares(first)[3] == (0.5, 0.5, 27, 27)
    assert squares(second)[3] == (-0.5, -0.5, 28, 28)
    assert first.get_xlabel() == "1 · 3\n5 · 27"
    assert second.get_xlabel() == "3 · 5\n7 · 29"
    assert (list(first.get_xticks()), list(first.get_yticks())) == ([14], [14])


def test_all_maps_have_one_scale_that_reaches_the_brightest(
    store: Store, look: Callable[..., Path], drawn: list[Figure], tmp_path: Path
) -> None:
    look(0.5, mixer="halo")
    look(0.001, mixer="swin")
    (group,) = erf.read(store, store.runs())
    erf.draw(group, tmp_path / "erf.png")
    images = [axes.images[0] for axes in panels(drawn[0])]
    assert len(images) == 4
    for image in images:
        assert image.norm is images[0].norm
    assert images[0].norm.vmax == pytest.approx(0.5)
    assert images[0].norm.vmin == pytest.approx(0.01 / 28**2)


def test_seeds_are_averaged(store: Store, look: Callable[..., Path]) -> None:
    look(0.2, seed=0)
    look(0.4, seed=1, grow=4)
    (group,) = erf.read(store, store.runs())
    ((name, field),) = erf.rows(group)
    assert name == "halo"
    assert field.maps[0, 14, 14] == pytest.approx(0.3)
    assert field.maps[0].sum() == pytest.approx(1)
    assert field.sides[1, 50] == 7
    caption = erf.caption(group)
    assert "means over seeds" in caption
    assert "seeds 0, 1." in caption


def test_the_caption(store: Store, look: Callable[..., Path]) -> None:
    look()
    (group,) = erf.read(store, store.runs())
    caption = erf.caption(group)
    for part in (
        "erf/1",
        "plain weights",
        "28 px",
        "one logarithmic scale for all maps",
        "20, 30, 50 and 99 %",
        "Data fashion_mini (0123456789ab)",
        "recipe quick (3f9c21aa8b10)",
        "scale micro",
        "n = 500 images",
        "seed 0",
    ):
        assert part in caption
    assert "means" not in caption


def test_the_control_stands_below_its_network(store: Store, look: Callable[..., Path]) -> None:
    look(kinds=("random", "ema"), mixer="halo")
    look(kinds=("ema", "random"), mixer="swin")
    (group,) = erf.read(store, store.runs(), control=True)
    names = [name for name, _ in erf.rows(group)]
    assert names == ["halo", "halo, random", "swin", "swin, random"]
    assert "ema and random weights" in erf.caption(group)
    (alone,) = erf.read(store, store.runs())
    assert [name for name, _ in erf.rows(alone)] == ["halo", "swin"]
    assert "weights=ema" in alone.shared.condition
    (random,) = erf.read(store, store.runs(), weights="random")
    assert "random weights" in erf.caption(random)


def test_other_sizes_and_weights_are_only_drawn_when_asked_for(
    store: Store, look: Callable[..., Path]
) -> None:
    look(size=28)
    look(size=56, mixer="swin")
    (own,) = erf.read(store, store.runs())
    (larger,) = erf.read(store, store.runs(), size=56)
    assert [n.name for n in own.networks] == ["halo"]
    assert [n.name for n in larger.networks] == ["swin"]
    assert erf.read(store, store.runs(), weights="ema") == []


@pytest.mark.parametrize("damage", ["gone", "cut short", "text", "other arrays"])
def test_a_damaged_file_is_named(store: Store, look: Callable[..., Path], damage: str) -> None:
    path = look()
    if damage == "gone":
        path.unlink()
    elif damage == "cut short":
        path.write_bytes(path.read_bytes()[:200])
    elif damage == "text":
        path.write_text("no maps")
    else:
        np.savez(path, other=np.zeros(3))
    with pytest.raises(RuntimeError, match=rf"receptive fields .*{path.name} cannot be read: .*--stage erf"):
        erf.read(store, store.runs())


def test_a_level_that_sees_nothing_is_an_empty_panel(
    store: Store, look: Callable[..., Path], drawn: list[Figure], tmp_path: Path
) -> None:
    path = look()
    maps = np.load(path)["maps"]
    maps[1] = np.nan
    np.savez(path, maps=maps, centres=np.full((2, 2), 14))
    (group,) = erf.read(store, store.runs())
    erf.draw(group, tmp_path / "erf.png")
    assert len(panels(drawn[0])) == 2


def test_networks_of_more_levels_widen_the_picture(
    store: Store, look: Callable[..., Path], drawn: list[Figure], tmp_path: Path
) -> None:
    path = look(mixer="timm:vit_tiny_patch16_224", scale="")
    look(mixer="halo")
    np.savez(path, maps=np.full((12, 28, 28), 1 / 784, np.float32), centres=np.full((12, 2), 14))
    (group,) = erf.read(store, store.runs())
    erf.draw(group, tmp_path / "erf.pdf")
    assert len(panels(drawn[0])) == 14
    assert drawn[0].get_size_inches()[0] == pytest.approx(3 * 3.5)
