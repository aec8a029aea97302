"""Copies of an SQLite database that are whole, whoever writes into it meanwhile: SQLite's backup interface.

A file that is made here, or by whoever uses `new_file`, is there whole or not at all, and never replaces one.
"""

import contextlib
import itertools
import sqlite3
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def new_file(target: Path) -> Iterator[Path]:
    """A path beside `target` to write to; the file becomes `target` if all goes well.

    Raises:
        ValueError: `target` is there already, or its folder is not.
    """
    if target.exists():
        raise ValueError(f"{target} is there already, and is not overwritten: give another file.")
    if not target.parent.is_dir():
        raise ValueError(f"There is no folder {target.parent} for {target.name}.")
    part = target.with_name(f"{target.name}.part")
    try:
        part.unlink(missing_ok=True)
        yield part
        part.rename(target)
    finally:
        for ending in ("", "-wal", "-shm", "-journal"):
            part.with_name(f"{part.name}{ending}").unlink(missing_ok=True)


def reader(file: Path) -> sqlite3.Connection:
    """A connection that changes nothing in the file, and can read one that nobody may write.

    Raises:
        sqlite3.Error: it cannot be read.
    """
    connection = _open(file, "mode=rw")  # "ro" would leave behind the files that WAL mode needs to read
    try:
        connection.execute("PRAGMA query_only = ON")
        connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except sqlite3.OperationalError as error:
        connection.close()
        # A database in WAL mode wants files beside it even to be read, unless nothing changes it.
        if error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY or wal(file).exists():
            raise
        return _open(file, "immutable=1")
    except BaseException:
        connection.close()
        raise
    return connection


def wal(file: Path) -> Path:
    """Where SQLite keeps what is not yet in the database's file."""
    return file.with_name(f"{file.name}-wal")


def copy(source: Path, target: Path) -> None:
    """Copy a database as it is at this moment.

    Raises:
        ValueError: `target` is there already, or its folder is not.
        OSError: the source cannot be read, or the target not be written.
    """
    try:
        with (
            new_file(target) as part,
            contextlib.closing(reader(source)) as old,
            contextlib.closing(sqlite3.connect(part)) as new,
        ):
            old.backup(new)
            new.execute("PRAGMA journal_mode = DELETE")  # one file, until somebody writes into it
    except sqlite3.Error as error:
        raise OSError(f"Cannot copy {source} to {target}: {error}.") from error


def before_upgrade(file: Path, schema: str) -> Path:
    """Copy a database of this older schema to a file beside it that is named after the schema.

    Raises:
        OSError: as `copy`.
    """
    for number in itertools.count(1):
        again = f"-{number}" if number > 1 else ""
        target = file.with_name(f"{file.stem}-schema-{schema}{again}{file.suffix}")
        if not target.exists():
            copy(file, target)
            return target
    raise AssertionError


def _open(file: Path, how: str) -> sqlite3.Connection:
    uri = f"{file.absolute().as_uri()}?{how}"
    return sqlite3.connect(uri, uri=True, timeout=30, check_same_thread=False)
