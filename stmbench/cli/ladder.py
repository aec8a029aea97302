"""`stmbench ladder`: from a mixer's original network to the unified one, and what each step brings."""

import sys
from collections.abc import Iterator
from itertools import chain
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from stmbench.cli import layout
from stmbench.cli.db import warn_of_network
from stmbench.cli.options import DEFAULT, Database

if TYPE_CHECKING:
    from stmbench.ladder import Cost, Step
    from stmbench.plan import Request
    from stmbench.record import Job
    from stmbench.store import Store

_STYLES = {"better": "green", "worse": "red", "inconclusive": "yellow"}


def ladder(
    mixer: Annotated[str, typer.Option(help="The mixer whose own network is the first rung.")],
    scale: Annotated[
        str | None, typer.Option(help="micro, tiny, small, base. \\[default: the recipe's]")
    ] = None,
    recipe: Annotated[str, typer.Option(help="A recipe's name or TOML file, for every rung.")] = "quick",
    original_recipe: Annotated[
        str | None, typer.Option(help="Another for every rung; --recipe is a last step then.")
    ] = None,
    seeds: Annotated[
        str, typer.Option(help="Seeds, with commas between: a run of every rung for each.")
    ] = "0",
    stage: Annotated[str, typer.Option(help="Stages, with commas between.")] = "build,train,eval,profile",
    data: Annotated[
        str | None, typer.Option(help="Data set: a name or path. \\[default: the recipe's]")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Override the recipe: section.key=value.")
    ] = None,
    db: Database = DEFAULT,
) -> None:
    """Train every rung from the original network to the unified one; say what each step brought."""
    from stmbench import ladder as steps
    from stmbench.cli import run
    from stmbench.store import open_store

    options = {"scale": scale, "recipe_name": recipe, "stage": stage, "data": data, "device": device}
    asked = steps.requests(mixer, seeds, original_recipe=original_recipe, overrides=set_ or [], **options)
    console = Console(soft_wrap=True)
    warn_of_network(db)
    with open_store(db) as store:
        store.reap()
        made: dict[str, list[str]] = {}
        run.follow_all(console, store, _jobs(console, store, asked, made), db)
        runs = store.named(list(chain(*made.values()))).values()
        if unfinished := [each.id for each in runs if each.state != "done"]:
            raise RuntimeError(f"not all rungs are there: `stmbench show {unfinished[0]}` says why.")
        found = steps.steps(store, list(made.items()))
    layout.print_parts(_table(found), _note(recipe, original_recipe), console=console)


def _note(recipe: str, original_recipe: str | None) -> str:
    note = "Each step is held against the rung above it."
    if original_recipe:
        old, new = escape(original_recipe), escape(recipe)
        note += (
            f"\nThe last step changes the recipe alone: all rungs above it were trained by {old}, "
            f"it by {new} (`stmbench recipes diff {old} {new}`)."
        )
    return note


def _jobs(
    console: Console, store: "Store", asked: "list[tuple[str, Request]]", made: dict[str, list[str]]
) -> "Iterator[Job]":
    """The jobs of runs that are not there yet; all runs are put down in `made`, by rung."""
    from stmbench import runner

    for rung, request in asked:
        run, job = runner.claim(request, request.mixers[0], store, argv=sys.argv)
        made.setdefault(rung, []).append(run.id)
        if job:
            yield job
        else:
            console.print(f"{run.id}  {rung}, seed {request.seed}: {run.state} already")


def _table(steps: "list[Step]") -> Table:
    headers = ("rung", "params", "MACs", "latency", "top-1 %", "step", "interval", "verdict")
    table = layout.table(*headers, right=headers[1:7])
    for step in steps:
        table.add_row(*_row(step))
    return table


def _row(step: "Step") -> Iterator[str]:
    import statistics

    from stmbench.reading import tables

    forms: dict[str, Any] = {
        "parameters": tables.amount,
        "MACs": tables.macs,
        "latency": lambda ms: f"{ms:.3g} ms",
    }
    yield step.name
    for name, form in forms.items():
        yield _cost(step.costs.get(name), form)
    scores = [value for value in step.top1 if value is not None]
    sd = f" ±{statistics.stdev(scores):.2f}" if len(scores) > 1 else ""
    yield f"{statistics.fmean(scores):.2f}{sd}" if scores else tables.NONE
    if step.test and step.interval and step.verdict:
        low, high = step.interval
        yield from (f"{step.test.value:+.2f}", f"{low:+.2f} to {high:+.2f}")
        yield f"[{_STYLES[step.verdict]}]{step.verdict}[/]"
    else:
        yield from ("", "", "")


def _cost(cost: "Cost | None", form: Any) -> str:
    from stmbench.reading import tables

    if cost is None or cost.value is None:
        return tables.NONE
    ratio = f" ({cost.ratio:.2f}x)" if cost.ratio is not None else ""
    return form(cost.value) + tables.DISTURBED * cost.disturbed + ratio
