"""Opening: files, folders, schema versions, and one clear line for whatever is in the way."""

import contextlib
import multiprocessing
import shutil
import sqlite3
import subprocess
import sys
from multiprocessing.synchronize import Barrier
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine

from stmbench.record import Measurement
from stmbench.store import NewRun, Store, database, open_store, tables

GOLDEN = Path(__file__).parents[1] / "golden"
MIGRATIONS = Path(database.__file__).with_name("migrations")


def test_migrations_lead_to_the_tables_we_use(store: Store) -> None:
    assert ScriptDirectory(str(MIGRATIONS)).get_current_head() == tables.SCHEMA
    with store._engine.connect() as connection:
        options = {"version_table": tables.VERSION_TABLE, "compare_type": True}
        context = MigrationContext.configure(connection, opts=options)
        found = compare_metadata(context, tables.metadata)
        assert [change for change in found if "views" not in str(change)] == []


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
        assert found == ["wal", database.BUSY_TIMEOUT_S * 1000, 1]


MOUNTS = [
    ("/", "ext4", "rw"),
    ("/home", "nfs4", "rw,vers=4.2"),
    ("/home/local", "xfs", "rw"),
    ("/scratch", "lustre", "rw"),
    ("/mnt/share", "cifs", "rw"),
    ("/mnt/ssh", "fuse.sshfs", "rw"),
    ("/mnt/disk", "fuse.ntfs-3g", "rw"),
    ("/data", "ext4", "rw"),
    ("/data", "beegfs", "rw"),  # mounted over it
]


@pytest.fixture
def mounts(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, str]]:
    found = list(MOUNTS)

    def partitions(all: bool) -> list[SimpleNamespace]:  # noqa: A002
        assert all
        return [SimpleNamespace(mountpoint=m, fstype=kind, opts=opts) for m, kind, opts in found]

    monkeypatch.setattr("psutil.disk_partitions", partitions)
    return found


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/var/results.db", ""),
        ("/home/me/runs/results.db", "nfs4"),
        ("/home/local/results.db", ""),
        ("/homes/results.db", ""),
        ("/scratch/results.db", "lustre"),
        ("/mnt/share/x/../results.db", "cifs"),
        ("/mnt/ssh/results.db", "fuse.sshfs"),
        ("/mnt/disk/results.db", ""),
        ("/data/results.db", "beegfs"),
    ],
)
def test_network_file_systems_are_recognised(mounts: list, path: str, kind: str) -> None:
    assert database.network_file_system(Path(path)) == kind


def test_a_link_to_a_network_file_system_is_followed(mounts: list, tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    mounts.append((str(tmp_path / "far"), "smb3", "rw"))
    (tmp_path / "near").symlink_to(tmp_path / "far")
    assert database.network_file_system(tmp_path / "near" / "results.db") == "smb3"
    assert database.network_file_system(tmp_path / "results.db") == ""


def test_on_a_network_file_system_sqlite_keeps_a_rollback_journal(mounts: list, tmp_path: Path) -> None:
    """As SQLite's documentation asks for; also where a file in WAL mode was copied to one."""
    url = str(tmp_path / "results.db")
    _open(url)
    mounts.append((str(tmp_path), "nfs", "rw"))
    with open_store(url) as store, store._read() as connection:
        found = [connection.exec_driver_sql(f"PRAGMA {n}").scalar() for n in ("journal_mode", "synchronous")]
    assert found == ["delete", 2]
    assert [path.name for path in tmp_path.iterdir()] == ["results.db"]


def _open(url: str) -> None:
    open_store(url).close()


@pytest.mark.parametrize(("code", "tries"), [(sqlite3.SQLITE_BUSY, 3), (sqlite3.SQLITE_IOERR, 1)])
def test_those_that_change_a_new_file_s_mode_at_once_take_turns(code: int, tries: int) -> None:
    asked: list[str] = []

    class Connection:
        def execute(self, statement: str) -> None:
            asked.append(statement)
            if len(asked) < 3:
                error = sqlite3.OperationalError("refused")
                error.sqlite_errorcode = code
                raise error

    with pytest.raises(sqlite3.OperationalError) if tries < 3 else contextlib.nullcontext():
        database._set_journal(cast(Any, Connection()), "WAL")
    assert asked == ["PRAGMA journal_mode = WAL"] * tries


def _open_at_once(url: str, start: Barrier) -> None:
    start.wait(60)
    _open(url)


def test_a_database_may_be_created_by_several_at_once(url: str) -> None:
    context = multiprocessing.get_context("spawn")
    start = context.Barrier(5)
    workers = [context.Process(target=_open_at_once, args=(url, start)) for _ in range(5)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        worker.kill()
        worker.join()
    assert [worker.exitcode for worker in workers] == [0] * 5


def test_a_server_that_is_not_there_is_a_clear_error() -> None:
    with pytest.raises(
        OSError, match=r"The database at postgresql\+psycopg://me:\*\*\*@127.0.0.1:1/x cannot be used"
    ):
        open_store("postgresql://me:secret@127.0.0.1:1/x")


def test_a_user_without_rights_is_a_clear_error(postgres: str) -> None:
    engine = create_engine(postgres, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.exec_driver_sql("CREATE ROLE guest LOGIN")
        try:
            with pytest.raises(OSError, match="cannot be used: permission denied for schema public"):
                open_store(postgres.replace("tests@", "guest@"))
        finally:
            connection.exec_driver_sql("DROP ROLE guest")
    engine.dispose()


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
