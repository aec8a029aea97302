"""Tables as files: every row once, in every format, chosen, typed, in little memory, whole or not at all."""

import csv
import json
import re
import sqlite3
import tracemalloc
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import measured
import pytest
from sqlalchemy import insert

from stmbench.reading import export
from stmbench.record import Artifact
from stmbench.store import NewRun, Store, open_store, tables, views

FORMATS = (".csv", ".jsonl", ".db", ".parquet")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with open_store(str(tmp_path / "results.db")) as store:
        yield store


@pytest.fixture
def runs(store: Store, new_run: NewRun) -> list[str]:
    """A run of halo with three numbers, one of them none; one of swin that has begun and failed."""
    numbers = {"eval.top1@weights=plain": 88.5, "erf.area@level=4,share=50": 1 / 3, "erf.side": float("nan")}
    halo = measured.add(store, new_run, numbers, {"top1": "%"})
    run = store.create_run(new_run)
    run.folder.mkdir()
    (run.folder / "a.bin").write_bytes(b"12345")
    store.start_stage(run.id, "train")
    store.attach(run.id, Artifact("train", "weights", run.folder / "a.bin", "weights=plain"), run.folder)
    store.end_run(run.id, "failed", "no, 'quotes'")
    return [halo, run.id]


def read(path: Path, table: str = "measurements") -> list[dict[str, Any]]:
    """The rows of a file, as its format has them."""
    match path.suffix:
        case ".csv":
            with path.open(newline="", encoding="utf-8") as file:
                return list(csv.DictReader(file))
        case ".jsonl":
            return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        case ".db":
            with closing(sqlite3.connect(path)) as file:
                file.row_factory = sqlite3.Row
                return [dict(row) for row in file.execute(f"SELECT * FROM {table}")]
        case _:
            return pytest.importorskip("pyarrow.parquet").read_table(path).to_pylist()


@pytest.mark.parametrize("suffix", FORMATS)
def test_every_measurement_is_a_row_with_the_facts_of_its_run(
    store: Store, runs: list[str], tmp_path: Path, suffix: str
) -> None:
    path = tmp_path / f"out{suffix}"
    assert export.write(store, path) == 3
    rows = read(path)
    assert [(row["run"], row["mixer"], row["stage"], row["name"], row["condition"]) for row in rows] == [
        (runs[0], "halo", "erf", "area", "level=4,share=50"),
        (runs[0], "halo", "erf", "side", ""),
        (runs[0], "halo", "eval", "top1", "weights=plain"),
    ]
    assert list(rows[0]) == list(views.columns("measurements"))
    empty = "" if suffix == ".csv" else None
    values = [row["value"] if row["value"] == empty else float(row["value"]) for row in rows]
    assert values == [1 / 3, empty, 88.5]  # to the last digit
    if suffix != ".csv":
        assert {type(row["seed"]) for row in rows} == {int}
    assert not list(tmp_path.glob(".out*"))


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("table", views.TABLES)
def test_every_table_in_every_format(
    store: Store, runs: list[str], tmp_path: Path, table: str, suffix: str
) -> None:
    path = tmp_path / f"out{suffix}"
    count = export.write(store, path, table)
    rows = read(path, table)
    assert len(rows) == count == {"measurements": 3, "runs": 2, "stages": 1, "files": 1}[table]
    assert {row["run"] for row in rows} <= set(runs)


def test_lists_tables_and_times_survive(store: Store, runs: list[str], tmp_path: Path) -> None:
    created = {run.id: run.created for run in store.runs()}
    for suffix in FORMATS:
        export.write(store, tmp_path / f"out{suffix}", "runs")
        for row in read(tmp_path / f"out{suffix}", "runs"):
            values = row["recipe_values"] if suffix == ".jsonl" else json.loads(row["recipe_values"])
            assert values == {"train": {"batch_size": 64}}
            time = created[row["run"]]
            assert row["created"] == (time if suffix == ".parquet" else time.isoformat())
            assert row["git_dirty"] in (False, "False")


def test_rows_are_chosen_by_their_own_fields_and_their_runs(
    store: Store, runs: list[str], tmp_path: Path
) -> None:
    def count(where: str, table: str = "measurements") -> int:
        return export.write(store, tmp_path / "out.csv", table, where)

    assert count("stage=erf") == 2
    assert count("stage=erf and value<1") == 1
    assert count("mixer=halo and threads=2 and git_dirty=no") == 3
    assert count("mixer=swin") == 0
    assert count("state=failed", "runs") == count("kind=weights and bytes=5", "files") == 1
    assert count("state=failed and seed=0", "stages") == 1  # the stage's own state
    with pytest.raises(ValueError, match=r"Unknown field 'stagge'\. Did you mean 'stage'\?"):
        count("stagge=erf")
    assert (tmp_path / "out.csv").exists()


def test_what_was_there_stays_until_the_file_is_complete(
    store: Store, runs: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "out.csv"
    path.write_text("old")

    def broken(*_: object) -> int:
        raise OSError("disk full")

    monkeypatch.setattr(export, "WRITERS", {".csv": broken})
    with pytest.raises(OSError, match="disk full"):
        export.write(store, path)
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir() if file.name.startswith(".")] == []


@pytest.mark.parametrize("name", ["results.db", "other.db"])
def test_results_are_never_overwritten(store: Store, runs: list[str], tmp_path: Path, name: str) -> None:
    with open_store(str(tmp_path / name)):
        pass
    with pytest.raises(ValueError, match="is a results database: it is not overwritten"):
        export.write(store, tmp_path / name)
    assert len(store.runs()) == 2
    export.write(store, tmp_path / "out.db")
    assert export.write(store, tmp_path / "out.db", "runs") == 2  # an export's own file is replaced


def test_an_unknown_format_is_refused(store: Store, tmp_path: Path) -> None:
    message = "out.xlsx' does not say its format: end it in .csv, .jsonl, .db, .parquet."
    with pytest.raises(ValueError, match=re.escape(message)):
        export.write(store, tmp_path / "out.xlsx")


@pytest.mark.parametrize("suffix", FORMATS)
def test_many_rows_need_little_memory(store: Store, new_run: NewRun, tmp_path: Path, suffix: str) -> None:
    """20,000 rows are some 20 MB as Python objects; five thousand at once are a quarter."""
    run = measured.add(store, new_run, {})
    key = {"run": run, "stage": "train", "name": "loss", "condition": "", "unit": "", "reason": ""}
    with store._write() as connection:
        rows = [{**key, "step": step, "value": step / 3} for step in range(1, 20_001)]
        connection.execute(insert(tables.measurement), rows)
    del rows
    path = tmp_path / f"out{suffix}"
    export.write(store, path, where="step<10")  # what is imported on the way is no part of it
    tracemalloc.start()
    try:
        assert export.write(store, path) == 20_000
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 10e6
