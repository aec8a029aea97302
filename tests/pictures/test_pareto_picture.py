"""The Pareto picture: which networks are on the front, what they cost, and what is said of it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from stmbench.pictures import pareto
from stmbench.reading import leaderboard
from stmbench.store import RunRecord, Store

Add = Callable[..., RunRecord]
TIMED = {"batch": 1, "device": "cpu", "precision": "fp32", "protocol": "latency/1", "size": 28}


@pytest.fixture
def measure(add: Add) -> Callable[..., RunRecord]:
    """Add a run with top-1 and costs; its passes take `memory` bytes at batch 1."""

    def measure(
        top1: float, macs: float, *, latency: float = 0.0, memory: float = 5e7, **fields: Any
    ) -> RunRecord:
        at = {"weights": "plain"}
        numbers: list[tuple[Any, ...]] = [
            ("build", "macs", macs, {}),
            ("build", "parameters", 4e6, {}),
            ("eval", "top1", top1, at),
            ("eval", "images", 2000.0, at),
        ]
        if latency:
            for batch, factor in ((1, 1), (64, 20)):
                timed = TIMED | {"batch": batch, "backend": "sdpa"}
                numbers.append(("profile", "peak_memory", 1e8 + factor * memory, timed))
                numbers.append(("profile", "base_memory", 1e8, timed))
            numbers.append(("profile", "latency", latency, TIMED | {"backend": "sdpa"}))
        return add(*numbers, **fields)

    return measure


def boards(store: Store, *costs: str) -> list[pareto.Board]:
    return pareto.read(store, leaderboard.rank(store), *costs)


def test_filled_marks_are_on_the_front(
    store: Store, measure: Callable[..., RunRecord], drawn: list[Figure], tmp_path: Path
) -> None:
    measure(80, 1e9, mixer="halo")
    measure(70, 2e9, mixer="swin")
    measure(90, 3e9, mixer="sra")
    (board,) = boards(store, "macs")
    pareto.draw(board, tmp_path / "pareto.png")
    (axes,) = drawn[0].get_axes()
    marks = [line for line in axes.lines if line.get_marker() not in ("None", "")]
    filled = {line.get_ydata()[0] for line in marks if line.get_markerfacecolor() != "white"}  # pyright: ignore
    assert filled == {80, 90}
    assert {text.get_text() for text in axes.texts} == {"halo", "swin", "sra"}
    assert axes.get_xlabel() == "MACs [G]"


def test_costs_are_those_of_batch_1(store: Store, measure: Callable[..., RunRecord]) -> None:
    measure(80, 1e9, latency=4.0, memory=5e7, seed=0)
    measure(80, 1e9, latency=6.0, memory=7e7, seed=1)
    (board,) = boards(store)
    (point,) = board.points
    assert point.costs == pytest.approx({"macs": 1e9, "parameters": 4e6, "latency": 5e-3, "memory": 6e7})
    assert point.seeds == [0, 1]


def test_what_was_not_measured_has_no_panel(store: Store, measure: Callable[..., RunRecord]) -> None:
    measure(80, 1e9)
    (board,) = boards(store)
    assert board.costs == ["macs", "parameters"]
    assert boards(store, "latency") == []
    with pytest.raises(ValueError, match=r"Unknown cost 'latenzy'. Did you mean 'latency'"):
        boards(store, "macs,latenzy")


def test_a_network_without_top1_is_not_there(
    store: Store, measure: Callable[..., RunRecord], add: Add
) -> None:
    add(("build", "macs", 1e9, {}), mixer="swin")
    assert boards(store) == []
    measure(80, 1e9)
    (board,) = boards(store)
    assert [point.name for point in board.points] == ["halo"]


def test_what_may_not_be_compared_is_another_picture(store: Store, measure: Callable[..., RunRecord]) -> None:
    measure(80, 1e9)
    measure(80, 1e9, hardware="Some GPU", device="cuda")
    assert {board.group.hardware for board in boards(store)} == {"Some CPU (2 cores)", "Some GPU"}


def test_the_caption_says_where_times_were_taken(store: Store, measure: Callable[..., RunRecord]) -> None:
    measure(80, 1e9, latency=4.0)
    (board,) = boards(store)
    assert pareto.caption(board) == (
        "Top-1 (mean over seeds; bars: 95 % interval over test images) against cost. Grey line and filled "
        "marks: the Pareto front. Data fashion_mini (0123456789ab), recipe quick (3f9c21aa8b10), scale "
        "micro, n = 2,000 images, seed 0. Times and memory: Some CPU (2 cores) [cpu]; batch 1, precision "
        "fp32, protocol latency/1, size 28."
    )
    (untimed,) = boards(store, "macs,parameters")
    assert "Some CPU" not in pareto.caption(untimed)


def test_a_disturbed_machine_is_said(store: Store, measure: Callable[..., RunRecord], add: Add) -> None:
    at = {"weights": "plain"}
    add(
        ("eval", "top1", 80.0, at), ("profile", "latency", 4.0, TIMED), ("profile", "disturbed", 1.0, TIMED)
    )  # fmt: skip
    (board,) = boards(store)
    assert "disturbed machine: halo." in pareto.caption(board)


def legend_of(figure: Figure) -> list[str]:
    return [text.get_text() for legend in figure.subfigs[0].legends for text in legend.get_texts()]


def test_scales_of_a_mixer_are_joined_and_named_once(
    store: Store, measure: Callable[..., RunRecord], drawn: list[Figure], tmp_path: Path
) -> None:
    for mixer in ("halo", "swin"):
        for i, scale in enumerate(("tiny", "micro", "base")):
            measure(80 + i, (i + 1) * 1e9, mixer=mixer, scale=scale)
    (board,) = boards(store, "macs")
    pareto.draw(board, tmp_path / "pareto.png")
    assert legend_of(drawn[0]) == ["halo", "swin"]
    assert "Marks grow with scale: micro, tiny, base." in pareto.caption(board)
    axes = drawn[0].get_axes()[0]
    assert not axes.texts
    assert _sizes(axes) == {80.0: 4, 81.0: 3, 82.0: 5}


def _sizes(axes: Axes) -> dict[float, float]:
    """The size of each mark by its top-1."""
    marks = [line for line in axes.lines if line.get_marker() not in ("None", "")]
    return {float(line.get_ydata()[0]): line.get_markersize() for line in marks}  # pyright: ignore


def test_a_crowd_has_a_legend(
    store: Store, measure: Callable[..., RunRecord], drawn: list[Figure], tmp_path: Path
) -> None:
    for i in range(9):
        measure(80 + i / 10, 1e9 + 1e8 * i, mixer=f"timm:model{i}", scale="")
    (board,) = boards(store)
    pareto.draw(board, tmp_path / "pareto.png")
    assert legend_of(drawn[0]) == [f"timm:model{i}" for i in range(9)]


@pytest.mark.parametrize("widest", [1.5, 8.0, 30.0, 500.0])
def test_the_scales_reach_every_mark(
    store: Store, measure: Callable[..., RunRecord], drawn: list[Figure], tmp_path: Path, widest: float
) -> None:
    measure(80, 1e9, mixer="halo")
    measure(81, widest * 1e9, mixer="swin")
    (board,) = boards(store, "macs")
    pareto.draw(board, tmp_path / "pareto.png")
    low, high = drawn[0].get_axes()[0].get_xlim()
    assert low < 1e9 < widest * 1e9 < high
