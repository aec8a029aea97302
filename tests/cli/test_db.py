"""`stmbench db`: what it prints, its exit codes, and one clear line for whatever is in the way."""

import dataclasses
import shutil
import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from filled import content, fill
from typer.testing import CliRunner

from stmbench import cli
from stmbench.record import Measurement
from stmbench.store import NewRun, open_store, tables

GOLDEN = Path(__file__).parents[1] / "golden"
GOLDEN_RUN = "halo-micro-3f9c21"


@pytest.fixture
def path(tmp_path: Path, new_run: NewRun) -> Path:
    """A database of three finished runs."""
    path = tmp_path / "stmbench.db"
    with open_store(str(path)) as store:
        fill(store, new_run)
    return path


@pytest.fixture
def db(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """What `stmbench db` prints on stdout, or, if `code` is not 0, on both."""

    def db(*arguments: object, code: int = 0) -> str:
        monkeypatch.setattr(sys, "argv", ["stmbench", "db", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        assert ended.value.code == code, out + err
        return out + err

    return db


def _damage(path: Path) -> None:
    """Overwrite the page that the table of runs begins with."""
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    page = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'run'").fetchone()[0]
    connection.close()
    content = bytearray(path.read_bytes())
    content[(page - 1) * 4096 : page * 4096] = bytes(4096)
    path.write_bytes(content)


def test_an_old_database_is_upgraded_and_its_copy_named(db: Callable[..., str], tmp_path: Path) -> None:
    path = Path(shutil.copy(GOLDEN / "schema_0001.db", tmp_path / "old.db"))
    out = db("upgrade", "--db", path)
    assert f"{path} is at schema {tables.SCHEMA}, the newest.\n" in out
    kept = tmp_path / "old-schema-0001.db"
    warning = (
        f"Warning: {path} is upgraded from schema 0001 to {tables.SCHEMA}; as it was, it is kept at {kept}.\n"
    )
    assert warning in out
    assert kept.is_file()
    assert "Warning" not in db("upgrade", "--db", path)


def test_what_leaderboards_read_is_made_again(db: Callable[..., str], path: Path) -> None:
    with open_store(str(path)) as store, store._write() as connection:
        connection.execute(tables.summary.delete())
    assert "not what was measured: `stmbench db upgrade`" in db("check", "--db", path, code=1)
    db("upgrade", "--db", path)
    assert db("check", "--db", path) == f"{path}: nothing wrong.\n"


def test_a_backup_is_made_and_nothing_overwritten(db: Callable[..., str], path: Path) -> None:
    target = path.with_name("copy.db")
    assert f"{target}: 0." in db("backup", "-o", target, "--db", path)
    with open_store(str(target)) as copy, open_store(str(path)) as store:
        assert content(copy) == content(store)
    out = db("backup", "-o", target, "--db", path, code=2)
    assert out == f"Error: {target} is there already, and is not overwritten: give another file.\n"
    assert len(db("backup", "--db", path).splitlines()) == 1
    assert len(list(path.parent.glob("stmbench-20*.db"))) == 1
    assert "pg_dump" in db("backup", "--db", "postgresql://nowhere/x", code=2)


def test_merge_and_import_tell_what_became_of_the_runs(
    db: Callable[..., str], path: Path, tmp_path: Path, new_run: NewRun
) -> None:
    target = tmp_path / "all" / "all.db"
    assert db("merge", path, "--db", target) == f"{path}: 3 added.\n"
    assert db("merge", path, GOLDEN / "schema_0002.db", "--db", target) == (
        f"{path}: 3 there already.\n{GOLDEN / 'schema_0002.db'}: 1 added.\n"
    )
    with open_store(str(path)) as store:
        run = store.runs()[0].id
        store.record(run, Measurement("eval", "more", 1.0))
    assert db("merge", path, "--copy-files", "--db", target) == (
        f"  {run}: two versions, and theirs replaced ours, the more complete\n"
        f"{path}: 2 there already, 1 replaced.\n"
    )
    assert (tmp_path / "all" / run / "answers.npz").is_file()
    assert "is the database to merge into" in db("merge", target, "--db", target, code=2)
    assert "3 runs, 0.0" in db("export", tmp_path / "runs.jsonl", "--db", path)
    assert "3 there already" in db("import", tmp_path / "runs.jsonl", "--db", target)
    assert "is there already" in db("export", tmp_path / "runs.jsonl", "--db", path, code=2)


def test_files_that_were_not_found_are_a_warning(db: Callable[..., str], path: Path, tmp_path: Path) -> None:
    shutil.rmtree(next(folder for folder in tmp_path.iterdir() if folder.is_dir()))
    out = db("merge", path, "--copy-files", "--db", tmp_path / "all" / "all.db")
    assert "Warning: Of 1 run not all files were found to be copied.\n" in out


def test_check_reads_files_when_asked(db: Callable[..., str], path: Path) -> None:
    changed = next(path.parent.glob("*/answers.npz"))
    changed.write_bytes(changed.read_bytes()[::-1])
    assert "nothing wrong" in db("check", "--db", path)
    out = db("check", "--files", "--db", path, code=1)
    assert out.splitlines() == [
        f"  {changed.parent.name}: answers.npz has changed since it was written",
        f"{path}: 1 wrong.",
    ]


def test_damage_is_told_and_salvaged(db: Callable[..., str], path: Path) -> None:
    _damage(path)
    out = db("check", "--db", path, code=1)
    assert f"{path} is damaged: 0 runs safe, 3 runs with losses.\n" in out
    assert "lost its own row (recipe, data, environment)\n" in out
    assert "`stmbench db check --salvage NEW.db`" in out
    new = path.with_name("new.db")
    assert f"All that could be read is in {new}." in db("check", "--salvage", new, "--db", path, code=1)
    assert db("check", "--db", new).endswith("nothing wrong.\n")
    assert "is there already" in db("check", "--salvage", new, "--db", path, code=2)
    out = db("merge", path, "--db", path.with_name("other.db"), code=1)
    assert out.startswith(
        f"Error: The database at {path} is damaged (database disk image is malformed): `stmbench"
    )
    assert len(out.splitlines()) == 1


def test_vacuum_prints_sizes(db: Callable[..., str], path: Path) -> None:
    with open_store(str(path)) as store:
        run = store.runs()[0].id
        store.record(run, Measurement("eval", "x", 1.0, reason="long " * 200_000))
        store.record(run, Measurement("eval", "x", 1.0))
    assert db("vacuum", "--db", path).startswith(f"{path}: 1.")
    assert path.stat().st_size < 200_000
    connection = sqlite3.connect(path)
    assert connection.execute("SELECT count(*) FROM sqlite_stat1").fetchone()[0] > 0
    connection.close()


@pytest.mark.parametrize("command", ["upgrade", "backup", "check", "vacuum"])
def test_no_database_is_a_clear_error(db: Callable[..., str], tmp_path: Path, command: str) -> None:
    out = db(command, "--db", tmp_path / "none.db", code=2)
    assert out.startswith("Error: ")
    assert len(out.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_newer_schema_is_refused_in_one_line(db: Callable[..., str], path: Path) -> None:
    with open_store(str(path)) as store, store._write() as connection:
        connection.execute(tables.version.update().values(version_num="9999"))
    for arguments in (["upgrade"], ["check"], ["vacuum"], ["export", path.with_name("x.jsonl")]):
        out = db(*arguments, "--db", path, code=2)
        assert "were written by a newer stmbench (schema 9999;" in out
        assert len(out.splitlines()) == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a device that is always full")
def test_a_full_disk_is_one_line_and_leaves_nothing(
    db: Callable[..., str], path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "runs.jsonl"
    monkeypatch.setattr("stmbench.store.transfer._open", lambda *_: Path("/dev/full").open("w"))  # noqa: SIM115
    assert db("export", target, "--db", path, code=1).startswith("Error: The disk is full.")
    assert not list(tmp_path.glob("runs*"))


@pytest.mark.parametrize("schema", sorted(p.stem.removeprefix("schema_") for p in GOLDEN.glob("schema_*.db")))
def test_a_database_of_every_schema_is_upgraded_and_read(
    tmp_path: Path, new_run: NewRun, monkeypatch: pytest.MonkeyPatch, schema: str
) -> None:
    """Leaderboard, show, and merged with a new one."""
    path = Path(shutil.copy(GOLDEN / f"schema_{schema}.db", tmp_path / "old.db"))
    monkeypatch.setenv("STMBENCH_DB", str(path))

    def read(*arguments: str) -> str:
        done = CliRunner().invoke(cli.app, arguments, catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done.stdout

    assert ",88.7," in read("leaderboard", "--format", "csv")
    assert GOLDEN_RUN in read("show", GOLDEN_RUN)
    with open_store(str(tmp_path / "new.db")) as store:
        new = fill(store, dataclasses.replace(new_run, mixer="swin"), 1)
    assert "1 added" in read("db", "merge", str(tmp_path / "new.db"))
    assert all(run in read("runs") for run in (GOLDEN_RUN, *new))


def test_a_database_on_a_network_file_system_is_warned_of(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    mount = SimpleNamespace(mountpoint=str(tmp_path), fstype="nfs4", opts="rw")
    monkeypatch.setattr("psutil.disk_partitions", lambda **_: [mount])
    done = CliRunner().invoke(cli.app, ["resume", "halo", "--db", str(tmp_path / "x.db")])
    assert isinstance(done.exception, ValueError)
    assert done.stderr == (
        f"Warning: {tmp_path / 'x.db'} is on a network file system (nfs4): let one machine at a time write "
        "to it, or use PostgreSQL (docs/database.md).\n"
    )
