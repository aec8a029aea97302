"""How a running sweep looks, in a terminal and elsewhere."""

import dataclasses
import io
from pathlib import Path

import pytest
from rich.console import Console

from stmbench.cli.board import Board
from stmbench.cli.sweep_plan import _table
from stmbench.record import Measurement, Note, Progress
from stmbench.runner import StageDone
from stmbench.sweep import Ended, Item, Outcome, Started, Told
from stmbench.sweep.costs import Cost

STAGES = ("build", "train", "eval")
EPOCH = [
    Measurement("train", "loss", 1.25, step=1),
    Measurement("train", "images_per_second", 100.0, step=1),
    Measurement("train", "top1", 50.0, condition="weights=plain", step=1),
    Measurement("train", "seconds", 10.0, step=1),
]


def item(seed: int, **seconds: float) -> Item:
    unknown = tuple(stage for stage in STAGES if stage not in seconds)
    return Item(
        network="halo",
        scale="micro",
        design="unified",
        recipe="quick",
        variant=("optimizer.lr=1",),
        seed=seed,
        asked={"stage": ",".join(STAGES)},
        fingerprint=str(seed),
        run=None,
        left=STAGES,
        cost=Cost(seconds, unknown, "same runs"),
    )


def drawn(board: Board, console: Console) -> str:
    with console.capture() as capture:
        console.print(board._table())
    return capture.get()


@pytest.fixture
def console() -> Console:
    return Console(file=io.StringIO(), width=100, force_terminal=True, color_system=None)


def test_lines_say_which_run_they_are_of() -> None:
    out = io.StringIO()
    with Board(Console(file=out, width=100), [item(0), item(1)]) as board:
        for i in (0, 1):
            board.draw(Told(i, Started(f"halo-{i}", Path("x"))))
        for event in (*EPOCH, Note("train", "[odd]"), StageDone("build", 2.0)):
            board.draw(Told(1, event))
        board.draw(Ended(1, Outcome("failed", "halo-1", "its process was killed\nlast [words]")))
        board.draw(Ended(0, Outcome("done", "halo-0")))
    lines = [line.rstrip() for line in out.getvalue().splitlines()]
    assert lines[0] == "halo-0  halo micro by recipe quick with optimizer.lr=1, seed 0"
    assert "halo-1  epoch 1   loss 1.250  val top-1 50.00 %  100 images/s  10 s" in lines
    assert "halo-1  note  [odd]" in lines
    assert lines[-3:] == [
        "halo-1  failed  its process was killed",
        "halo-1  last [words]",
        "halo-0  done  1 of 2",
    ]
    assert board.count("failed") == 1


def test_the_table_has_a_row_for_each_that_runs(console: Console) -> None:
    board = Board(console, [item(0, build=5, train=60, eval=1), item(1), item(2)])
    for i in (0, 1):
        board.draw(Told(i, Started(f"halo-{i}", Path("x"))))
    text = drawn(board, console)
    assert "halo-0  build" in text
    assert "1:05" in text or "1:06" in text
    board.draw(Told(1, StageDone("build", 1.0)))
    for event in (*EPOCH, Progress("train", "train 2/4", 5, 10)):
        board.draw(Told(1, event))
    text = drawn(board, console)
    assert "halo-1  train 2/4" in text
    assert "30.0 s+" in text  # three epochs, and an evaluation that nobody knows of
    board.draw(Ended(0, Outcome("later", "halo-0")))
    board.draw(Ended(1, Outcome("failed", "halo-1", "no")))
    text = drawn(board, console)
    assert "halo" not in text
    assert "0 of 3 runs done, 1 failed" in text


def test_a_run_that_is_timed_later_goes_on(console: Console) -> None:
    board = Board(console, [item(0)])
    board.draw(Told(0, Started("halo-0", Path("x"))))
    board.draw(Told(0, StageDone("build", 1.0)))
    board.draw(Told(0, StageDone("train", 1.0)))
    board.draw(Ended(0, Outcome("later", "halo-0")))
    with console.capture() as capture:
        board.draw(Told(0, Started("halo-0", Path("x"))))
    assert capture.get().rstrip().endswith("seed 0, goes on")
    assert "halo-0  eval" in drawn(board, console)


def test_a_run_that_is_made_anew_may_have_more_stages_than_were_left(console: Console) -> None:
    board = Board(console, [dataclasses.replace(item(0), left=("eval",))])
    board.draw(Told(0, Started("halo-0", Path("x"))))
    for stage in STAGES:
        board.draw(Told(0, StageDone(stage, 1.0)))
    board.draw(Ended(0, Outcome("done", "halo-0")))
    assert board.count("done") == 1


def test_the_plan_keeps_the_most_telling_columns_in_a_narrow_terminal() -> None:
    items = [item(seed, build=5, train=60, eval=1) for seed in (0, 1, 2, 7)] + [item(3)]
    heads = {
        narrow: [str(column.header) for column in _table(items, items[1:], narrow).columns]
        for narrow in (True, False)
    }
    assert heads[True] == ["network", "seeds", "state", "to do"]
    assert heads[False] == ["network", "seeds", "state", "a run", "to do", "known from"]
    console = Console(file=io.StringIO(), width=100)
    with console.capture() as capture:
        console.print(_table(items, items[1:], narrow=False))
    dash = "\N{EN DASH}"
    assert capture.get().splitlines()[1].split() == f"halo 0{dash}3, 7 5 new 49.5 s+ 3:18+ same runs".split()
