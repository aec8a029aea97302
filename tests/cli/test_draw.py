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


def test_a_detector_is_told_by_its_ap() -> None:
    at, events = "weights=plain", []
    for step in (1, 0):
        for name, value in (("loss", 0.9), ("box_ap", 12.25), ("box_ap50", 31.5), ("images_per_second", 8.0)):
            events.append(Measurement("detect", name, value, "", at if "ap" in name else "", step))
        events.append(Measurement("detect", "seconds", 11.0, "s", step=step))
    out = io.StringIO()
    with draw.Drawer(Console(file=out, width=120)) as drawer:
        for event in events:
            drawer.draw(event)
        drawer.stage_done("detect", 12.0)
    epoch, stage = out.getvalue().splitlines()
    assert "loss 0.900  box AP 12.25 %" in epoch
    assert "box AP 12.2 % (AP50 31.5 %)" in stage


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
        Measurement("robustness", "top1", 12.34, "%", "classes=200,set=a,size=224"),
        Measurement("robustness", "top1", 70.1, "%", "classes=1000,set=v2,size=224"),
        Measurement("robustness", "top1", 33.3, "%", "corruption=fog,set=c,severity=5,size=224"),
        Measurement("robustness", "mce", 64.2, "%", "set=c,size=224"),
        Measurement("invariance", "auc.top1", 0.9, "", "protocol=invariance/1,transform=scale,weights=ema"),
        Measurement(
            "invariance", "auc.top1", 0.2, "", "protocol=invariance/published,transform=scale,weights=ema"
        ),
    ]
    out = io.StringIO()
    with draw.Drawer(Console(file=out, width=120)) as drawer:
        for event in events:
            drawer.draw(event)
        for stage in ("build", "eval", "profile", "robustness", "invariance"):
            drawer.stage_done(stage, 1.0)
    text = out.getvalue()
    assert "4.39 M parameters, 0.86 G MACs" in text
    assert "top-1 88.30 %, top-5 99.00 %" in text
    assert "EMA" not in text
    assert "V2 70.1 %, A 12.3 %, mCE 64.2 %" in text
    assert "top-1 kept: scale 90 %  " in text
    assert "latency 7.5 ms, 2,100 images/s at batch 64, 1.50x the identity's time" in text


def test_of_receptive_fields_half_of_the_last_level_is_said() -> None:
    sides = {(1, 50): 11, (4, 50): 87, (4, 99): 201}
    events: list[Event] = [
        Measurement("erf", "side", side, "px", f"level={level},share={share},size={size},weights={weights}")
        for size, weights in ((224, "ema"), (224, "random"), (448, "ema"))
        for (level, share), side in sides.items()
    ]
    events.append(
        Measurement("erf", "images", math.nan, "images", "size=448,weights=random", reason="no memory")
    )
    out = io.StringIO()
    with draw.Drawer(Console(file=out, width=120)) as drawer:
        for event in events:
            drawer.draw(event)
        drawer.stage_done("erf", 1.0)
    assert "half the field: 87 px of level 4 at 224 px, 87 px of level 4 at 448 px" in out.getvalue()
