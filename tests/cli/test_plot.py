"""`stmbench plot roofline`: a picture per machine from the results database."""

import dataclasses
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from stmbench.cli import app
from stmbench.measure import roofline
from stmbench.measure.roofline import Ceilings, Point
from stmbench.record import Measurement, condition
from stmbench.store import NewRun, open_store

Add = Callable[..., None]
Drawn = dict[str, tuple[list[Point], Ceilings, str]]


@pytest.fixture
def db(tmp_path: Path) -> str:
    path = str(tmp_path / "results.db")
    open_store(path).close()
    return path


@pytest.fixture
def add(db: str, new_run: NewRun) -> Add:
    """Put a finished run into the database, profiled at batches 1 and 64 unless told otherwise."""

    def add(mixer: str, *, rate: float = 30.0, profiled: bool = True, **fields: Any) -> None:
        with open_store(db) as store:
            run = store.create_run(dataclasses.replace(new_run, mixer=mixer, **fields))

            def put(name: str, value: float, **under: object) -> None:
                store.record(run.id, Measurement("profile", name, value, "", condition(**under)))

            store.record(run.id, Measurement("build", "macs", 1e6))
            put("ceiling.copy", 9e9, threads=run.threads)
            put("ceiling.matmul", 60e9, precision="fp32", threads=run.threads)
            for batch, share in ((1, rate / 2), (64, rate)) if profiled else ():
                put("intensity", 10.0, batch=batch, precision="fp32")
                put("matmul_share", share, batch=batch, precision="fp32")
            store.end_run(run.id, "done")

    return add


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Drawn:
    """What is drawn, by the file's name, instead of drawing it."""
    found: Drawn = {}

    def draw(points: list[Point], ceilings: Ceilings, path: Path, title: str) -> None:
        found[path.name] = (points, ceilings, title)

    monkeypatch.setattr(roofline, "draw", draw)
    return found


def plot(db: str, *options: str) -> Result:
    return CliRunner().invoke(app, ["plot", "roofline", "--db", db, *options])


def test_the_best_batch_of_every_model(db: str, add: Add, drawn: Drawn) -> None:
    add("halo", rate=30)
    add("timm:resnet18", scale="", weights="weights/w.pth", rate=40)
    outcome = plot(db)
    assert outcome.stdout == "roofline.png: 2 points, Some CPU (2 cores)\n"
    points, ceilings, title = drawn["roofline.png"]
    assert {p.network: p.rate for p in points} == {
        "halo micro": pytest.approx(18e9),
        "timm:resnet18 from w.pth": pytest.approx(24e9),
    }
    assert {p.parts["batch"] for p in points} == {"64"}
    assert (ceilings, title) == (Ceilings(9e9, {"fp32": 60e9}), "Some CPU (2 cores) [cpu]")


def test_the_newest_run_gives_a_models_points(db: str, add: Add, drawn: Drawn) -> None:
    add("halo", rate=50, seed=0)
    add("halo", rate=20, seed=1)
    plot(db)
    assert [point.rate for point in drawn["roofline.png"][0]] == [pytest.approx(12e9)]


def test_a_picture_per_machine(db: str, add: Add, drawn: Drawn) -> None:
    add("halo")
    add("halo", hardware="Some GPU", device="cuda")
    plot(db, "-o", "picture.svg")
    assert {name: title for name, (_, _, title) in drawn.items()} == {
        "picture-1.svg": "Some GPU [cuda]",
        "picture-2.svg": "Some CPU (2 cores) [cpu]",
    }


def test_filters(db: str, add: Add, drawn: Drawn) -> None:
    add("halo")
    add("swin")
    plot(db, "--mixer", "swin")
    assert [point.network for point in drawn["roofline.png"][0]] == ["swin micro"]
    outcome = plot(db, "--mixer", "swim")
    assert "Did you mean 'swin'?" in str(outcome.exception)


def test_nothing_to_draw(db: str, add: Add, drawn: Drawn) -> None:
    add("halo", profiled=False)
    outcome = plot(db)
    assert (outcome.exit_code, drawn) == (0, {})
    assert outcome.stdout.count("\n") == 1
    assert "stmbench run --stage profile" in outcome.stdout


def test_another_kind_of_file_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    outcome = plot(str(tmp_path / "none.db"), "-o", "picture.jpg")
    assert "A picture is a .png, .svg, .pdf file" in str(outcome.exception)


def test_the_picture_without_torch(db: str, add: Add, tmp_path: Path) -> None:
    add("halo")
    path = tmp_path / "roofline.png"
    code = (
        "import sys; from stmbench.cli import app; "
        f"app(['plot', 'roofline', '--db', {db!r}, '-o', {str(path)!r}], standalone_mode=False); "
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
    assert path.read_bytes().startswith(b"\x89PNG")
