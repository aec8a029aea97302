"""What a running run shows, with a terminal and without."""

import io
import math

import pytest
from rich.console import Console

from stmbench.cli import draw
from stmbench.record import Event, Measurement, Note, Progress

EPOCH: list[Event] = [
    Progress("train", "train 1/4", 3, 156, {"loss": 1.5, "images/s": 1234.5, "acc": 42.0}),
    Measurement("train", "loss", 0.75, step=1),
    Measurement("train", "images_per_second", 1200.0, step=1),
    Measurement("train", "top1", 81.25, "%", "weights=plain", 1),
    Measurement("train", "top1", 80.5, "%", "weights=ema", 1),
    Note("train", "3 images could not be read"),
    Measurement("train", "seconds", 12.3, "s", step=1),
]


def drawn(events: list[Event], *, terminal: bool) -> str:
    out = io.StringIO()
    with draw.Drawer(Console(file=out, force_terminal=terminal, width=120, soft_wrap=True)) as drawer:
        for event in events:
            drawer.draw(event)
            if drawer.bars:
                drawer.bars.refresh()
        drawer.stage_done("train", 12.3)
    return out.getvalue()


def test_without_a_terminal_there_is_a_line_per_milestone() -> None:
    lines = drawn(EPOCH, terminal=False).splitlines()
    assert len(lines) == 3
    assert "3 images could not be read" in lines[0]
    assert "epoch 1" in lines[1]
    assert "val top-1 81.25 %  val top-1 (EMA) 80.50 %" in lines[1]
    assert "\x1b" not in "".join(lines)


def test_a_long_epoch_gives_signs_of_life(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(draw, "QUIET_S", -1)
    assert "train 1/4 3/156  1,234 images/s  loss 1.500  train top-1 42.0 %" in drawn(EPOCH, terminal=False)


def test_a_terminal_gets_a_bar_with_numbers_and_time_left() -> None:
    text = drawn(EPOCH, terminal=True)
    for part in ("train 1/4", "3/156", "left", "1,234 images/s", "loss 1.500", "train top-1 42.0 %"):
        assert part in text


def test_what_each_stage_found() -> None:
    events: list[Event] = [
        Measurement("build", "parameters", 4_389_672),
        Measurement("build", "macs", 860e6),
        Measurement("eval", "top1", 88.3, "%", "weights=plain"),
        Measurement("eval", "top5", 99.0, "%", "weights=plain"),
        Measurement("profile", "latency", 7.5, "ms"),
        Measurement("profile", "latency", math.nan, "ms", "execution=compiled", reason="no compiler"),
        Measurement("profile", "best_throughput", 2100.0, "images/s"),
        Measurement("profile", "best_batch", 64, "images"),
        Measurement("profile", "mixer_cost", 1.5, "", "batch=64,device=cpu"),
    ]
    out = io.StringIO()
    with draw.Drawer(Console(file=out, width=120)) as drawer:
        for event in events:
            drawer.draw(event)
        for stage in ("build", "eval", "profile"):
            drawer.stage_done(stage, 1.0)
    text = out.getvalue()
    assert "4.39 M parameters, 0.86 G MACs" in text
    assert "top-1 88.30 %, top-5 99.00 %" in text
    assert "EMA" not in text
    assert "latency 7.5 ms, 2,100 images/s at batch 64, 1.50x the identity's time" in text
