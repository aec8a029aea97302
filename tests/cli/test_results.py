"""The reading commands: what they print, to whom, what they refuse, and what they must not import."""

import dataclasses
import io
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

from stmbench.cli import results
from stmbench.record import Artifact, Measurement
from stmbench.store import NewRun, Store, open_store

app = typer.Typer()
for command in (results.leaderboard, results.runs, results.show):
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
    from stmbench import leaderboard

    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    console = Console(width=80, force_terminal=True, color_system=None, record=True)
    results.summary(console, store, [run.id for run in store.runs()])
    text = console.export_text()
    assert all(cell in text for cell in leaderboard.HEADERS)
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
    Console(file=out, width=200).print(results._numbers(rows))
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

    assert results._duration(timedelta(seconds=seconds)) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(4_389_672, "4,389,672"), (88.705, "88.7"), (2310.55, "2,310.6"), (0.000123456, "0.0001235")],
)
def test_values(value: float, text: str) -> None:
    assert results._value(value) == text
    assert results._value(float("nan")) == "nan"
