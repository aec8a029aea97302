"""Copies of a database: whole while others write, never over another file, and made before an upgrade."""

import shutil
import sqlite3
import threading
from pathlib import Path

import pytest
from filled import content, fill

from stmbench.record import Measurement
from stmbench.store import NewRun, backup, open_store, source, tables

GOLDEN = Path(__file__).parents[1] / "golden"


def test_a_copy_is_consistent_while_others_write(tmp_path: Path, new_run: NewRun) -> None:
    """Measurements are written in pairs in one transaction: a copy has both or none of each."""
    path = tmp_path / "results.db"
    with open_store(str(path)) as store:
        run = store.create_run(new_run).id
        stop = threading.Event()

        def write() -> None:
            step = 0
            while not stop.is_set():
                with store._write() as connection:
                    for name in ("left", "right"):
                        m = {"run": run, "stage": "train", "name": name, "condition": "", "step": step}
                        connection.execute(tables.measurement.insert().values(**m, unit="x" * 500, value=1.0))
                step += 1

        writer = threading.Thread(target=write)
        writer.start()
        try:
            for i in range(20):
                backup.copy(path, tmp_path / f"copy{i}.db")
        finally:
            stop.set()
            writer.join()
    steps = []
    for i in range(20):
        with source.reading(str(tmp_path / f"copy{i}.db")) as copy:
            found = copy.measurements(run)
            sides = [{m.step for m in found if m.name == name} for name in ("left", "right")]
            assert sides[0] == sides[1]
            steps.append(len(sides[0]))
    assert steps == sorted(steps)
    assert steps[-1] > steps[0]


def test_a_copy_holds_what_the_database_holds(tmp_path: Path, new_run: NewRun) -> None:
    path = tmp_path / "results.db"
    with open_store(str(path)) as store:
        fill(store, new_run)
        backup.copy(path, tmp_path / "copy.db")
        with source.reading(str(tmp_path / "copy.db")) as copy:
            assert content(copy) == content(store)
    assert sorted(p.name for p in tmp_path.glob("copy*")) == ["copy.db"]


def test_no_file_is_overwritten(tmp_path: Path) -> None:
    path, other = tmp_path / "results.db", tmp_path / "other"
    open_store(str(path)).close()
    other.write_text("precious")
    with pytest.raises(ValueError, match="other is there already, and is not overwritten"):
        backup.copy(path, other)
    assert other.read_text() == "precious"
    with pytest.raises(ValueError, match="There is no folder"):
        backup.copy(path, tmp_path / "no" / "copy.db")


def test_a_copy_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no database\n" * 1000)
    with pytest.raises(OSError, match=r"Cannot copy .*notes\.txt to .*: file is not a database"):
        backup.copy(tmp_path / "notes.txt", tmp_path / "copy.db")
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("schema", ["0001", "0002", "0003"])
def test_an_upgrade_keeps_the_database_as_it_was(
    tmp_path: Path, schema: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = Path(shutil.copy(GOLDEN / f"schema_{schema}.db", tmp_path / "results.db"))
    open_store(str(path)).close()
    kept = tmp_path / f"results-schema-{schema}.db"
    assert caplog.messages == [
        f"{path} is upgraded from schema {schema} to {tables.SCHEMA}; as it was, it is kept at {kept}."
    ]
    dumps = []
    for file in (GOLDEN / f"schema_{schema}.db", kept):
        connection = sqlite3.connect(f"file:{file}?immutable=1", uri=True)
        dumps.append(list(connection.iterdump()))
        connection.close()
    assert dumps[0] == dumps[1]
    open_store(str(path)).close()
    assert len(caplog.messages) == 1


def test_an_older_copy_is_kept_beside(tmp_path: Path) -> None:
    (tmp_path / "results-schema-0003.db").write_text("precious")
    path = Path(shutil.copy(GOLDEN / "schema_0003.db", tmp_path / "results.db"))
    open_store(str(path)).close()
    assert (tmp_path / "results-schema-0003.db").read_text() == "precious"
    assert (tmp_path / "results-schema-0003-2.db").is_file()


def test_an_empty_database_is_upgraded_without_a_copy(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = Path(shutil.copy(GOLDEN / "schema_0003.db", tmp_path / "results.db"))
    connection = sqlite3.connect(path)
    for table in ("measurement", "stage", "artifact", "run"):
        connection.execute(f"DELETE FROM {table}")
    connection.commit()
    connection.close()
    open_store(str(path)).close()
    assert caplog.messages == []
    assert [p.name for p in tmp_path.iterdir()] == ["results.db"]


def test_an_upgrade_that_cannot_keep_a_copy_is_not_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Path(shutil.copy(GOLDEN / "schema_0003.db", tmp_path / "results.db"))
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError("Cannot copy: database or disk is full.")

    monkeypatch.setattr(backup, "copy", full)
    with pytest.raises(OSError, match="disk is full"):
        open_store(str(path))
    monkeypatch.undo()
    connection = sqlite3.connect(path)
    assert connection.execute("SELECT version_num FROM stmbench_version").fetchone() == ("0003",)
    connection.close()
    assert len(before) == path.stat().st_size


def test_what_nobody_may_write_can_be_read(tmp_path: Path, new_run: NewRun) -> None:
    """As from a read-only disk; in WAL mode SQLite would want to make files beside the database."""
    path = tmp_path / "results.db"
    with open_store(str(path)) as store:
        run = fill(store, new_run, 1)[0]
    before = path.read_bytes()
    with source.reading(str(path)) as store:
        assert store.run(run).state == "done"
        with pytest.raises(OSError, match="attempt to write a readonly database"):
            store.record(run, Measurement("eval", "top1", 1.0))
    assert path.read_bytes() == before
    assert {p.name for p in tmp_path.iterdir()} == {"results.db", run}
