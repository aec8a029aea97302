"""Training curves: the weights a network is known by, seeds and their mean."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from stmbench.pictures import curves
from stmbench.store import RunRecord, Store

Add = Callable[..., RunRecord]


@pytest.fixture
def train(add: Add) -> Callable[..., RunRecord]:
    """Add a run of three epochs whose top-1 is `top1`, 10 more in each epoch; EMA weights are 5 better."""

    def train(
        top1: float = 50.0, *, ema: bool = False, epochs: int = 3, lr: float = 1.0, **fields: Any
    ) -> RunRecord:
        numbers: list[tuple[Any, ...]] = []
        for epoch in range(1, epochs + 1):
            numbers += [("train", "loss", 1 / epoch, {}, epoch), ("train", "lr", lr / epoch, {}, epoch)]
            for kind, better in (("plain", 0), ("ema", 5))[: 1 + ema]:
                at = {"weights": kind}
                numbers.append(("train", "top1", top1 + 10 * (epoch - 1) + better, at, epoch))
                numbers.append(("train", "val_loss", 2 / epoch, at, epoch))
        return add(*numbers, ("eval", "images", 2000.0, {"weights": "ema" if ema else "plain"}), **fields)

    return train


def panel(figure: Figure, title: str) -> Axes:
    return next(axes for axes in figure.get_axes() if axes.get_title().startswith(title))


def thick(axes: Axes) -> list[list[float]]:
    return [list(np.asarray(line.get_ydata())) for line in axes.lines if line.get_linewidth() == 1]


def test_seeds_are_thin_and_their_mean_is_thick(
    store: Store, train: Callable[..., RunRecord], drawn: list[Figure], tmp_path: Path
) -> None:
    train(50, seed=0)
    train(60, seed=1)
    (group,) = curves.read(store, store.runs())
    curves.draw(group, tmp_path / "curves.png")
    axes = panel(drawn[0], "validation top-1")
    thin = [list(np.asarray(line.get_ydata())) for line in axes.lines if line.get_linewidth() < 1]
    assert sorted(thin) == [[50, 60, 70], [60, 70, 80]]
    assert thick(axes) == [[55, 65, 75]]


def test_the_mean_is_of_the_epochs_that_all_seeds_have(
    store: Store, train: Callable[..., RunRecord], drawn: list[Figure], tmp_path: Path
) -> None:
    train(50, seed=0, epochs=3)
    train(60, seed=1, epochs=2)
    (group,) = curves.read(store, store.runs())
    curves.draw(group, tmp_path / "curves.png")
    assert thick(panel(drawn[0], "validation top-1")) == [[55, 65]]


def test_validation_is_that_of_the_ema_weights_where_there_are_some(
    store: Store, train: Callable[..., RunRecord], drawn: list[Figure], tmp_path: Path
) -> None:
    train(50, ema=True)
    (group,) = curves.read(store, store.runs())
    curves.draw(group, tmp_path / "curves.png")
    assert thick(panel(drawn[0], "validation top-1")) == [[55, 65, 75]]
    assert "validation with ema weights" in curves.caption(group)


def test_one_learning_rate_is_one_line(
    store: Store, train: Callable[..., RunRecord], drawn: list[Figure], tmp_path: Path
) -> None:
    train(mixer="halo")
    train(mixer="swin")
    (group,) = curves.read(store, store.runs())
    curves.draw(group, tmp_path / "curves.png")
    assert len(panel(drawn[0], "learning rate (all the same)").lines) == 1
    train(mixer="sra", lr=2.0)
    (group,) = curves.read(store, store.runs())
    curves.draw(group, tmp_path / "curves.png")
    assert len(panel(drawn[1], "learning rate").lines) == 3


def test_the_caption_and_the_legend(
    store: Store, train: Callable[..., RunRecord], drawn: list[Figure], tmp_path: Path
) -> None:
    train(mixer="halo")
    train(mixer="swin")
    (group,) = curves.read(store, store.runs())
    curves.draw(group, tmp_path / "curves.svg")
    assert curves.caption(group) == (
        "Training curves; validation with plain weights. Data fashion_mini (0123456789ab), "
        "recipe quick (3f9c21aa8b10), scale micro, n = 2,000 images, seed 0."
    )
    (legend,) = drawn[0].subfigs[0].legends
    assert [text.get_text() for text in legend.get_texts()] == ["halo", "swin"]


def test_a_run_that_was_not_trained_is_not_there(store: Store, add: Add) -> None:
    add(("eval", "top1", 50.0, {"weights": "plain"}))
    assert curves.read(store, store.runs()) == []
