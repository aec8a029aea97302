"""Opening a database: its URL, SQLite's settings, its schema version, and errors in one line.

SQLite runs in WAL mode, so that reading never waits for writing. A writing transaction takes the lock at
once (BEGIN IMMEDIATE): one that reads first and upgrades its lock later can be refused however long it
is willing to wait, and its write be lost.

WAL needs memory that all processes share, which machines do not. On a network file system SQLite therefore
keeps a rollback journal, as its documentation asks for, and syncs every commit.
"""

import json
import logging
import random
import re
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import psutil
from sqlalchemy import URL, Connection, Engine, create_engine, event, func, inspect, make_url, select
from sqlalchemy.exc import ArgumentError, DatabaseError, DataError, NoSuchModuleError, OperationalError

from stmbench.store import backup, tables

BUSY_TIMEOUT_S = 60  # the longest wait of 48 writers at once, on two cores, was 9 s
_UPGRADE_LOCK = 0x73746D62  # "stmb": a number that no other program on the server is likely to lock
_NETWORK = re.compile(
    "9p|acfs|afs|beegfs|ceph|cifs|coda|davfs|gfs2?|glusterfs|gpfs|lustre|ncpfs|nfs4?|ocfs2|orangefs|panfs|"
    r"pvfs2|smb[23]?|smbfs|virtiofs|wekafs|"
    r"fuse\.(?!(?:bindfs|encfs|exfat|fuse-overlayfs|gocryptfs|lxcfs|mergerfs|ntfs|ntfs-3g)$).+"
)
_log = logging.getLogger("stmbench")


def parse_url(text: str) -> URL:
    """The URL that `text` is, or that of the SQLite file at this path."""
    if not text:
        raise ValueError("--db is empty: give it a file or a database URL.")
    if "://" not in text:
        return URL.create("sqlite", database=str(Path(text).expanduser()))
    try:
        url = make_url(text)
    except ArgumentError:
        raise ValueError(
            f"'{text}' is neither a path nor a URL such as sqlite:///runs/stmbench.db."
        ) from None
    # Before SQLAlchemy 2.1 the bare name means psycopg2; our extra installs psycopg.
    return url.set(drivername="postgresql+psycopg") if url.drivername == "postgresql" else url


def sqlite_file(url: URL) -> Path | None:
    """The file of an SQLite URL; None for any other database."""
    if url.get_backend_name() != "sqlite":
        return None
    if not url.database or url.database == ":memory:":
        raise ValueError("Results need a database that lasts: give SQLite a file.")
    if Path(url.database).is_dir():
        raise ValueError(f"{url.database} is a folder: give --db a file in it.")
    return Path(url.database)


def label(url: URL) -> str:
    """The database as a message may name it: an SQLite file's path, any other URL without its password."""
    return str(sqlite_file(url) or url.render_as_string(hide_password=True))


def network_file_system(path: Path) -> str:
    """The kind of network file system that `path` is on or would be made on; "" if on none."""
    resolved = path.expanduser().resolve()
    holding = [m for m in psutil.disk_partitions(all=True) if resolved.is_relative_to(m.mountpoint)]
    if not holding:
        return ""
    longest = max(len(mount.mountpoint) for mount in holding)
    mount = [m for m in holding if len(m.mountpoint) == longest][-1]  # the one mounted last covers the others
    kind = mount.fstype.lower()
    remote = "remote" in mount.opts.split(",")  # of a drive, on Windows
    return kind or "remote" if remote or _NETWORK.fullmatch(kind) else ""


def run_folder(url: URL) -> Path:
    """The folder that those of runs are relative to: the SQLite file's, or `runs` where one is."""
    file = sqlite_file(url)
    return file.absolute().parent if file else Path("runs").absolute()


def newer(where: str, schema: str) -> ValueError:
    """The error for results of a schema that this version does not know."""
    return ValueError(
        f"The results at {where} were written by a newer stmbench (schema {schema}; this one "
        f"knows {tables.SCHEMA}). Upgrade stmbench, or give another database with --db."
    )


def connect(url: URL, *, read_only: bool = False) -> Engine:
    """An engine for this URL; nothing is opened yet. `read_only` changes nothing about an SQLite file."""
    try:
        if file := sqlite_file(url):
            creator = {"creator": partial(backup.reader, file)} if read_only else {}
            engine = create_engine(url, connect_args={"timeout": BUSY_TIMEOUT_S}, **creator)
            journal = "" if read_only else "DELETE" if network_file_system(file) else "WAL"
            event.listen(engine, "connect", partial(_configure_sqlite, journal))
            event.listen(engine, "begin", _begin_sqlite)
            return engine
        isolation = {"isolation_level": "REPEATABLE READ"} if read_only else {}  # what was there at its start
        return create_engine(url, pool_pre_ping=True, **isolation)
    except NoSuchModuleError:
        raise ValueError(f"SQLAlchemy knows no database '{url.drivername}'.") from None
    except ModuleNotFoundError as error:
        extra = " (pip install 'stmbench[postgres]')" if error.name == "psycopg" else ""
        raise ValueError(f"'{url.drivername}' needs the package {error.name}{extra}.") from None


