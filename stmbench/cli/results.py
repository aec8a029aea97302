"""`stmbench leaderboard` and `runs`: what the database holds. None of them imports torch."""

import contextlib
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.markup import escape
from rich.measure import Measurement as Width
from rich.table import Table

from stmbench.cli import layout
from stmbench.cli.options import DEFAULT, Database, DataSets, Devices, Mixers, Recipes, Scales, Where

if TYPE_CHECKING:
    from stmbench.reading import rows as board
    from stmbench.store import RunRecord, Store

_GIVE_WAY = ("original", "parameters", "macs", "throughput", "latency", "seeds")  # in a narrow terminal


class Format(StrEnum):
    TABLE = "table"
    MARKDOWN = "markdown"
    CSV = "csv"
    JSON = "json"
    LATEX = "latex"
    PARQUET = "parquet"
    HTML = "html"


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
    where: Where = None,
    columns: Annotated[
        str, typer.Option(help="Columns, measurements too: mixer,top1,erf.area@level=4,share=50.")
    ] = "",
    published: Annotated[bool, typer.Option("--published", help="The paper's results beside ours.")] = False,
    pareto: Annotated[
        str | None, typer.Option(metavar="COST", help="Only the Pareto front of top-1 against this column.")
    ] = None,
    sort: Annotated[
        str, typer.Option(help="Column to rank by: top1, latency, …; -latency for the other way round.")
    ] = "top1",
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many rows of each table.")] = None,
    format_: Annotated[
        Format | None, typer.Option("--format", help="How to print it; by default as -o ends, or a table.")
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Into this file.")] = None,
    db: Database = DEFAULT,
) -> None:
    """Rank the finished runs; one table for each set of conditions that may be compared."""
    from stmbench.reading import columns as measured
    from stmbench.reading import formats
    from stmbench.reading import leaderboard as board
    from stmbench.store import open_store

    form, asked = formats.form(format_, output), measured.split(columns)
    with open_store(db, create=False) as store:
        groups = board.rank(
            store,
            mixer=mixer,
            scale=scale,
            recipe_name=recipe,
            data=data,
            device=device,
            where=where,
            columns=asked,
            published=published,
            pareto=pareto,
            sort=sort,
            limit=limit,
        )
    _deliver(formats.EXPORTS[form](groups, asked) if form != Format.TABLE else _table(groups, asked), output)
    if output:
        count = sum(len(group.rows) for group in groups)
        typer.echo(f"{output}: {count} row{'s' * (count != 1)}")


def _table(groups: "Sequence[board.Group]", asked: Sequence[str]) -> list[RenderableType]:
    return [_Board(group, asked) for group in groups] or [
        "No finished runs match. `stmbench runs` lists every run."
    ]


def _deliver(content: str | bytes | list[RenderableType], output: Path | None) -> None:
    """Write the content into a file, or print it."""
    if isinstance(content, list):
        with contextlib.nullcontext() if output is None else output.open("w", encoding="utf-8") as file:
            layout.print_parts(*content, console=Console(file=file))
        return
    if isinstance(content, str):
        content = f"{content}\n".encode()
    elif output is None and _screen():
        raise ValueError("Parquet is nothing to read on a screen: write it into a file with -o.")
    if output:
        output.write_bytes(content)
    else:
        typer.echo(content, nl=False)


def _screen() -> bool:
    return sys.stdout.isatty()


def runs(
    state: Annotated[State | None, typer.Option(help="Only runs in this state.")] = None,
    mixer: Annotated[str | None, typer.Option(help="Only runs of this mixer.")] = None,
    where: Where = None,
    limit: Annotated[int, typer.Option(min=1, help="The newest so many.")] = 20,
    db: Database = DEFAULT,
) -> None:
    """List the runs, newest first, with how they stand."""
    from stmbench import catalog
    from stmbench.store import open_store, views

    if mixer and not mixer.startswith(catalog.TIMM):
        mixer = catalog.mixer(mixer).name
    equal = {"state": state and str(state), "mixer": mixer}
    with open_store(db, create=False) as store:
        chosen = {key: value for key, value in equal.items() if value}
        found = store.runs(limit=limit, where=views.of_runs(where), **chosen)
    layout.print_parts(_runs(found) if found else "No runs match.")


def summary(console: Console, store: "Store", run_ids: Sequence[str]) -> None:
    """Print the leaderboard's rows of these runs alone, with what their stages are known by."""
    from stmbench.reading import columns as measured
    from stmbench.reading import leaderboard as board

    stages = {stage for run_id in run_ids for stage in store.run(run_id).stages}
    columns = measured.known_by(stages)
    sort = columns[0] if columns and "eval" not in stages else "top1"
    for group in board.rank(store, only=run_ids, columns=columns, sort=sort):
        layout.print_parts(_Board(group), console=console)


class _Board:
    """A group of the leaderboard; in a narrow terminal the costs give way before the ranking does."""

    def __init__(self, group: "board.Group", asked: Sequence[str] = ()) -> None:
        from stmbench.reading import tables

        self.group, self.names = group, tables.shown(group, asked)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from stmbench.reading import tables

        names, unbounded = list(self.names), options.update(max_width=layout.UNLIMITED)
        folded = console.is_terminal
        table, hidden = self._table(names, folded), []
        for name in self._give_way():
            if Width.get(console, unbounded, table).minimum <= options.max_width:
                break
            names.remove(name)
            hidden.append(name)
            table = self._table(names, folded)
        yield f"[bold]{escape(tables.caption(self.group))}[/]"
        yield table
        if hidden:
            missing = ", ".join(tables.headers(self.group, hidden)[1:])
            yield f"[dim]no room for {escape(missing)}; --format csv has every column[/]"
        for note in (tables.conditions(self.group, names), *tables.notes(self.group)):
            if note:
                yield f"[dim]{escape(note)}[/]"

    def _give_way(self) -> list[str]:
        """The columns that a narrow terminal can do without, the first of them first."""
        told = ("interval", "published") * ("difference" in self.names)  # by the difference
        kept = ("mixer", self.group.ranked_by)
        order = dict.fromkeys((*_GIVE_WAY, *told, *reversed(self.names)))
        return [name for name in order if name in self.names and name not in kept]

    def _table(self, names: Sequence[str], folded: bool) -> Table:
        """With `folded`, a header has a line for each part of its condition."""
        from stmbench.reading import tables

        headers = [
            header.replace(", ", ",\n" if folded else ", ") for header in tables.headers(self.group, names)
        ]
        texts = [header for header, name in zip(headers[1:], names, strict=True) if name in tables.TEXTS]
        right = [header for header in headers if header not in texts]
        table = layout.table(*headers, right=right, wrap=("mixer",))
        for row in self.group.rows:
            cells = map(escape, tables.cells(row, self.group, names))
            table.add_row(*cells, style="bold" if row.rank == 1 else None)
        return layout.firm(table)


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
