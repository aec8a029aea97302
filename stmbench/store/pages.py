"""Rows of a damaged SQLite file, read around its broken pages.

SQLite keeps rows in pages, and a broken page takes all its rows with it. Numbered tables are read by their
row numbers, which needs no index; an index that is whole lists the keys of the rows that were lost. A table
in the order of its key is read from both ends of a range.
"""

import contextlib
import json
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import JSON, Boolean, Column, DateTime, Double, Integer, Table

from stmbench.store import backup
from stmbench.store.rows import Row

Key = tuple[str, ...]
_BLIND = 20_000  # row numbers that are tried in a row where nothing says how many there are


@dataclass(frozen=True, slots=True)
class Numbered:
    """What is left of a table whose rows have numbers."""

    rows: list[Row]
    lost: list[Key]  # keys of rows that cannot be read
    all_named: bool  # whether those are all that were lost


@contextlib.contextmanager
def opened(file: Path) -> Iterator[sqlite3.Connection]:
    """The file, to be read as far as it can be.

    Raises:
        OSError: not even its schema can be read.
    """
    try:
        connection = backup.reader(file)
    except sqlite3.DatabaseError as error:
        raise OSError(
            f"Not even the list of tables in {file} can be read ({error}): go back to a copy of it, such as "
            "`stmbench db backup` and every upgrade make."
        ) from error
    with contextlib.closing(connection):
        # Text that is no text is a damage to be found in its row, not an error of its own.
        connection.text_factory = lambda text: text.decode("utf-8", "surrogateescape")
        yield connection


def complaints(file: Path, most: int = 100) -> list[str]:
    """What SQLite finds broken in the file, a line each; empty if nothing.

    Raises:
        OSError: not even its schema can be read.
    """
    with opened(file) as connection:
        try:
            texts = [row[0] for row in connection.execute(f"PRAGMA integrity_check({most})")]
        except sqlite3.DatabaseError as error:
            return [str(error)]
    lines = [line for text in texts for line in text.splitlines() if not line.startswith("***")]
    return [] if lines == ["ok"] else lines


def numbered(connection: sqlite3.Connection, table: Table) -> Numbered:
    """Every row of the table that can be read, and the keys of those that cannot as far as they are known."""
    columns = _columns(connection, table)
    key = [column.name for column in table.primary_key]
    listed, complete = _listed(connection, table.name, key)
    last = max(listed, default=0) if complete else None
    query = f"SELECT rowid, {_names(columns)} FROM {table.name} NOT INDEXED WHERE rowid"
    found = dict(_walk(connection, f"{query} >= ? ORDER BY rowid", last))
    for number in listed.keys() - found.keys():
        with contextlib.suppress(sqlite3.DatabaseError):
            found.update((row[0], row[1:]) for row in connection.execute(f"{query} = ?", (number,)))
    rows: list[Row] = []
    lost = {number: name for number, name in listed.items() if number not in found}
    for number, values in sorted(found.items()):
        row = sound(table, dict(zip(columns, values, strict=True)))
        name = row and tuple(row[column] for column in key)
        if row is None or listed.get(number, name) != name:
            lost[number] = listed.get(number, ())
        else:
            rows.append(row)
    return Numbered(rows, [name for name in lost.values() if name], complete and all(lost.values()))


def _walk(
    connection: sqlite3.Connection, query: str, last: int | None
) -> Iterator[tuple[int, Sequence[Any]]]:
    """Rows by their numbers; where one cannot be read, the next number is tried, up to the `last`."""
    number, misses = 1, 0
    while True:
        try:
            for row in connection.execute(query, (number,)):
                if row[0] < number:
                    raise sqlite3.DatabaseError("the rows are out of order")
                yield row[0], row[1:]
                number, misses = row[0] + 1, 0
            return
        except sqlite3.DatabaseError:
            number, misses = number + 1, misses + 1
            if misses > _BLIND if last is None else number > last:
                return


def _listed(connection: sqlite3.Connection, table: str, key: Sequence[str]) -> tuple[dict[int, Key], bool]:
    """Every row's key by its number, as the primary key's index has them, and whether the index is whole."""
    indices = connection.execute(f"PRAGMA index_list({table})").fetchall()
    [index] = [row[1] for row in indices if row[3] == "pk"]
    found, complete = from_both_ends(
        connection, f"SELECT rowid, {_names(key)} FROM {table} INDEXED BY {index}", key
    )
    keys = {row[0]: tuple(row[1:]) for row in found}
    whole = {number: name for number, name in keys.items() if all(isinstance(part, str) for part in name)}
    return whole, complete and len(whole) == len(keys)


