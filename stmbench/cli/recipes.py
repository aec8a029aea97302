"""`stmbench recipes`: the protocols that come with stmbench, one of them whole, how two of them differ."""

from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

app = typer.Typer(invoke_without_command=True)


@app.callback()
def recipes(context: typer.Context) -> None:
    """List the recipes that come with stmbench; `show` reads one whole, `diff` compares two."""
    if context.invoked_subcommand:
        return
    from stmbench import recipe

    table = Table("recipe", "digest", "what it promises", box=None, pad_edge=False)
    for each in recipe.names():
        promise = recipe.promise(recipe.find(each)).partition("\n\n")[0].replace("\n", " ")
        table.add_row(each, recipe.load(each).digest, escape(promise))
    Console().print(table)


@app.command()
def show(name: Annotated[str, typer.Argument(help="A recipe's name or TOML file.")]) -> None:
    """Read a recipe whole."""
    from stmbench import recipe

    text = recipe.find(name).read_text(encoding="utf-8").rstrip()
    Console(soft_wrap=True).print(escape(text), highlight=False)


@app.command()
def diff(
    first: Annotated[str, typer.Argument(help="A recipe's name or TOML file.")],
    second: Annotated[str, typer.Argument(help="Another.")],
) -> None:
    """Say in which values two recipes differ, defaults included."""
    from stmbench import recipe

    found = recipe.differences(recipe.load(first), recipe.load(second))
    table = Table("setting", escape(first), escape(second), box=None, pad_edge=False)
    for name, values in found.items():
        table.add_row(name, *map(escape, values))
    same = "They are the same, but for their names."
    Console().print(table if found else same, highlight=False)
