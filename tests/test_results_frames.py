"""`import stmbench.results`: frames with the promised columns and types, and nothing heavy on the way."""

import os
import subprocess
import sys
from pathlib import Path

import measured
import pytest
from measured import IMAGES, TOP1

import stmbench.results as r
from stmbench.store import NewRun, open_store, views


@pytest.fixture
def db(tmp_path: Path, new_run: NewRun) -> str:
    """Two networks; the better one has two seeds."""
    path = str(tmp_path / "results.db")
    with open_store(path) as store:
        for seed, top1 in enumerate((88.0, 89.0)):
            measured.add(
                store, new_run, {TOP1: top1, IMAGES: 2000, "erf.area@level=4": 10.0 + seed}, seed=seed
            )
        measured.add(store, new_run, {TOP1: 80.0, IMAGES: 2000}, mixer="swin")
    return path


def test_a_leaderboard_is_a_frame(db: str) -> None:
    frame = r.leaderboard(db, columns=["area"], sort="top1")
    assert frame[["mixer", "rank", "seeds", "area_n"]].to_numpy().tolist()[0] == ["halo", 1, 2, 2]
    assert frame["top1"].tolist() == [88.5, 80.0]
    assert frame["area"].tolist()[0] == 10.5
    assert frame["area"].isna().tolist() == [False, True]
    types = {name: str(kind) for name, kind in frame.dtypes.items()}
    wanted = {"rank": "Int64", "seeds": "Int64", "area_n": "Int64", "tied": "bool", "top1": "float64"}
    wanted |= dict.fromkeys(("latency", "top1_sd", "area", "area_sd"), "float64")
    assert {name: types[name] for name in wanted} == wanted


def test_its_options_are_the_commands(db: str) -> None:
    assert r.leaderboard(db, where="top1<85")["mixer"].tolist() == ["swin"]
    assert r.leaderboard(db, mixer="halo", limit=1)["seeds"].tolist() == [2]
    assert r.leaderboard(db, pareto="area")["mixer"].tolist() == ["halo"]
    assert r.leaderboard(db, published=True)["difference"].isna().tolist() == [True, True]
    with pytest.raises(ValueError, match="Did you mean 'area'"):
        r.leaderboard(db, columns=["aera"])


def test_nothing_found_is_an_empty_frame_with_its_columns(db: str) -> None:
    frame = r.leaderboard(db, where="top1>100")
    assert frame.empty
    assert str(frame.dtypes["top1"]) == "float64"
    assert list(r.runs(db, where="mixer=pool")) == list(views.columns("runs"))


def test_runs_and_measurements(db: str) -> None:
    runs = r.runs(db, where="seed=0")
    assert sorted(runs["mixer"]) == ["halo", "swin"]
    assert str(runs.dtypes["created"]).endswith("UTC]")
    assert runs["recipe_values"].tolist()[0] == {"train": {"batch_size": 64}}
    found = r.measurements(db, where="name=top1 and mixer=halo")
    assert sorted(found["value"]) == [88.0, 89.0]
    assert [str(found.dtypes[name]) for name in ("value", "step", "seed")] == ["float64", "Int64", "Int64"]
    assert set(found["run"]) <= set(r.runs(db)["run"])


@pytest.mark.parametrize(
    ("function", "told"), [(r.leaderboard, "latency_condition"), (r.runs, ""), (r.measurements, "")]
)
def test_every_column_is_in_the_docstring(db: str, function, told: str) -> None:
    text = function.__doc__
    missing = [name for name in function(db) if name not in text]
    assert not missing, missing


def test_the_database_is_the_environments_by_default(db: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STMBENCH_DB", db)
    assert len(r.runs()) == 3
    with pytest.raises(ValueError, match="No results at"):
        r.leaderboard(db + ".none")


def test_torch_is_not_imported(db: str) -> None:
    code = """
import sys
import stmbench.results as r
assert "pandas" not in sys.modules
r.leaderboard(published=True, pareto="top1"), r.runs(), r.measurements()
assert not {"torch", "timm", "matplotlib", "alembic"} & set(sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "STMBENCH_DB": db}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
