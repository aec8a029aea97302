"""The reading commands: what they print, to whom, what they refuse, and what they must not import."""

import dataclasses
import io
import itertools
import json
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner

from stmbench.cli import layout, numbers, results, show
from stmbench.record import Artifact, Measurement
from stmbench.store import NewRun, Store, open_store

app = typer.Typer()
for command in (results.leaderboard, results.runs, show.show):
    app.command()(command)


@pytest.fixture
def db(tmp_path: Path) -> str:
    return str(tmp_path / "stmbench.db")


@pytest.fixture
def store(db: str, new_run: NewRun) -> Iterator[Store]:
    """One finished run of halo, one failed of swin."""
    with open_store(db) as store:
        run = store.create_run(dataclasses.replace(new_run, weights="start.pth", weights_sha256="ab" * 32))
        store.start_stage(run.id, "train")
        for epoch in (1, 2):
            store.record(run.id, Measurement("train", "loss", 2.0 / epoch, step=epoch))
            store.record(run.id, Measurement("train", "top1", 80.0 + epoch, "%", "weights=plain", epoch))
        run.folder.mkdir()
        (run.folder / "plain.safetensors").write_bytes(bytes(2_500_000))
        store.attach(run.id, Artifact("train", "weights", run.folder / "plain.safetensors"), run.folder)
        store.end_stage(run.id, "train")
        store.record(run.id, Measurement("eval", "top1", 88.7, "%", "weights=plain"))
        store.record(run.id, Measurement("eval", "images", 2000, "images", "weights=plain"))
        store.record(run.id, Measurement("profile", "latency", 12.34, "ms", "batch=1,device=cpu"))
        at = "device=cpu,execution=compiled,size=28,threads=2"
        for batch, reason in ((1, ""), (64, "no C++ compiler")):
            value = math.nan if reason else 812.5
            m = Measurement("profile", "throughput", value, "images/s", f"batch={batch},{at}", reason=reason)
            store.record(run.id, m)
        store.end_run(run.id, "done")
        failed = store.create_run(dataclasses.replace(new_run, mixer="swin"))
        store.start_stage(failed.id, "train")
        store.end_run(failed.id, "failed", "the loss is no longer a number [epoch 3]")
        yield store


