"""Opening a database: its URL, SQLite's settings, its schema version, and errors in one line.

SQLite runs in WAL mode, so that reading never waits for writing. A writing transaction takes the lock at
once (BEGIN IMMEDIATE): one that reads first and upgrades its lock later can be refused however long it
is willing to wait, and its write be lost.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event, inspect, make_url, select
from sqlalchemy.exc import ArgumentError, DatabaseError, NoSuchModuleError, OperationalError

from stmbench.store import tables

BUSY_TIMEOUT_S = 30


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


def connect(url: URL) -> Engine:
    """An engine for this URL; nothing is opened yet."""
    try:
        if url.get_backend_name() == "sqlite":
            engine = create_engine(url, connect_args={"timeout": BUSY_TIMEOUT_S})
            event.listen(engine, "connect", _configure_sqlite)
            event.listen(engine, "begin", _begin_sqlite)
            return engine
        return create_engine(url, pool_pre_ping=True)
    except NoSuchModuleError:
        raise ValueError(f"SQLAlchemy knows no database '{url.drivername}'.") from None
    except ModuleNotFoundError as error:
        extra = " (pip install 'stmbench[postgres]')" if error.name == "psycopg" else ""
        raise ValueError(f"'{url.drivername}' needs the package {error.name}{extra}.") from None


def _configure_sqlite(connection: Any, _record: object) -> None:
    connection.isolation_level = None  # the driver would BEGIN on its own, and deferred: see _begin_sqlite
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute("PRAGMA foreign_keys = ON")


def _begin_sqlite(connection: Connection) -> None:
    writes = connection.get_execution_options().get("writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


@contextmanager
def clear_errors(url: URL) -> Iterator[None]:
    """Turn what the database refuses into one line: ValueError for a wrong file, else OSError."""
    where = label(url)
    try:
        yield
    except OperationalError as error:
        line = str(error.orig).strip().splitlines()[0]
        raise OSError(f"The database at {where} cannot be used: {line}.") from error
    except DatabaseError as error:
        if type(error) is not DatabaseError:  # a constraint or a statement: ours to get right
            raise
        raise ValueError(f"{where} is no results database ({error.orig}). Give another with --db.") from error


def schema_of(engine: Engine) -> str | None:
    """The revision a database is at; None if it holds no results yet."""
    with engine.connect() as connection:
        if not inspect(connection).has_table(tables.VERSION_TABLE):
            return None
        return connection.scalar(select(tables.version.c.version_num))


def upgrade(engine: Engine) -> None:
    """Create the tables, or bring those of an older version up to date, in one transaction."""
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", "stmbench.store:migrations")
    with engine.execution_options(writes=True).begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
