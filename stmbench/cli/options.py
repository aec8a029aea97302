"""Options that several commands share."""

from typing import Annotated

import typer

DEFAULT = "runs/stmbench.db"
Database = Annotated[
    str,
    typer.Option("--db", envvar="STMBENCH_DB", help="The results: an SQLite file, or any SQLAlchemy URL."),
]

# Which runs: filters, each a name or several with commas between
Mixers = Annotated[str | None, typer.Option(help="Only this mixer, or several: halo,swin.")]
Scales = Annotated[str | None, typer.Option(help="Only this scale, or several.")]
Recipes = Annotated[str | None, typer.Option(help="Only runs of this recipe, or several.")]
DataSets = Annotated[str | None, typer.Option(help="Only runs on this data set, or several.")]
Where = Annotated[
    str | None, typer.Option(metavar="FILTER", help='Only what this holds for: "scale=tiny and top1>70".')
]
Devices = Annotated[str | None, typer.Option(help="Only runs on cpu, cuda or mps.")]
