"""What `stmbench db check` finds wrong, in databases of both kinds, and that a sound one has nothing."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from filled import fill
from sqlalchemy import delete, insert, update

from stmbench.record import Measurement
from stmbench.store import NewRun, Store, check, tables
from stmbench.store.check import Finding


@pytest.fixture
def runs(store: Store, new_run: NewRun, tmp_path: Path) -> list[str]:
    store.folder = tmp_path / "runs"
    return fill(store, new_run)


def _change(store: Store, statement: Any) -> None:
    with store._write() as connection:
        if connection.dialect.name == "sqlite":
            connection.exec_driver_sql("PRAGMA defer_foreign_keys = ON")
        connection.execute(statement)


def _found(store: Store, **options: bool) -> list[Finding]:
    return list(check.check(store, **options))


def test_a_sound_database_has_nothing(store: Store, runs: list[str]) -> None:
    assert _found(store, digests=True) == []


def test_a_file_that_is_gone_shorter_or_changed(store: Store, runs: list[str]) -> None:
    first, second, third = (store.folder / run / "answers.npz" for run in sorted(runs))
    first.unlink()
    second.write_bytes(b"short")
    third.write_bytes(third.read_bytes()[::-1])
    texts = {finding.run: finding.text for finding in _found(store)}
    assert texts == {
        sorted(runs)[0]: f"1 of its files are not in {first.parent}: answers.npz",
        sorted(runs)[1]: "answers.npz has 5 bytes, and had 9",
    }
    assert Finding(sorted(runs)[2], "answers.npz has changed since it was written") in _found(
        store, digests=True
    )


@pytest.mark.parametrize("what", ["gone", "other"])
def test_a_summary_that_is_not_what_was_measured(store: Store, runs: list[str], what: str) -> None:
    rows = tables.summary
    statement = delete(rows) if what == "gone" else update(rows).values(top1=99.0)
    _change(store, statement.where(rows.c.run == runs[1]))
    [finding] = _found(store)
    assert (finding.run, finding.note) == (runs[1], False)
    assert "not what was measured" in finding.text
    store.refresh_summaries()
    assert _found(store) == []


def test_a_dead_run_and_one_of_the_future_are_notes(store: Store, runs: list[str], new_run: NewRun) -> None:
    dead = store.create_run(new_run).id
    future = datetime.now(UTC) + timedelta(days=400)
    _change(store, update(tables.run).where(tables.run.c.id == dead).values(pid=2**31 - 1))
    _change(store, update(tables.run).where(tables.run.c.id == runs[0]).values(created=future))
    _change(store, update(tables.summary).where(tables.summary.c.run == runs[0]).values(created=future))
    found = {finding.run: finding for finding in _found(store)}
    assert set(found) == {dead, runs[0]}
    assert all(finding.note for finding in found.values())
    assert f"says that it is running, but its process {2**31 - 1} is gone" in found[dead].text
    assert "started in the future" in found[runs[0]].text


def test_rows_without_their_run(tmp_path: Path, new_run: NewRun) -> None:
    """Which no database allows: SQLite only where a program forgets to ask for it."""
    import sqlite3

    from stmbench.store import open_store

    path = tmp_path / "results.db"
    with open_store(str(path)) as store:
        run = fill(store, new_run, 1)[0]
    connection = sqlite3.connect(path)
    connection.execute("DELETE FROM run")
    connection.commit()
    connection.close()
    with open_store(str(path)) as store:
        found = _found(store)
    assert {finding.run for finding in found} == {run}
    assert len(found) == 4
    assert "rows of the table measurement belong to a run that is not there" in found[1].text


def test_numbers_added_after_the_end_are_found(store: Store, runs: list[str]) -> None:
    store.record(runs[0], Measurement("eval", "images", 2000.0, "images", "weights=plain"))
    assert [finding.run for finding in _found(store)] == [runs[0]]
    _change(
        store,
        insert(tables.stage).values(
            run=runs[0], name="x", state="done", started=datetime.now(UTC), reason=""
        ),
    )
    assert [finding.run for finding in _found(store)] == [runs[0]]
