"""`stmbench leaderboard` and `runs`: what the database holds. None of them imports torch."""

from collections.abc import Sequence
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console, ConsoleOptions, RenderResult
from rich.markup import escape
from rich.measure import Measurement as Width
from rich.table import Table

from stmbench.cli import layout
from stmbench.cli.options import DEFAULT, Database, DataSets, Devices, Mixers, Recipes, Scales

if TYPE_CHECKING:
    from stmbench import leaderboard as board
    from stmbench.store import RunRecord, Store

_GIVE_WAY = ("params", "MACs", "images/s", "latency", "seeds")  # columns, in a narrow terminal


class Format(StrEnum):
    TABLE = "table"
    MARKDOWN = "markdown"
    CSV = "csv"
    JSON = "json"
    LATEX = "latex"


class State(StrEnum):
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    INTERRUPTED = "interrupted"


def leaderboard(
    mixer: Mixers = None,
    scale: Scales = None,
    recipe: Recipes = None,
    data: DataSets = None,
    device: Devices = None,
    sort: Annotated[str, typer.Option(help="Column to rank by: top1, latency, macs, …")] = "top1",
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many rows of each table.")] = None,
    format_: Annotated[Format, typer.Option("--format", help="How to print it.")] = Format.TABLE,
    db: Database = DEFAULT,
) -> None:
    """Rank the finished runs; one table for each set of conditions that may be compared."""
    from stmbench import leaderboard as board
    from stmbench import tables
    from stmbench.store import open_store

    with open_store(db, create=False) as store:
        groups = board.rank(
            store,
            mixer=mixer,
            scale=scale,
            recipe_name=recipe,
            data=data,
            device=device,
            sort=sort,
            limit=limit,
        )
    if format_ is not Format.TABLE:
        typer.echo(tables.EXPORTS[format_](groups))
    elif groups:
        layout.print_parts(*map(_Board, groups))
    else:
        layout.print_parts("No finished runs match. `stmbench runs` lists every run.")


def runs(
    state: Annotated[State | None, typer.Option(help="Only runs in this state.")] = None,
    mixer: Annotated[str | None, typer.Option(help="Only runs of this mixer.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="The newest so many.")] = 20,
    db: Database = DEFAULT,
) -> None:
    """List the runs, newest first, with how they stand."""
    from stmbench import catalog
    from stmbench.store import open_store

    if mixer and not mixer.startswith(catalog.TIMM):
        mixer = catalog.mixer(mixer).name
    equal = {"state": state and str(state), "mixer": mixer}
    with open_store(db, create=False) as store:
        found = store.runs(limit=limit, **{key: value for key, value in equal.items() if value})
    layout.print_parts(_runs(found) if found else "No runs match.")


def summary(console: Console, store: "Store", run_ids: Sequence[str]) -> None:
    """Print the leaderboard's rows of these runs alone."""
    from stmbench import leaderboard as board

    for group in board.rank(store, only=run_ids):
        layout.print_parts(_Board(group), console=console)


class _Board:
    """A group of the leaderboard; in a narrow terminal the costs give way before the ranking does."""

    def __init__(self, group: "board.Group") -> None:
        self.group = group

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from stmbench import tables

        hidden: list[str] = []
        table, unbounded = self._table(hidden), options.update(max_width=layout.UNLIMITED)
        for name in _GIVE_WAY:
            if Width.get(console, unbounded, table).minimum <= options.max_width:
                break
            hidden.append(name)
            table = self._table(hidden)
        yield f"[bold]{escape(tables.caption(self.group))}[/]"
        yield table
        if hidden:
            yield f"[dim]no room for {', '.join(hidden)}; --format csv has every column[/]"
        if note := tables.conditions(self.group):
            yield f"[dim]{escape(note)}[/]"

    def _table(self, hidden: Sequence[str]) -> Table:
        from stmbench import tables

        shown = [i for i, name in enumerate(tables.HEADERS) if name not in hidden]
        headers = [tables.HEADERS[i] for i in shown]
        right = [name for name in headers if name not in ("mixer", "scale")]
        table = layout.table(*headers, right=right, wrap=("mixer", "top-1 %"))
        for row in self.group.rows:
            cells = tables.cells(row)
            table.add_row(*(escape(cells[i]) for i in shown), style="bold" if row.rank == 1 else None)
        return table


def _runs(found: "Sequence[RunRecord]") -> Table:
    forced = any(run.backend for run in found)  # seldom, and then worth a column
    headers = ("run", "state", *["backend"] * forced, "recipe", "data", "seed", "started", "took")
    table = layout.table(*headers, right=("seed", "took"), wrap=("recipe", "data"))
    for run in found:
        end = datetime.now(UTC) if run.state == "running" else run.updated
        table.add_row(
            run.id,
            layout.state(run.state),
            *[escape(run.backend)] * forced,
            escape(run.recipe_name),
            escape(run.data_name),
            str(run.seed),
            _when(run.created),
            layout.duration(end - run.created),
        )
    return table


def _when(time: datetime) -> str:
    """Local time; the year instead of the hour in any other year."""
    local = time.astimezone()
    return f"{local:%m-%d %H:%M}" if local.year == datetime.now().astimezone().year else f"{local:%Y-%m-%d}"