@pytest.fixture
def read(store: Store, db: str, monkeypatch: pytest.MonkeyPatch):
    """What a command prints."""
    monkeypatch.setenv("STMBENCH_DB", db)

    def read(*arguments: str) -> str:
        done = CliRunner().invoke(app, arguments, catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done.stdout

    return read


def test_the_leaderboard_is_a_table(read) -> None:
    lines = read("leaderboard").splitlines()
    assert lines[0] == "recipe quick (3f9c21aa8b10), data fashion_mini, Some CPU (2 cores) [cpu], fp32"
    assert lines[1].split()[:5] == ["#", "mixer", "scale", "params", "MACs"]
    assert lines[2].split()[:5] == ["1", "halo", "from", "start.pth", "micro"]
    assert "12.3 ms" in lines[2]
    assert "88.70  87.2" in lines[2]
    assert lines[3] == "latency at batch=1; device=cpu"


def test_piped_tables_are_plain_and_never_folded(read, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    for command in (["leaderboard"], ["runs"], ["show", "halo"]):
        text = read(*command)
        assert "\x1b" not in text
        assert not set("─│━┃…") & set(text)
    assert "batch=1, device=cpu" in read("show", "halo")


def test_a_table_fits_80_columns(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    from stmbench import tables

    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    console = Console(width=80, force_terminal=True, color_system=None, record=True)
    results.summary(console, store, [run.id for run in store.runs()])
    text = console.export_text()
    assert all(cell in text for cell in tables.HEADERS)
    assert max(map(len, text.splitlines())) <= 80


def test_a_narrow_terminal_keeps_the_ranking(store: Store) -> None:
    console = Console(width=50, force_terminal=True, color_system=None, record=True)
    results.summary(console, store, [run.id for run in store.runs()])
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= 50
    assert all(name in text for name in ("mixer", "top-1 %", "halo", "88.7", "no room for params"))


@pytest.mark.parametrize("form", ["markdown", "csv", "json", "latex"])
def test_every_format_is_printed(read, form: str) -> None:
    text = read("leaderboard", "--format", form, "--mixer", "halo", "--limit", "1", "--sort", "latency")
    assert "halo" in text
    if form == "json":
        assert json.loads(text)[0]["top1"] == 88.7


def test_runs_are_listed_with_their_state(read, store: Store) -> None:
    halo, swin = store.run("halo").id, store.run("swin").id
    header, first, second = read("runs").splitlines()
    assert header.split() == ["run", "state", "recipe", "data", "seed", "started", "took"]
    assert first.split()[:5] == [swin, "failed", "quick", "fashion_mini", "0"]  # the newest first
    assert second.split()[:2] == [halo, "done"]
    assert halo not in read("runs", "--state", "failed")
    assert swin not in read("runs", "--mixer", "halo")
    assert halo not in read("runs", "--limit", "1")
    assert read("runs", "--state", "interrupted") == "No runs match.\n"


def test_show_tells_the_whole_story(read) -> None:
    text = " ".join(read("show", "halo").split())
    for part in (
        "state done",
        "network halo micro",
        "weights start.pth (sha256 abababababab)",
        "recipe quick (3f9c21aa8b10)",
        "overrides train.batch_size=64",
        "device Some CPU (2 cores) [cpu], fp32, 2 threads",
        "eval top1 88.7 % weights=plain",
        "profile latency 12.34 ms batch=1, device=cpu",
        "profile throughput 812.5 images/s batch=1 ",
        "profile the rest at device=cpu, execution=compiled, size=28, threads=2",
        "profile throughput failed images/s batch=64: no C++ compiler",
        "epoch loss top1 plain 1 2 81 2 1 82",
        "plain.safetensors weights 2.50 MB",
    ):
        assert part in text, part
    assert "failed: the loss is no longer a number [epoch 3]" in read("show", "swin")


def test_what_all_conditions_share_is_said_once() -> None:
    at = "device=cpu,size=28,threads=2"
    rows = [Measurement("profile", "throughput", 9.0, "images/s", f"batch={batch},{at}") for batch in (1, 64)]
    out = io.StringIO()
    Console(file=out, width=200).print(*numbers.told(rows))
    assert out.getvalue().count("threads=2") == 1
    assert "batch=64" in out.getvalue()


def test_nothing_to_show(read, tmp_path: Path) -> None:
    assert read("leaderboard", "--mixer", "dwconv").startswith("No finished runs match.")
    for command in (["leaderboard"], ["runs"], ["show", "halo"]):
        with pytest.raises(ValueError, match=r"No results at .*none\.db yet"):
            CliRunner().invoke(app, [*command, "--db", str(tmp_path / "none.db")], catch_exceptions=False)
    assert not (tmp_path / "none.db").exists()


@pytest.mark.parametrize("command", [["leaderboard"], ["runs"], ["show", "halo"], ["leaderboard", "--help"]])
def test_reading_imports_neither_torch_nor_pandas(store: Store, db: str, command: list[str]) -> None:
    code = """
import sys
from stmbench.cli import app
try:
    app(sys.argv[1:])
except SystemExit as done:
    assert not done.code, done.code
heavy = {"torch", "timm", "pandas", "alembic", "sqlalchemy.orm"} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", code, *command], env=_env(db), capture_output=True, check=True)


def _env(db: str) -> dict[str, str]:
    import os

    return {**os.environ, "STMBENCH_DB": db}


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.04, "0.0 s"), (59.94, "59.9 s"), (205, "3:25"), (3_600 * 27 + 62, "27:01:02")]
)
def test_durations(seconds: float, text: str) -> None:
    from datetime import timedelta

    assert layout.duration(timedelta(seconds=seconds)) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(4_389_672, "4,389,672"), (88.705, "88.7"), (2310.55, "2,310.6"), (0.000123456, "0.0001235")],
)
def test_values(value: float, text: str) -> None:
    assert layout.value(value) == text
    assert layout.value(float("nan")) == "nan"


def told(rows: list[Measurement], width: int | None = None) -> str:
    """What `show` makes of the numbers, in a terminal of some width, or (None) in a pipe."""
    out = io.StringIO()
    console = Console(file=out, width=width, force_terminal=width is not None, color_system=None)
    layout.print_parts(*numbers.told(rows), console=console)
    return out.getvalue()


def with_interval(name: str, value: float, half: float, at: str, unit: str = "%") -> list[Measurement]:
    ends = (("", 0.0), (".low", -half), (".high", half))
    return [Measurement("look", name + end, value + shift, unit, at) for end, shift in ends]


def test_an_interval_stands_behind_its_number() -> None:
    text = told([*with_interval("top1", 88.25, 1.3, "weights=ema"), Measurement("look", "x.low", 3.0)])
    lines = [line.split() for line in text.splitlines()]
    assert lines[0] == ["stage", "number", "value", "95", "%", "unit", "condition"]
    assert ["look", "top1", "88.25", f"(87{layout.DASH}89.5)", "%", "weights=ema"] in lines
    assert ["look", "x.low", "3"] in lines  # nobody's interval
    assert len(lines) == 3


def test_strengths_are_one_line_with_a_bar_each() -> None:
    rows = []
    for transform, values in {
        "shift": (80.0, 60.0, 40.0, 20.0, 0.0),
        "blur": (40.0, 35.0),
        "flip": (78.0,),
    }.items():
        for i, value in enumerate(values):
            at = f"protocol=sight/1,strength={8 * i},transform={transform},weights=plain"
            rows += with_interval("top1", value, 1.0, at)
    rows.append(Measurement("look", "auc", 0.5, "", "protocol=sight/1,transform=shift,weights=plain"))
    failed = "protocol=sight/1,strength=99,transform=shift,weights=plain"
    rows.append(Measurement("look", "top1", math.nan, "%", failed, reason="no image left"))
    lines = told(rows).splitlines()
    caption = "look by strength  protocol=sight/1, weights=plain"
    table = [line.split() for line in lines[lines.index(caption) + 1 :]]
    assert table == [
        ["number", "transform", "strength", "curve", "first", "last"],
        ["top1", "%", "blur", f"0{layout.DASH}8", "▅▄", "40", "35"],  # of the 80 that is the most anywhere
        ["top1", "%", "flip", "0", "█", "78"],
        ["top1", "%", "shift", f"0{layout.DASH}32", "█▆▅▃▁", "80", "0"],
    ]
    assert any(line.split()[:3] == ["look", "auc", "0.5"] for line in lines)  # one alone is no table
    assert any(line.split()[:3] == ["look", "top1", "failed"] and "no image left" in line for line in lines)


def test_shares_are_columns_and_things_are_lines() -> None:
    rows = []
    for level, side in ((1, 3.0), (2, 7.0), (10, 15.0)):
        for share in (100, 5, 50):
            rows += with_interval("side", side * share, 1.0, f"level={level},share={share},size=28", "px")
        rows.append(Measurement("look", "offset", level / 2, "px", f"level={level},size=28"))
        rows.append(Measurement("look", "images", 500, "images", f"level={level},size=28"))
    lines = [line.split() for line in told(rows).splitlines()]
    assert lines[0] == ["look", "by", "share", "size=28"]
    assert lines[1] == ["number", "level", "5", "%", "50", "%", "100", "%"]
    cells = "15 (14-16) 150 (149-151) 300 (299-301)".replace("-", layout.DASH)
    assert " ".join(lines[2]) == f"side px 1 {cells}"
    assert [line[2] for line in lines[2:5]] == ["1", "2", "10"]
    assert lines[6:] == [
        ["look", "by", "level", "size=28"],
        ["level", "offset", "px", "images"],
        ["1", "0.5", "500"],
        ["2", "1", "500"],
        ["10", "5", "500"],
    ]


@pytest.mark.parametrize("width", [80, 200])
def test_a_thousand_numbers_fit_a_terminal(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    common = "precision=fp32,protocol=invariance/1,size=224,weights=plain"
    rows = []
    for name, transform, strength in itertools.product(
        ("top1", "top5", "consistency", "cross_entropy"), ("rotation_before", "translation"), range(0, 64, 2)
    ):
        rows += with_interval(
            name, 90.123 - strength, 1.2, f"{common},strength={strength},transform={transform}"
        )
    for weights, level, share, name in itertools.product(
        ("plain", "random"), range(1, 5), (20, 30, 50, 99), ("side", "area")
    ):
        at = f"level={level},precision=fp32,protocol=erf/1,share={share},size=448,weights={weights}"
        rows += with_interval(name, 123.456, 4.321, at, "px")
    assert len(rows) > 900
    text = told(rows, width)
    assert max(map(len, text.splitlines())) <= width
    assert len(text.splitlines()) < 40
    assert (f"123.5 (119{layout.DASH}128)" in text) == (width == 200)
    assert ("no room for the 95 % intervals" in text) == (width == 80)
    narrow = told(rows, 40)  # too narrow for any such table: every number has its own line
    assert narrow.count("area") == narrow.count("side") == 32


def test_bars() -> None:
    assert layout.sparkline([0, 1, 2, 3, 4, 5, 6, 7]) == layout.BARS
    assert layout.sparkline([7, math.nan, 0]) == "█ ▁"
    assert layout.sparkline([-1, 0, 1]) == "▁▅█"
    assert layout.sparkline([50], most=100) == "▅"
    assert layout.sparkline([0.0, 0.0]) == "▁▁"
    assert layout.sparkline([], most=1) == ""
    long = layout.sparkline(list(range(300)), width=8)
    assert long == layout.BARS


def test_training_curves_have_bars_on_top() -> None:
    rows = [Measurement("train", "loss", 8.0 - epoch, step=epoch) for epoch in (1, 2, 3)]
    out = io.StringIO()
    table = show._curves(rows)
    Console(file=out, width=80).print(table)
    assert [line.split() for line in out.getvalue().splitlines()][:3] == [
        ["epoch", "loss"],
        ["all", "█▇▆"],
        ["1", "7"],
    ]
