"""`stmbench leaderboard`, `runs` and `show`: what the database holds. None of them imports torch."""

import math
import sys
from collections import Counter, defaultdict
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.console import Console, ConsoleOptions, RenderResult
from rich.markup import escape
from rich.measure import Measurement as Width
from rich.table import Table

from stmbench.cli.options import DEFAULT, Database

if TYPE_CHECKING:
    from stmbench import leaderboard as board
    from stmbench.record import Measurement
    from stmbench.store import RunRecord, Store

_UNLIMITED = 10_000  # characters in a line
_GIVE_WAY = ("params", "MACs", "images/s", "latency", "seeds")  # columns, in a narrow terminal
_STATE_STYLES = {"done": "green", "running": "cyan", "failed": "red", "interrupted": "yellow"}


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
    mixer: Annotated[str | None, typer.Option(help="Only this mixer, or several: halo,swin.")] = None,
    scale: Annotated[str | None, typer.Option(help="Only this scale, or several.")] = None,
    recipe: Annotated[str | None, typer.Option(help="Only runs of this recipe, or several.")] = None,
    data: Annotated[str | None, typer.Option(help="Only runs on this data set, or several.")] = None,
    device: Annotated[str | None, typer.Option(help="Only runs on cpu, cuda or mps.")] = None,
    sort: Annotated[str, typer.Option(help="Column to rank by: top1, latency, macs, …")] = "top1",
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many rows of each table.")] = None,
    format_: Annotated[Format, typer.Option("--format", help="How to print it.")] = Format.TABLE,
    db: Database = DEFAULT,
) -> None:
    """Rank the finished runs; one table for each set of conditions that may be compared."""
    from stmbench import leaderboard as board
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
        typer.echo(board.EXPORTS[format_](groups))
    elif groups:
        _print(*map(_Board, groups))
    else:
        _print("No finished runs match. `stmbench runs` lists every run.")


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
    _print(_runs(found) if found else "No runs match.")


def show(
    run: Annotated[str, typer.Argument(help="The run's id, or enough of its beginning to be the only one.")],
    db: Database = DEFAULT,
) -> None:
    """Tell the whole story of a run: what, with what, stages, numbers, curves and files."""
    from stmbench.store import open_store

    with open_store(db, create=False) as store:
        record = store.run(run)
        measurements = store.measurements(record.id)
        parts = [_facts(record), _stages(store, record), _numbers(measurements)]
        parts += [_curves(measurements), _files(store, record)]
    _print(*parts)


def summary(console: Console, store: "Store", run_ids: Sequence[str]) -> None:
    """Print the leaderboard's rows of these runs alone."""
    from stmbench import leaderboard as board

    for group in board.rank(store, only=run_ids):
        _print(_Board(group), console=console)


def _print(*parts: "Table | _Board | str | None", console: Console | None = None) -> None:
    """Print the parts with a line between; fold nothing where no terminal sets the width."""
    console = console or Console()
    if not console.is_terminal:
        console = Console(file=console.file, width=_UNLIMITED)
    for i, part in enumerate(part for part in parts if part is not None):
        if i:
            console.print()
        console.print(part, highlight=False)


def _table(*headers: str, right: Sequence[str] = (), wrap: Sequence[str] = ()) -> Table:
    """Columns flush left but for those in `right`; in a narrow terminal those in `wrap` give way."""
    rule = box.SIMPLE_HEAD if sys.stdout.isatty() else None
    table = Table(box=rule, padding=(0, 1 if rule else 2, 0, 0), pad_edge=False, show_edge=False)
    for header in headers:
        justify = "right" if header in right else "left"
        least = 7 if header in wrap else None  # or they would give way down to nothing
        table.add_column(
            header, justify=justify, no_wrap=header not in wrap, min_width=least, header_style="bold"
        )
    return table


class _Board:
    """A group of the leaderboard; in a narrow terminal the costs give way before the ranking does."""

    def __init__(self, group: "board.Group") -> None:
        self.group = group

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from stmbench import leaderboard as board

        hidden: list[str] = []
        table, unbounded = self._table(hidden), options.update(max_width=_UNLIMITED)
        for name in _GIVE_WAY:
            if Width.get(console, unbounded, table).minimum <= options.max_width:
                break
            hidden.append(name)
            table = self._table(hidden)
        yield f"[bold]{escape(board.caption(self.group))}[/]"
        yield table
        if hidden:
            yield f"[dim]no room for {', '.join(hidden)}; --format csv has every column[/]"
        if note := board.conditions(self.group):
            yield f"[dim]{escape(note)}[/]"

    def _table(self, hidden: Sequence[str]) -> Table:
        from stmbench import leaderboard as board

        shown = [i for i, name in enumerate(board.HEADERS) if name not in hidden]
        headers = [board.HEADERS[i] for i in shown]
        right = [name for name in headers if name not in ("mixer", "scale")]
        table = _table(*headers, right=right, wrap=("mixer", "top-1 %"))
        for row in self.group.rows:
            cells = board.cells(row)
            table.add_row(*(escape(cells[i]) for i in shown), style="bold" if row.rank == 1 else None)
        return table


def _runs(found: "Sequence[RunRecord]") -> Table:
    forced = any(run.backend for run in found)  # seldom, and then worth a column
    headers = ("run", "state", *["backend"] * forced, "recipe", "data", "seed", "started", "took")
    table = _table(*headers, right=("seed", "took"), wrap=("recipe", "data"))
    for run in found:
        end = datetime.now(UTC) if run.state == "running" else run.updated
        table.add_row(
            run.id,
            _state(run.state),
            *[escape(run.backend)] * forced,
            escape(run.recipe_name),
            escape(run.data_name),
            str(run.seed),
            _when(run.created),
            _duration(end - run.created),
        )
    return table


