"""A run as a whole: its row and every row that belongs to it, to be taken from one database into another.

Values are as Python has them (aware times, parsed JSON), the same from every kind of database.
"""

import dataclasses
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import JSON, Column, Connection, Table, delete, insert, select

from stmbench.store import tables

PARTS = {"stage": tables.stage, "measurement": tables.measurement, "artifact": tables.artifact}
Row = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class WholeRun:
    """A run's rows by their columns; those of its parts in their keys' order, without the column `run`."""

    run: Row
    stage: list[Row]
    measurement: list[Row]
    artifact: list[Row]
    folder: Path  # absolute

    @property
    def id(self) -> str:
        return self.run["id"]

    def same(self, other: "WholeRun") -> bool:
        """Whether the two are equal wherever their files are kept."""
        here = [dataclasses.replace(run, folder=Path()) for run in (self, other)]
        return here[0] == here[1]


def whole(folder: Path, run: Mapping[str, Any], parts: Mapping[str, list[Row]]) -> WholeRun:
    """A run of these rows, in any order, perhaps of an older schema; its files are relative to `folder`."""
    complete = {column.name: _value(column, run) for column in tables.run.columns}
    place = folder / complete.pop("folder")
    ordered = {name: _ordered(table, parts.get(name, [])) for name, table in PARTS.items()}
    return WholeRun(run=complete, folder=place, **ordered)


def _ordered(table: Table, rows: list[Row]) -> list[Row]:
    keys = [column.name for column in table.primary_key if column.name != "run"]
    columns = [column for column in table.columns if column.name != "run"]
    complete = [{column.name: _value(column, row) for column in columns} for row in rows]
    return sorted(complete, key=lambda row: [row[key] for key in keys])


def _value(column: Column[Any], row: Mapping[str, Any]) -> Any:
    """The row's value, or what an upgrade gives older rows."""
    if column.name in row or column.server_default is None:
        return row[column.name]
    default = getattr(column.server_default, "arg", "")
    return json.loads(default) if isinstance(column.type, JSON) else default


def ids(connection: Connection) -> list[str]:
    """Every run of a database, the oldest first."""
    return list(connection.scalars(select(tables.run.c.id).order_by(tables.run.c.created, tables.run.c.id)))


def read(connection: Connection, run_id: str, folder: Path) -> WholeRun | None:
    """The run with this id as it is in a database whose files are relative to `folder`; None if it is not."""
    row = connection.execute(select(tables.run).where(tables.run.c.id == run_id)).one_or_none()
    if row is None:
        return None
    parts = {
        name: [dict(row) for row in connection.execute(select(t).where(t.c.run == run_id)).mappings()]
        for name, t in PARTS.items()
    }
    return whole(folder, row._asdict(), parts)


def write(connection: Connection, new: WholeRun, folder: str, *, replace: bool = False) -> None:
    """Put a run in, or in the place of the one with its id; `folder` is its column's value. No summaries."""
    if replace:
        for table in (tables.summary, *PARTS.values()):
            connection.execute(delete(table).where(table.c.run == new.id))
        connection.execute(delete(tables.run).where(tables.run.c.id == new.id))
    connection.execute(insert(tables.run).values({**new.run, "folder": folder}))
    for name, table in PARTS.items():
        if rows := [{**row, "run": new.id} for row in getattr(new, name)]:
            connection.execute(insert(table), rows)


def columns() -> Iterator[tuple[str, Table]]:
    """The tables that make a whole run, by their names."""
    yield "run", tables.run
    yield from PARTS.items()