def _configure_sqlite(journal: str, connection: Any, _record: object) -> None:
    connection.isolation_level = None  # the driver would BEGIN on its own, and deferred: see _begin_sqlite
    if journal:
        _set_journal(connection, journal)
        connection.execute(f"PRAGMA synchronous = {'NORMAL' if journal == 'WAL' else 'FULL'}")
    connection.execute("PRAGMA foreign_keys = ON")


def _set_journal(connection: sqlite3.Connection, mode: str) -> None:
    """Several that change a new file's mode at once are refused by SQLite however long they would wait."""
    deadline = time.monotonic() + BUSY_TIMEOUT_S
    while True:
        try:
            connection.execute(f"PRAGMA journal_mode = {mode}")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(random.uniform(0, 0.01))


def _begin_sqlite(connection: Connection) -> None:
    options = connection.get_execution_options()
    if not options.get("outside_transactions"):
        connection.exec_driver_sql("BEGIN IMMEDIATE" if options.get("writes") else "BEGIN")


def outside_transactions(engine: Engine) -> Engine:
    """The engine for what a database does in no transaction, such as VACUUM."""
    if engine.dialect.name == "sqlite":
        return engine.execution_options(outside_transactions=True)
    return engine.execution_options(isolation_level="AUTOCOMMIT")


@contextmanager
def clear_errors(url: URL) -> Iterator[None]:
    """Turn what the database refuses into one line: ValueError for a wrong file, else OSError."""
    where = label(url)
    try:
        yield
    except (json.JSONDecodeError, UnicodeDecodeError) as error:  # of what only we wrote
        raise _damaged(where, str(error)) from error
    except DatabaseError as error:
        line = str(error.orig).strip().splitlines()[0]
        if getattr(error.orig, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_CORRUPT or "UTF-8" in line:
            raise _damaged(where, line) from error
        denied = getattr(error.orig, "sqlstate", "") == "42501"  # PostgreSQL's, for a user without rights
        if isinstance(error, OperationalError) or denied:
            raise OSError(f"The database at {where} cannot be used: {line}.") from error
        if isinstance(error, DataError):  # too long a text, or one with a zero byte, for PostgreSQL
            raise ValueError(f"The database at {where} cannot hold a value: {line}.") from error
        if type(error) is not DatabaseError:  # a constraint or a statement: ours to get right
            raise
        raise ValueError(f"{where} is no results database ({line}). Give another with --db.") from error


def _damaged(where: str, line: str) -> OSError:
    return OSError(
        f"The database at {where} is damaged ({line}): `stmbench db check --db {where}` says which runs are "
        "safe, and copies them with --salvage."
    )


def now(connection: Connection) -> datetime:
    """The time by the database's own clock: what machines wrote into it can be compared with that alone."""
    if connection.dialect.name != "postgresql":
        return datetime.now(UTC)
    return connection.execute(select(func.clock_timestamp())).scalar_one().astimezone(UTC)


def schema_of(engine: Engine) -> str | None:
    """The revision a database is at; None if it holds no results yet."""
    with engine.connect() as connection:
        return _schema(connection)


def _schema(connection: Connection) -> str | None:
    if not inspect(connection).has_table(tables.VERSION_TABLE):
        return None
    return connection.scalar(select(tables.version.c.version_num))


def upgrade(engine: Engine, *, keep: bool = True) -> Path | None:
    """Create the tables, or bring those of an older version up to date, in one transaction.

    With `keep`, an SQLite file that holds runs is copied before: returns the copy, and says in one line of
    the log "stmbench" where it is.
    """
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", "stmbench.store:migrations")
    with engine.execution_options(writes=True).begin() as connection:
        if connection.dialect.name == "postgresql":
            connection.execute(select(func.pg_advisory_xact_lock(_UPGRADE_LOCK)))
        schema = _schema(connection)  # while we waited for the lock, another may have done it
        if schema == tables.SCHEMA:
            return None
        file, kept = sqlite_file(engine.url), None
        if keep and schema and file and connection.scalar(select(tables.run.c.id).limit(1)):
            kept = backup.before_upgrade(file, schema)
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
    if kept:
        _log.warning(
            "%s is upgraded from schema %s to %s; as it was, it is kept at %s.",
            file,
            schema,
            tables.SCHEMA,
            kept,
        )
    return kept
