"""`stmbench report`: the database as one page for the browser. It imports no torch."""

from pathlib import Path
from typing import Annotated

import typer

from stmbench.cli.options import DEFAULT, Database, DataSets, Devices, Mixers, Recipes, Scales


def report(
    mixer: Mixers = None,
    scale: Scales = None,
    recipe: Recipes = None,
    data: DataSets = None,
    device: Devices = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="The page: an .html file.")] = Path(
        "report.html"
    ),
    watch: Annotated[
        bool, typer.Option("--watch", help="Make it again as runs change, until Ctrl-C.")
    ] = False,
    interval: Annotated[
        float, typer.Option(min=1, help="Seconds from one look to the next, with --watch.")
    ] = 10,
    db: Database = DEFAULT,
) -> None:
    """Write everything that was measured into one page that opens from disk, without a network."""
    from stmbench.report import files, page
    from stmbench.store import open_store

    files.check(output)
    filters = page.Filters(mixer=mixer, scale=scale, recipe_name=recipe, data=data, device=device)
    with open_store(db, create=False) as store:
        sizes = (
            files.watch(store, output, interval, **filters)
            if watch
            else [files.write(output, page.make(store, **filters))]
        )
        for size in sizes:
            typer.echo(f"{output}: {size / 1e6:.2f} MB")
