"""Whole tables of the database as files: tidy, a row per measurement, for pandas, DuckDB or Datasette.

Beside its own columns each row has the facts of its run that numbers are read by. Rows are written as they
are read, a few thousand in memory at once. The file appears when it is complete: what was there before stays
until then.
"""

import csv
import functools
import json
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from stmbench.reading import where as filters
from stmbench.reading.formats import arrow
from stmbench.store import Store, views
from stmbench.store.tables import VERSION_TABLE

Batches = Iterator[Sequence[Sequence[Any]]]
Writer = Callable[
    [Path, str, Mapping[str, type], Batches], int
]  # file, table, columns, rows -> how many rows


def write(store: Store, output: Path, table: str = "measurements", where: str | None = None) -> int:
    """Write a table into a file, in the format its name ends in; return the number of rows.

    `where` is a `reading.where` expression of the table's columns and those of its rows' runs.

    Raises:
        ValueError: an unknown format; `where` cannot be read; pyarrow is needed and not installed.
        OSError: the file cannot be written.
    """
    if output.suffix not in WRITERS:
        raise ValueError(f"'{output}' does not say its format: end it in {', '.join(WRITERS)}.")
    if _holds_results(output):
        raise ValueError(f"{output} is a results database: it is not overwritten. Give another file with -o.")
    condition = None if where is None else filters.parse(where, views.fields(table))
    unfinished = output.with_name(f".{output.name}.part")
    unfinished.unlink(missing_ok=True)
    try:
        with views.rows(store, table, condition) as batches:
            count = WRITERS[output.suffix](unfinished, table, views.columns(table), batches)
        unfinished.replace(output)
    finally:
        with suppress(OSError):
            unfinished.unlink()
    return count


def _holds_results(path: Path) -> bool:
    """Whether the file is a database of ours, whose tables no export brings back."""
    if path.suffix != ".db" or not path.is_file():
        return False
    with suppress(sqlite3.DatabaseError), closing(sqlite3.connect(path)) as file:
        query = "SELECT count(*) FROM sqlite_master WHERE name = ?"
        return bool(file.execute(query, (VERSION_TABLE,)).fetchone()[0])
    return False


def _csv(path: Path, table: str, columns: Mapping[str, type], batches: Batches) -> int:
    count = 0
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        for batch in batches:
            writer.writerows(_plain(batch, columns))
            count += len(batch)
    return count


def _json_lines(path: Path, table: str, columns: Mapping[str, type], batches: Batches) -> int:
    count = 0
    with path.open("w", encoding="utf-8") as file:
        for batch in batches:
            for row in _plain(batch, columns, keep=object):
                line = json.dumps(dict(zip(columns, row, strict=True)), ensure_ascii=False)
                file.write(f"{line}\n")
            count += len(batch)
    return count


def _sqlite(path: Path, table: str, columns: Mapping[str, type], batches: Batches) -> int:
    kinds = {int: "INTEGER", bool: "INTEGER", float: "REAL"}
    names = ", ".join(f'"{name}" {kinds.get(kind, "TEXT")}' for name, kind in columns.items())
    count = 0
    with closing(sqlite3.connect(path)) as file, file:
        file.execute("PRAGMA synchronous = OFF")  # a file that is not complete is thrown away
        file.execute(f"CREATE TABLE {table} ({names})")
        statement = f"INSERT INTO {table} VALUES ({', '.join('?' * len(columns))})"
        for batch in batches:
            file.executemany(statement, _plain(batch, columns))
            count += len(batch)
        file.execute(f"CREATE INDEX {table}_run ON {table} (run)")
    return count


def _parquet(path: Path, table: str, columns: Mapping[str, type], batches: Batches) -> int:
    pa, pq = arrow()
    kinds = {int: pa.int64(), bool: pa.bool_(), float: pa.float64(), datetime: pa.timestamp("us", tz="UTC")}
    schema = pa.schema([(name, kinds.get(kind, pa.string())) for name, kind in columns.items()])
    count = 0
    with pq.ParquetWriter(path, schema) as writer:
        for batch in batches:
            rows = _plain(batch, columns, keep=datetime)
            values = zip(zip(*rows, strict=True), schema.types, strict=True)
            arrays = [pa.array(each, kind) for each, kind in values]
            writer.write_batch(pa.record_batch(arrays, schema=schema))
            count += len(batch)
    return count


def _plain(
    batch: Sequence[Sequence[Any]], columns: Mapping[str, type], *, keep: type | None = None
) -> Iterator[Sequence[Any]]:
    """The rows with times in ISO's form, and lists and tables as JSON; one of these two is kept as it is."""
    forms = {datetime: datetime.isoformat, object: functools.partial(json.dumps, ensure_ascii=False)}
    kinds = [kind if kind in (str, int, float, bool, datetime) else object for kind in columns.values()]
    changed = [(i, forms[kind]) for i, kind in enumerate(kinds) if kind in forms and kind is not keep]
    for row in batch:
        cells = list(row)
        for i, form in changed:
            cells[i] = None if cells[i] is None else form(cells[i])
        yield cells


WRITERS: Mapping[str, Writer] = {".csv": _csv, ".jsonl": _json_lines, ".db": _sqlite, ".parquet": _parquet}
