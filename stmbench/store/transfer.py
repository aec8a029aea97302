"""Results as text: one JSON object a line, for another machine, another database, or an archive.

The first line names the format and the schema; then each run is a line with all its rows, and the last line
counts the runs, so that a file which was cut off is known. Every bit of a number is kept: numbers are written
with as many digits as it takes, infinity as a string, not-a-number as null, which is how databases hold it.
Times are ISO 8601, in UTC. A name that ends in .gz is compressed.
"""

import gzip
import json
import math
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import IO, Any, cast

from sqlalchemy import Double, Table

from stmbench.store import backup, rows, tables
from stmbench.store.rows import Row, WholeRun

FORMAT = "stmbench-runs/1"


def export(runs: Iterable[WholeRun], file: Path) -> int:
    """Write runs to a new file, which is there whole or not at all; returns how many.

    Raises:
        ValueError: the file is there already.
        OSError: it cannot be written.
    """
    count = 0
    with backup.new_file(file) as part, _open(part, "wt", file.suffix == ".gz") as out:
        print(json.dumps({"format": FORMAT, "schema": tables.SCHEMA}), file=out)
        for run in runs:
            print(json.dumps(_plain(run), ensure_ascii=False), file=out)
            count += 1
        print(json.dumps({"runs": count}), file=out)
    return count


def read(file: Path) -> Iterator[WholeRun]:
    """The runs of such a file, one after the other.

    Raises:
        ValueError: it is another kind of file, of a newer stmbench, damaged, or cut off.
        OSError: it cannot be read.
    """
    count, ended = 0, False
    with _lines(file) as lines:
        _check(file, next(lines, {}))
        for number, line in enumerate(lines, 2):
            if ended := line.keys() == {"runs"}:
                break
            try:
                yield _whole(line)
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                raise ValueError(f"{file}, line {number}, is no run: {error!r}.") from error
            count += 1
    if not ended:
        raise ValueError(f"{file} is cut off after {count} runs; those were taken in. Get the whole file.")


def _check(file: Path, header: Row) -> None:
    if header.get("format") != FORMAT:
        raise ValueError(
            f"{file} is no export of stmbench: `stmbench db export` writes what can be imported."
        )
    if header["schema"] > tables.SCHEMA:
        raise ValueError(
            f"{file} was written by a newer stmbench (schema {header['schema']}; this one knows "
            f"{tables.SCHEMA}). Upgrade stmbench."
        )


@contextmanager
def _lines(file: Path) -> Iterator[Iterator[Row]]:
    with _open(file, "rt", file.suffix == ".gz") as text:
        yield _parsed(file, text)


def _parsed(file: Path, text: IO[str]) -> Iterator[Row]:
    try:
        for number, line in enumerate(text, 1):
            if line.endswith("\n"):  # else it is cut off
                value = json.loads(line)
                if not isinstance(value, dict):
                    raise ValueError(f"{file}, line {number}, is no object.")
                yield value
    except EOFError:
        return  # of a compressed file that is cut off
    except (json.JSONDecodeError, UnicodeDecodeError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{file} is no export of stmbench, or damaged: {error}.") from error


def _open(file: Path, mode: str, compressed: bool) -> IO[str]:
    return cast(IO[str], (gzip.open if compressed else open)(file, mode, encoding="utf-8"))


def _plain(run: WholeRun) -> Row:
    found: Row = {"run": {**_written(run.run), "folder": str(run.folder)}}
    return found | {name: [_written(row) for row in getattr(run, name)] for name in rows.PARTS}


def _written(row: Row) -> Row:
    return {
        key: value.isoformat()
        if isinstance(value, datetime)
        else str(value)
        if _is_infinite(value)
        else value
        for key, value in row.items()
    }


def _is_infinite(value: Any) -> bool:
    return isinstance(value, float) and math.isinf(value)


def _whole(line: Row) -> WholeRun:
    parts = {name: [_taken(table, row) for row in line[name]] for name, table in rows.PARTS.items()}
    return rows.whole(Path(), _taken(tables.run, line["run"]), parts)


def _taken(table: Table, row: Row) -> Row:
    taken = dict(row)
    for column in table.columns:
        value = taken.get(column.name)
        if value is None:
            continue
        if isinstance(column.type, tables.UTCDateTime):
            taken[column.name] = datetime.fromisoformat(value)
        elif isinstance(column.type, Double):
            taken[column.name] = float(value)
    return taken