def _facts(run: "RunRecord") -> Table:
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold")
    reason = f": {run.reason}" if run.reason else ""
    code = run.git_commit[:12] + (" with uncommitted changes" if run.git_dirty else "")
    facts = {
        "run": run.id,
        "state": run.state + reason,
        "network": f"{run.mixer} {run.scale}".rstrip(),
        "weights": f"{run.weights} (sha256 {run.weights_sha256[:12]})" if run.weights else "",
        "recipe": f"{run.recipe_name} ({run.recipe_digest})",
        "overrides": ", ".join(run.overrides),
        "backend": f"{run.backend}, forced" if run.backend else "",
        "images": ", ".join(f"{key} {value}" for key, value in run.preprocessing.items()),
        "data": f"{run.data_name} ({run.data_fingerprint[:12]})",
        "seed": str(run.seed),
        "device": f"{run.hardware} [{run.device}], {run.precision}, {run.threads} threads",
        "started": f"{run.created.astimezone():%Y-%m-%d %H:%M:%S %Z} on {run.host}, process {run.pid}",
        "command": " ".join(run.argv),
        "code": code,
        "versions": ", ".join(f"{name} {version}" for name, version in run.versions.items()),
        "folder": str(run.folder),
    }
    for name, value in facts.items():
        if value:
            table.add_row(name, escape(value))
    return table


def _stages(store: "Store", run: "RunRecord") -> Table | None:
    table = _table("stage", "state", "started", "took", "reason", right=("took",), wrap=("reason",))
    for stage in store.stages(run.id):
        took = _duration(stage.ended - stage.started) if stage.ended else ""
        started = f"{stage.started.astimezone():%H:%M:%S}"
        table.add_row(stage.name, _state(stage.state), started, took, escape(stage.reason))
    return table if table.row_count else None


def _numbers(measurements: "Sequence[Measurement]") -> Table | None:
    """One line per number; what most conditions of a stage have in common is said once, in its last line."""
    table = _table("stage", "number", "value", "unit", "condition", right=("value",), wrap=("condition",))
    stages: dict[str, list[Measurement]] = defaultdict(list)
    for m in measurements:
        if m.step == 0:
            stages[m.stage].append(m)
    for stage, numbers in stages.items():
        common = _common([m.condition for m in numbers if m.condition])
        for m in numbers:
            parts = m.condition.split(",")
            if all(part in parts for part in common):
                parts = [part for part in parts if part not in common]
            value = "[red]failed[/]" if m.reason else _value(m.value)
            where = escape(": ".join(filter(None, [", ".join(parts), m.reason])))
            table.add_row(m.stage, escape(m.name), value, escape(m.unit), where)
        if common:
            table.add_row(stage, "[dim]the rest at[/]", "", "", f"[dim]{escape(', '.join(common))}[/]")
    return table if table.row_count else None


def _common(conditions: Sequence[str]) -> list[str]:
    """The parts that most conditions have, where they are worth a line of their own."""
    counts = Counter(part for condition in conditions for part in condition.split(","))
    frequent = [part for part, count in counts.items() if count > max(1, len(conditions) / 2)]
    common = [part for part in frequent if not part.startswith("batch")]  # which differs by its nature
    return common if len(common) > 1 else []


def _curves(measurements: "Sequence[Measurement]") -> Table | None:
    """One line per epoch, one column per name (and condition) measured at every epoch."""
    epochs: dict[int, dict[str, float]] = defaultdict(dict)
    for m in measurements:
        if m.step:
            under = " ".join(part.partition("=")[2] for part in m.condition.split(","))
            epochs[m.step][f"{m.name} {under}".strip().replace("_", " ")] = m.value
    names = list(dict.fromkeys(name for values in epochs.values() for name in values))
    table = _table("epoch", *names, right=("epoch", *names), wrap=names)
    for epoch, values in sorted(epochs.items()):
        table.add_row(str(epoch), *(_value(values[name]) if name in values else "" for name in names))
    return table if table.row_count else None


def _files(store: "Store", run: "RunRecord") -> Table | None:
    table = _table("file", "kind", "condition", "size", "sha256", right=("size",), wrap=("file", "condition"))
    for file in store.artifacts(run.id):
        size = f"{file.bytes / 1e6:.2f} MB"
        table.add_row(escape(str(file.path)), file.kind, escape(file.condition), size, file.sha256[:12])
    return table if table.row_count else None


def _state(state: str) -> str:
    return f"[{_STATE_STYLES[state]}]{state}[/]"


def _value(value: float) -> str:
    """Whole and large numbers in full, others with four significant digits."""
    if math.isfinite(value) and (value == int(value) or abs(value) >= 1e6):
        return f"{int(value):,}"
    return f"{value:,.1f}" if abs(value) >= 1000 else f"{value:.4g}"


def _when(time: datetime) -> str:
    """Local time; the year instead of the hour in any other year."""
    local = time.astimezone()
    return f"{local:%m-%d %H:%M}" if local.year == datetime.now().astimezone().year else f"{local:%Y-%m-%d}"


def _duration(time: timedelta) -> str:
    """``12.3 s``, ``3:25`` (minutes) or ``1:03:25``."""
    seconds = time.total_seconds()
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, hours = int(seconds) // 60 % 60, int(seconds) // 3600
    return (f"{hours}:{minutes:02}" if hours else f"{minutes}") + f":{int(seconds) % 60:02}"
