"""Opening: files, folders, schema versions, and one clear line for whatever is in the way."""

import multiprocessing
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from stmbench.record import Measurement
from stmbench.store import NewRun, database, open_store, tables

GOLDEN = Path(__file__).parents[1] / "golden"
MIGRATIONS = Path(database.__file__).with_name("migrations")


def test_migrations_lead_to_the_tables_we_use(tmp_path: Path) -> None:
    assert ScriptDirectory(str(MIGRATIONS)).get_current_head() == tables.SCHEMA
    with open_store(str(tmp_path / "results.db")) as store, store._engine.connect() as connection:
        options = {"version_table": tables.VERSION_TABLE, "compare_type": True}
        context = MigrationContext.configure(connection, opts=options)
        assert compare_metadata(context, tables.metadata) == []


@pytest.mark.parametrize("schema", [path.stem.removeprefix("schema_") for path in GOLDEN.glob("schema_*.db")])
def test_a_database_of_every_schema_opens_and_is_used(tmp_path: Path, schema: str, new_run: NewRun) -> None:
    url = str(shutil.copy(GOLDEN / f"schema_{schema}.db", tmp_path / "results.db"))
    with open_store(url, create=False) as store:
        assert database.schema_of(store._engine) == tables.SCHEMA
        [run] = store.runs()
        assert (run.id, run.state, run.recipe_name) == ("halo-micro-3f9c21", "done", "quick")
        assert [stage.name for stage in store.stages(run.id)] == ["build", "eval"]
        assert Measurement("eval", "top1", 88.7, "%", "weights=plain") in store.measurements(run.id)
        assert [artifact.path.name for artifact in store.artifacts(run.id)] == ["predictions_plain.npz"]
        new = store.create_run(new_run).id
        store.record(new, Measurement("eval", "top1", 90.0))
        assert len(store.headline(["eval"], ["top1"])) == 2


def test_there_is_a_golden_database_of_this_schema() -> None:
    assert (GOLDEN / f"schema_{tables.SCHEMA}.db").is_file()


def test_sqlite_is_set_up_for_many_writers(tmp_path: Path) -> None:
    with open_store(str(tmp_path / "new" / "folder" / "results.db")) as store, store._read() as connection:
        found = [
            connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "busy_timeout", "foreign_keys")
        ]
        assert found == ["wal", 30_000, 1]


def _open(url: str) -> None:
    open_store(url).close()


def test_a_database_may_be_created_by_several_at_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_open, args=(str(tmp_path / "results.db"),)) for _ in range(6)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0] * 6


def test_another_program_may_live_in_the_same_database(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "shared.db") as connection:
        connection.execute("CREATE TABLE alembic_version (version_num TEXT)")
        connection.execute("INSERT INTO alembic_version VALUES ('theirs')")
    connection.close()
    with open_store(str(tmp_path / "shared.db")) as store:
        assert store.runs() == []


@pytest.mark.parametrize("exists", [False, True])
def test_reading_needs_results(tmp_path: Path, exists: bool) -> None:
    path = tmp_path / "results.db"
    if exists:
        path.touch()
    with pytest.raises(ValueError, match=r"No results at .*results\.db yet\. `stmbench run --mixer halo"):
        open_store(str(path), create=False)
    assert path.exists() == exists


def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "results.db"
    open_store(str(path)).close()
    connection = sqlite3.connect(path)
    connection.execute("UPDATE stmbench_version SET version_num = '9999'")
    connection.commit()
    connection.close()
    with pytest.raises(ValueError, match=r"written by a newer stmbench \(schema 9999;"):
        open_store(str(path))


@pytest.mark.parametrize("create", [False, True])
def test_a_file_that_is_no_database_is_refused_and_left_alone(tmp_path: Path, create: bool) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("no database\n" * 1000)
    with pytest.raises(ValueError, match=r"notes\.txt is no results database \(file is not a database\)"):
        open_store(str(path), create=create)
    assert path.read_text() == "no database\n" * 1000


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("nosuch://host/name", "SQLAlchemy knows no database 'nosuch'"),
        ("sqlite://", "give SQLite a file"),
        ("://", "neither a path nor a URL"),
    ],
)
def test_a_wrong_url_is_a_clear_error(url: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        open_store(url)


def test_a_folder_that_cannot_be_made_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"Cannot make the folder .*file/runs for results: Not a directory"):
        open_store(str(tmp_path / "file" / "runs" / "results.db"))


def test_a_folder_in_place_of_the_file_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is a folder: give --db a file in it"):
        open_store(str(tmp_path))
    with pytest.raises(ValueError, match="--db is empty"):
        open_store("")


def test_a_full_disk_is_a_clear_error(tmp_path: Path, new_run: NewRun) -> None:
    with open_store(str(tmp_path / "results.db")) as store:
        run = store.create_run(new_run).id
        with store._read() as connection:
            pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
            connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")  # no page more than now
        with pytest.raises(OSError, match="cannot be used: database or disk is full"):
            store.end_run(run, "failed", "a long reason " * 100_000)


def test_a_moved_folder_of_results_is_whole(tmp_path: Path, new_run: NewRun) -> None:
    with open_store(str(tmp_path / "here" / "results.db")) as store:
        run = store.create_run(new_run).id
    (tmp_path / "here").rename(tmp_path / "there")
    with open_store(str(tmp_path / "there" / "results.db")) as store:
        assert store.run(run).folder == tmp_path / "there" / run


def test_reading_imports_neither_alembic_nor_the_orm(tmp_path: Path) -> None:
    url = str(tmp_path / "results.db")
    open_store(url).close()
    code = (
        "import sys; from stmbench.store import open_store; open_store(sys.argv[1], create=False).runs()\n"
        "print([name for name in ('alembic', 'sqlalchemy.orm', 'pandas', 'torch') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, url], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
