"""The reading commands: what they print, to whom, what they refuse, and what they must not import."""

import dataclasses
import io
import itertools
import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import measured
import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner

from stmbench.cli import export, layout, numbers, results, show
from stmbench.reading import tables
from stmbench.reading.leaderboard import rank
from stmbench.record import Artifact, Measurement
from stmbench.store import NewRun, Store, open_store

app = typer.Typer()
for command in (results.leaderboard, results.runs, show.show, export.export):
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
        store.record(run.id, Measurement("train", "cost", 2.5, "s"))
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
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    console = Console(width=80, force_terminal=True, color_system=None, record=True)
    results.summary(console, store, [run.id for run in store.runs()])
    text = console.export_text()
    assert all(cell in text for cell in tables.HEADERS)
    assert max(map(len, text.splitlines())) <= 80


def test_no_cell_is_cut_at_any_width(
    tmp_path: Path, new_run: NewRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    units = {"memory": "bytes"}
    with open_store(str(tmp_path / "seeds.db")) as store:
        for seed, mixer in itertools.product(range(2), ("halo", "dwconv")):
            found = {measured.TOP1: 88.0 + seed, measured.IMAGES: 2000, "build.parameters": 4.4e6}
            found |= {
                "build.macs": 1.23e9,
                "profile.latency@batch=1": 12.3,
                "profile.memory@batch=1": 5e8 + seed,
            }
            measured.add(store, new_run, found, units, mixer=mixer, seed=seed)
        [group] = rank(store, columns=["memory@batch=1"])
    for width in range(40, 130):
        console = Console(
            width=width, force_terminal=True, color_system=None, record=True, file=io.StringIO()
        )
        console.print(results._Board(group))
        lines = console.export_text().splitlines()
        header = re.split(r" {2,}", next(line for line in lines if "mixer" in line).strip())
        assert set(header) <= {*tables.HEADERS, "batch=1"}, (width, header)
        heads: dict[str, str] = dict(zip(("#", *tables.SHOWN), tables.HEADERS, strict=True))
        shown = [name for name in tables.shown(group) if heads.get(name, "batch=1") in header]
        row = " ".join(next(line for line in lines if "halo" in line).split())
        assert row == " ".join(tables.cells(group.rows[1], group, shown)), width
        assert max(map(len, lines)) <= width


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


def test_a_file_has_the_format_of_its_name(read, tmp_path: Path) -> None:
    for suffix, part in {
        ".csv": "88.7,",
        ".md": "| halo",
        ".tex": "halo",
        ".html": "<td",
        ".txt": "halo",
    }.items():
        path = tmp_path / f"out{suffix}"
        assert read("leaderboard", "-o", str(path), "--columns", "mixer,top1,cost") == f"{path}: 1 row\n"
        assert part in path.read_text(encoding="utf-8")
    assert (
        json.loads(read("leaderboard", "--format", "json", "--columns", "train.cost"))[0]["train.cost"] == 2.5
    )
    with pytest.raises(ValueError, match="does not say its format"):
        read("leaderboard", "-o", str(tmp_path / "out.docx"))


def test_parquet_goes_to_files_and_pipes_but_not_to_a_screen(
    read, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pyarrow")
    path = tmp_path / "out.parquet"
    read("leaderboard", "-o", str(path))
    assert path.read_bytes()[:4] == b"PAR1"
    done = CliRunner().invoke(app, ["leaderboard", "--format", "parquet"], catch_exceptions=False)
    assert done.stdout_bytes == path.read_bytes()
    monkeypatch.setattr(results, "_screen", lambda: True)
    with pytest.raises(ValueError, match="write it into a file with -o"):
        read("leaderboard", "--format", "parquet")


def test_columns_and_filters(read) -> None:
    lines = read("leaderboard", "--columns", "mixer,cost", "--where", "top1>70 and scale=micro").splitlines()
    assert lines[1].split() == ["#", "mixer", "cost", "s"]
    assert lines[2].split() == ["1", "halo", "from", "start.pth", "2.5"]
    assert read("leaderboard", "--where", "top1>90").startswith("No finished runs match.")
    assert "not comparable with the published results" in read("leaderboard", "--published")
    with pytest.raises(ValueError, match="'top1>>70': expected a value at character 6, not '>'"):
        read("leaderboard", "--where", "top1>>70")


def test_export(read, tmp_path: Path) -> None:
    path = tmp_path / "out.csv"
    assert read("export", "-o", str(path), "--where", "stage=eval") == f"{path}: 2 measurements\n"
    assert (
        read("export", "-o", str(path), "--table", "stages", "--where", "mixer=swin") == f"{path}: 1 stage\n"
    )
    assert "failed" in path.read_text(encoding="utf-8")


def test_runs_are_listed_with_their_state(read, store: Store) -> None:
    halo, swin = store.run("halo").id, store.run("swin").id
    header, first, second = read("runs").splitlines()
    assert header.split() == ["run", "state", "recipe", "data", "seed", "started", "took"]
    assert first.split()[:5] == [swin, "failed", "quick", "fashion_mini", "0"]  # the newest first
    assert second.split()[:2] == [halo, "done"]
    assert halo not in read("runs", "--state", "failed")
    assert swin not in read("runs", "--mixer", "halo")
    assert halo not in read("runs", "--limit", "1")
    assert swin not in read("runs", "--where", "mixer~HAL and seed=0", "--limit", "1")
    assert read("runs", "--where", "seed>0") == "No runs match.\n"
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
        "eval number value unit condition images 2,000 images weights=plain top1 88.7 % weights=plain",
        "profile device=cpu, execution=compiled, size=28, threads=2",
        "latency 12.34 ms batch=1, device=cpu",
        "throughput 812.5 images/s batch=1 ",
        "throughput failed images/s batch=64: no C++ compiler",
        f"curve epochs 1{layout.DASH}2 first best epoch last",
        "loss █▁ 2 1 2 1",
        "top1 plain ▁█ 81 82 2 82",
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
    assert "batch 64" in out.getvalue()


def test_nothing_to_show(read, tmp_path: Path) -> None:
    assert read("leaderboard", "--mixer", "dwconv").startswith("No finished runs match.")
    for command in (["leaderboard"], ["runs"], ["show", "halo"]):
        with pytest.raises(ValueError, match=r"No results at .*none\.db yet"):
            CliRunner().invoke(app, [*command, "--db", str(tmp_path / "none.db")], catch_exceptions=False)
    assert not (tmp_path / "none.db").exists()


@pytest.mark.parametrize(
    "command",
    [
        ["leaderboard"],
        ["leaderboard", "--published", "--columns", "cost", "--where", "top1>0", "--format", "csv"],
        ["runs", "--where", "seed=0"],
        ["show", "halo"],
        ["export", "-o", os.devnull + ".csv", "--help"],
        ["leaderboard", "--help"],
    ],
)
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
    assert lines[:2] == [["look"], ["number", "value", "95", "%", "unit", "condition"]]
    assert lines[2] == ["top1", "88.25", f"(87{layout.DASH}89.5)", "%", "weights=ema"]
    assert lines[3] == ["x.low", "3"]  # nobody's interval
    assert len(lines) == 4


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
    assert any(line.split()[:2] == ["auc", "0.5"] for line in lines)  # one alone is no table
    assert any(line.split()[:2] == ["top1", "failed"] and "no image left" in line for line in lines)


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
    looks = itertools.product(("plain", "random"), range(1, 5), (20, 30, 50, 99), ("side", "area"))
    for i, (weights, level, share, name) in enumerate(looks):
        at = f"level={level},precision=fp32,protocol=erf/1,share={share},size=448,weights={weights}"
        rows += with_interval(name, 123.456 + i, 4.321, at, "px")
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
    assert layout.sparkline([80, 84, 88], least=80) == "▁▅█"
    assert layout.sparkline([0.0, 0.0]) == "▁▁"
    assert layout.sparkline([], most=1) == ""
    long = layout.sparkline(list(range(300)), width=8)
    assert long == layout.BARS


def curves(epochs: int, width: int) -> list[str]:
    """What `show` makes of a loss that falls until shortly before its end, and a rate that changes little."""
    values = {e: 2.0 - e / epochs if e < epochs else 1.5 for e in range(1, epochs + 1)}
    rows = [Measurement("train", "loss", value, step=e) for e, value in values.items()]
    rows += [Measurement("train", "images_per_second", 100 + e % 2, step=e) for e in values]
    out = io.StringIO()
    console = Console(file=out, width=width, force_terminal=True, color_system=None)
    console.print(show._Curves(show._curves(rows)))
    return [line.rstrip() for line in out.getvalue().splitlines()]


def test_a_curve_is_one_line_with_its_first_best_and_last_number() -> None:
    header, loss, rate = curves(4, 80)
    assert header.split() == f"curve epochs 1{layout.DASH}4 first best epoch last".split()
    assert loss.split() == ["loss", "█▅▁▅", "1.75", "1.25", "3", "1.5"]
    assert rate.split()[3:] == ["████", "101", "100"]  # from 0, with nothing that is best


@pytest.mark.parametrize("width", [50, 80, 200])
def test_300_epochs_fit_a_terminal(width: int) -> None:
    lines = curves(300, width)
    assert len(lines) == (5 if width == 50 else 3)  # a long name is folded
    assert max(map(len, lines)) <= width
    bars = [word for line in lines for word in line.split() if word[0] in layout.BARS]
    assert {len(bar) for bar in bars} == {{50: 12, 80: 34, 200: 60}[width]}
    assert lines[1].split()[-3:] == ["1.003", "299", "1.5"]


def test_every_epoch_is_told_where_asked_for(read) -> None:
    text = " ".join(read("show", "halo", "--epochs").split())
    assert "epoch loss top1 plain 1 2 81 2 1 82" in text
    assert "epoch loss top1 plain" not in " ".join(read("show", "halo").split())


def test_parts_of_the_network_and_batches_are_tables() -> None:
    at = "height=28,width=28"
    rows = [
        Measurement(
            "build", f"{name}{end}", value, "MACs" if name == "macs" else "", at if name == "macs" else ""
        )
        for end, value in {"": 9, ".stem": 1, ".level1": 5, ".head": 3}.items()
        for name in ("macs", "parameters")
    ]
    rows += [Measurement("build", name, 2, "MACs", at) for name in ("macs.mixers", "macs.level1.mixers")]
    rows.append(Measurement("build", "macs.padding", 4, "MACs", at))
    for batch in (1, 8, 64):
        at = f"backend=plain,batch={batch},threads=2"
        rows.append(Measurement("profile", "peak_memory", 5e8 + 1e6 * batch, "bytes", at))
    rows.append(Measurement("profile", "latency", 9.5, "ms", "backend=plain,batch=1,threads=2"))
    lines = [line.split() for line in told(rows).splitlines()]
    assert lines[0] == ["build", "height=28,", "width=28"]
    assert [line[:2] for line in lines[2:5]] == [["macs", "9"], ["parameters", "9"], ["macs.padding", "4"]]
    at = lines.index(["build", "by", "part"])
    assert lines[at + 1 : at + 7] == [
        ["part", "macs", "MACs", "parameters"],
        ["stem", "1", "1"],
        ["level1", "5", "5"],
        ["level1.mixers", "2"],
        ["mixers", "2"],
        ["head", "3", "3"],
    ]
    at = lines.index(["profile", "by", "batch", "backend=plain,", "threads=2"])
    assert lines[at + 1 :] == [
        ["number", "batch", "1", "batch", "8", "batch", "64"],
        ["latency", "ms", "9.5"],
        ["peak_memory", "MB", "501", "508", "564"],
    ]


def test_what_was_the_same_under_every_condition_is_one_line() -> None:
    rows = [
        Measurement("erf", "images", 100.0, "images", f"size={size},weights={weights}")
        for size in (28, 56)
        for weights in ("plain", "random")
    ]
    rows += [
        Measurement("erf", "side", math.nan, "px", f"level={level},shift=1", reason="no interior left")
        for level in (3, 4)
    ]
    rows += [
        Measurement("erf", "skipped", skipped, "", f"size={size}") for size, skipped in ((28, 0), (56, 1))
    ]
    rows += [
        Measurement("erf", "cost", 2.0, "", at) for at in ("size=28,weights=plain", "size=56,weights=random")
    ]
    assert [line.split() for line in told(rows).splitlines()][2:] == [
        ["images", "100", "images", "size=28|56,", "weights=plain|random"],
        ["side", "failed", "px", "level=3|4,", "shift=1:", "no", "interior", "left"],
        ["skipped", "0", "size=28"],
        ["skipped", "1", "size=56"],
        ["cost", "2", "size=28,", "weights=plain"],  # not under every one of the four
        ["cost", "2", "size=56,", "weights=random"],
    ]


def test_only_the_build_stage_has_parts() -> None:
    rows = [Measurement("look", f"{name}.worst", 5.0, "%", "strength=1") for name in ("top1", "top5")]
    assert [line.split()[0] for line in told(rows).splitlines()[2:]] == ["top1.worst", "top5.worst"]
