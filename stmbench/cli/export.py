"""`stmbench export`: the database's tables as files for other programs. It imports no torch."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from stmbench.cli.options import DEFAULT, Database, Where


class Table(StrEnum):
    MEASUREMENTS = "measurements"
    RUNS = "runs"
    STAGES = "stages"
    FILES = "files"


def export(
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The file: .csv, .jsonl, .parquet, or .db for SQLite.")
    ],
    table: Annotated[Table, typer.Option(help="Of what it has a row each.")] = Table.MEASUREMENTS,
    where: Where = None,
    db: Database = DEFAULT,
) -> None:
    """Write every measurement (or run, stage, file) into one tidy table, for pandas, DuckDB or Datasette."""
    from stmbench.reading import export as exporting
    from stmbench.store import open_store

    with open_store(db, create=False) as store:
        count = exporting.write(store, output, table, where)
    typer.echo(f"{output}: {count:,} {table if count != 1 else table.removesuffix('s')}")
