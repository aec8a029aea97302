"""Options that several commands share."""

from typing import Annotated

import typer

DEFAULT = "runs/stmbench.db"
Database = Annotated[
    str,
    typer.Option("--db", envvar="STMBENCH_DB", help="The results: an SQLite file, or any SQLAlchemy URL."),
]