def from_both_ends(
    connection: sqlite3.Connection, query: str, key: Sequence[str], values: Sequence[str] = ()
) -> tuple[list[Sequence[Any]], bool]:
    """The rows, by their key, before and after what cannot be read, and whether all could be."""
    found: dict[Sequence[Any], None] = {}
    for direction in ("ASC", "DESC"):
        order = ", ".join(f"{column} {direction}" for column in _quoted(key))
        try:
            for row in connection.execute(f"{query} ORDER BY {order}", values):
                found[row] = None
        except sqlite3.DatabaseError:
            continue
        return list(found), direction == "ASC"
    return list(found), False


def sound(table: Table, row: Row) -> Row | None:
    """The row as Python has it; None if it holds what its columns cannot."""
    try:
        return {key: _parsed(table.c[key], value) for key, value in row.items()}
    except (ValueError, TypeError):
        return None


def _parsed(column: Column[Any], value: Any) -> Any:
    kind = column.type
    if value is None:
        if not column.nullable:
            raise ValueError("no value")
        return None
    if isinstance(kind, JSON):
        return json.loads(value)
    if isinstance(kind, Boolean):
        return {0: False, 1: True}.get(value) if value in (0, 1) else _refuse(value)
    if isinstance(kind, Integer):
        return value if isinstance(value, int) else _refuse(value)
    if isinstance(kind, Double):
        return float(value) if isinstance(value, float | int) else _refuse(value)
    if not isinstance(value, str):
        _refuse(value)
    value.encode()  # a lone surrogate, which stands for a byte that is no text, cannot be
    return datetime.fromisoformat(value).replace(tzinfo=UTC) if _is_time(column) else value


def _is_time(column: Column[Any]) -> bool:
    return isinstance(getattr(column.type, "impl", None), DateTime)


def _refuse(value: Any) -> Any:
    raise ValueError(f"not what the column holds: {value!r}")


def _columns(connection: sqlite3.Connection, table: Table) -> list[str]:
    """Those of ours that the file's table has: one of an older schema has fewer."""
    there = [row[1] for row in connection.execute(f"PRAGMA table_info({table.name})")]
    return [name for name in there if name in table.c]


def suspects(connection: sqlite3.Connection, table: Table, owners: Sequence[str]) -> set[str]:
    """Which of the owners of a table's rows, the first part of its key, have rows beside broken ones.

    A page that is broken and yet reads shows as rows that are not sound, out of order, or of no known owner:
    a search that meets them goes astray, and misses others.
    """
    found: set[str] = set()
    start = ""
    for owner in sorted(owners):
        if owner < start:
            continue
        walk = _Walk(set(owners), found, owner if start else "")
        try:
            walk.go(connection, table)
            break
        except sqlite3.DatabaseError:
            found.add(walk.last[0])
            start = f"{max(walk.last[0], owner)}\0"  # go on with the next
    return found


class _Walk:
    """Over a table in the order of its key until something cannot be read; adds suspects on its way."""

    def __init__(self, known: set[str], found: set[str], start: str) -> None:
        self.known, self.found = known, found
        self.last: list[Any] = [start]

    def go(self, connection: sqlite3.Connection, table: Table) -> None:
        columns = _columns(connection, table)
        key = [column.name for column in table.primary_key]
        first, *_ = order = _quoted(key)
        query = f"SELECT {_names(columns)} FROM {table.name} WHERE {first} >= ? ORDER BY {', '.join(order)}"
        astray = self.last != [""]
        for values in connection.execute(query, (self.last[0],)):
            row = dict(zip(columns, values, strict=True))
            place = sound(table, {column: row[column] for column in key})
            at = list(place.values()) if place else [""]
            if at <= self.last or at[0] not in self.known:
                astray = True
                self.found.add(self.last[0])
                continue
            if astray or sound(table, row) is None:
                self.found.add(at[0])
            self.last, astray = at, False


def measured(connection: sqlite3.Connection, table: Table, **equal: str) -> tuple[list[Row], bool]:
    """The rows with these values of a table in the order of its key, and whether they are all there are."""
    columns = _columns(connection, table)
    where = " AND ".join(f"{name} = ?" for name in _quoted(list(equal)))
    key = [column.name for column in table.primary_key]
    query = f"SELECT {_names(columns)} FROM {table.name} WHERE {where}"
    found, complete = from_both_ends(connection, query, key, list(equal.values()))
    rows = [sound(table, dict(zip(columns, row, strict=True))) for row in found]
    there = [row for row in rows if row is not None]
    return there, complete and len(there) == len(rows)


def _quoted(names: Sequence[str]) -> list[str]:
    return [f'"{name}"' for name in names]


def _names(names: Sequence[str]) -> str:
    return ", ".join(_quoted(names))
