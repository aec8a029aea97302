"""Keeping a database small and quick."""

from typing import NamedTuple

from sqlalchemy import Connection

from stmbench.store import database, tables
from stmbench.store.store import Store


class Sizes(NamedTuple):
    """Bytes on disk."""

    before: int
    after: int


def vacuum(store: Store) -> Sizes:
    """Give the space of deleted rows back, and tell the planner of queries how many rows there are.

    Raises:
        OSError: there is no room for the second copy that is made meanwhile, or somebody is writing.
    """
    engine = database.outside_transactions(store._engine)
    with database.clear_errors(store._url), engine.connect() as connection:
        before = _size(store, connection)
        if database.sqlite_file(store._url):
            for statement in ("VACUUM", "ANALYZE", "PRAGMA wal_checkpoint(TRUNCATE)"):
                connection.exec_driver_sql(statement)
        else:
            connection.exec_driver_sql(f"VACUUM (ANALYZE) {', '.join(tables.metadata.tables)}")
        return Sizes(before, _size(store, connection))


def _size(store: Store, connection: Connection) -> int:
    if file := database.sqlite_file(store._url):
        return file.stat().st_size
    query = "SELECT pg_total_relation_size(%s::regclass)"
    return sum(connection.exec_driver_sql(query, (name,)).scalar_one() for name in tables.metadata.tables)
