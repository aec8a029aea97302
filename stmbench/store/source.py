"""A results database that is only read: nothing about it changes, whatever its schema."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import URL

from stmbench.store import backup, database, tables
from stmbench.store.store import Store


@contextmanager
def reading(url: str) -> Iterator[Store]:
    """Open results to be read. An SQLite file of an older schema is upgraded in a temporary copy.

    Raises:
        ValueError: there are none, they are of a newer stmbench, or of an older one and on a server.
        OSError: the database cannot be reached or read.
    """
    parsed = database.parse_url(url)
    file = database.sqlite_file(parsed)
    where = database.label(parsed)
    if file is not None and not file.is_file():
        raise ValueError(f"No results at {where}: there is no such file.")
    engine = database.connect(parsed, read_only=True)
    try:
        with database.clear_errors(parsed):
            schema = database.schema_of(engine)
        if schema is None:
            raise ValueError(f"No results at {where}: the database holds none.")
        if schema > tables.SCHEMA:
            raise database.newer(where, schema)
        if schema == tables.SCHEMA:
            yield Store(engine, parsed, database.run_folder(parsed))
        elif file is None:
            raise ValueError(f"{where} is of an older schema: `stmbench db upgrade --db {where}` first.")
        else:
            with tempfile.TemporaryDirectory() as folder:
                yield from _upgraded(parsed, file, Path(folder) / file.name)
    finally:
        engine.dispose()


def _upgraded(url: URL, file: Path, copy: Path) -> Iterator[Store]:
    backup.copy(file, copy)
    engine = database.connect(url.set(database=str(copy)))
    try:
        with database.clear_errors(url):
            database.upgrade(engine, keep=False)
        store = Store(engine, url, database.run_folder(url))
        store.refresh_summaries()
        yield store
    finally:
        engine.dispose()
