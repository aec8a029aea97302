"""`stmbench plot`: pictures from the results database, files and words."""

import dataclasses
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from stmbench.cli import app, main
from stmbench.measure import roofline
from stmbench.measure.roofline import Ceilings, Point
from stmbench.record import Artifact, Measurement, condition
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


def plot(db: str, *options: str, picture: str = "roofline") -> Result:
    return CliRunner().invoke(app, ["plot", picture, "--db", db, *options])


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


@pytest.fixture
def look(db: str, new_run: NewRun) -> Callable[..., Path]:
    """Put a finished run with every kind of number into the database; return the file of its maps."""

    def look(mixer: str = "halo", **fields: Any) -> Path:
        with open_store(db) as store:
            values = {"data": {"image_size": 28, "crop_pct": 0.875}}
            run = store.create_run(
                dataclasses.replace(new_run, mixer=mixer, **{"recipe_values": values} | fields)
            )
            run.folder.mkdir()

            def put(stage: str, name: str, value: float, step: int = 0, **under: object) -> None:
                store.record(run.id, Measurement(stage, name, value, "", condition(**under), step))

            put("build", "macs", 1e6)
            put("eval", "top1", 88.0, weights="plain")
            put("eval", "images", 2000, weights="plain")
            put("train", "loss", 0.5, step=1)
            put("train", "top1", 88.0, step=1, weights="plain")
            at = {"precision": "fp32", "size": 28, "weights": "plain"}
            for protocol in ("invariance/1", "equivariance/1"):
                put("invariance", "images", 2000, protocol=protocol, **at)
            for step in (1, 2):
                blur = {"transform": "blur", "strength": step, "protocol": "invariance/1"}
                put("invariance", "consistency", 80 / step, **blur, **at)
                put(
                    "invariance",
                    "equivariance",
                    1 / step,
                    level=1,
                    shift=step,
                    protocol="equivariance/1",
                    **at,
                )
            file = run.folder / "erf_28_plain.npz"
            np.savez(file, maps=np.full((4, 28, 28), 1 / 784), centres=np.full((4, 2), 14))
            erf = condition(protocol="erf/1", size=28, weights="plain")
            store.record(run.id, Measurement("erf", "images", 500, "images", erf))
            store.attach(run.id, Artifact("erf", "erf", file, erf), run.folder)
            store.end_run(run.id, "done")
        return file

    return look


PICTURES = ("erf", "invariance", "equivariance", "curves", "pareto")
SUFFIXES = {".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF"}


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("picture", PICTURES)
def test_a_picture_and_its_caption(
    db: str, look: Callable[..., Path], tmp_path: Path, picture: str, suffix: str
) -> None:
    look()
    path = tmp_path / f"picture{suffix}"
    outcome = plot(db, "-o", str(path), picture=picture)
    assert outcome.exception is None
    assert path.read_bytes().startswith(SUFFIXES[suffix])
    assert outcome.stdout.startswith(f"{path}: ")
    assert (
        "Data fashion_mini (0123456789ab), recipe quick (3f9c21aa8b10), scale micro, n = " in outcome.stdout
    )
    assert "seed 0" in outcome.stdout


@pytest.mark.parametrize("picture", PICTURES)
def test_a_picture_for_each_recipe(db: str, look: Callable[..., Path], tmp_path: Path, picture: str) -> None:
    look("halo")
    look("swin", recipe_digest="000000000000")
    outcome = plot(db, "-o", str(tmp_path / "picture.svg"), picture=picture)
    assert sorted(path.name for path in tmp_path.glob("*.svg")) == ["picture-1.svg", "picture-2.svg"]
    one, other = outcome.stdout.splitlines()
    assert "000000000000" in (one + other)
    assert "3f9c21aa8b10" in (one + other)


@pytest.mark.parametrize("picture", PICTURES)
def test_filters_of_every_picture(db: str, look: Callable[..., Path], tmp_path: Path, picture: str) -> None:
    look("halo", seed=3)
    look("swin", seed=4)
    outcome = plot(db, "--mixer", "swin", "-o", str(tmp_path / "picture.svg"), picture=picture)
    assert "seed 4" in outcome.stdout
    wrong = plot(db, "--scale", "mikro", "-o", str(tmp_path / "picture.svg"), picture=picture)
    assert "Did you mean 'micro'?" in str(wrong.exception)


@pytest.mark.parametrize(
    ("picture", "options", "command"),
    [
        ("erf", (), "stmbench run --stage train,erf."),
        ("erf", ("--size", "448"), "--set 'erf.sizes=[448]'."),
        ("invariance", (), "stmbench run --stage train,invariance."),
        (
            "invariance",
            ("--protocol", "invariance/published"),
            """--set 'invariance.protocols=["invariance/published"]'.""",
        ),
        ("equivariance", (), "stmbench run --stage train,invariance."),
        ("curves", (), "stmbench run --stage train."),
        ("pareto", (), "stmbench run --stage build,train,eval,profile."),
    ],
)
def test_nothing_to_draw_names_the_command_that_measures_it(
    db: str, tmp_path: Path, picture: str, options: tuple[str, ...], command: str
) -> None:
    outcome = plot(db, *options, "-o", str(tmp_path / "picture.png"), picture=picture)
    assert outcome.exit_code == 0
    assert outcome.stdout.count("\n") == 1
    assert outcome.stdout.rstrip().endswith(command)
    assert not list(tmp_path.glob("picture*"))


@pytest.mark.parametrize("picture", PICTURES)
def test_every_picture_refuses_other_files_first(tmp_path: Path, picture: str) -> None:
    outcome = plot(str(tmp_path / "none.db"), "-o", "picture.jpg", picture=picture)
    assert "A picture is a .png, .svg, .pdf file" in str(outcome.exception)
    outcome = plot(str(tmp_path / "none.db"), "-o", str(tmp_path / "none" / "a.png"), picture=picture)
    assert "There is no folder" in str(outcome.exception)


def test_maps_that_are_gone_are_one_line(
    db: str, look: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    file = look()
    file.unlink()
    monkeypatch.setattr(sys, "argv", ["stmbench", "plot", "erf", "--db", db, "-o", str(tmp_path / "a.png")])
    with pytest.raises(SystemExit) as exit_:
        main()
    assert exit_.value.code == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert str(file) in error


def test_pictures_without_torch(db: str, add: Add, look: Callable[..., Path], tmp_path: Path) -> None:
    add("swin", recipe_values={"data": {"image_size": 28}})
    look()
    code = (
        "import sys; from stmbench.cli import app\n"
        f"for picture in {('roofline', *PICTURES)!r}:\n"
        f"    path = {str(tmp_path)!r} + f'/{{picture}}.png'\n"
        f"    app(['plot', picture, '--db', {db!r}, '-o', path], standalone_mode=False)\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
    assert (tmp_path / "roofline.png").read_bytes().startswith(b"\x89PNG")
