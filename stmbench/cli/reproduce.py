"""`stmbench reproduce`: do a finished run again, and say whether the outcome is the same."""

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from stmbench.cli import layout
from stmbench.cli.db import warn_of_network
from stmbench.cli.options import DEFAULT, Database

if TYPE_CHECKING:
    from stmbench.record import Job
    from stmbench.reproduce import Check, Outcome
    from stmbench.store import RunRecord, Store

_EXAMPLES = 8  # of numbers that lie outside their intervals


def reproduce(
    run: Annotated[str, typer.Argument(help="A finished run's id, or enough of its beginning.")],
    again: Annotated[
        str | None, typer.Argument(help="A run that did it again already: only compare the two.")
    ] = None,
    data: Annotated[str | None, typer.Option(help="Where its data are now.")] = None,
    weights: Annotated[Path | None, typer.Option(help="Where the weights it started from are now.")] = None,
    db: Database = DEFAULT,
) -> None:
    """Do a run again, with its recipe, seed, data and weights, and compare the outcome."""
    from stmbench import reproduce as repeat
    from stmbench.store import open_store

    console = Console(soft_wrap=True)
    with open_store(db, create=False) as store:
        then = store.run(run)
        if again:
            now = store.run(again)
            _tell_changes(then, now)
        else:
            now = _again(console, store, then, data, weights and str(weights.resolve()), db)
        found = repeat.outcome(store, then, now)
    layout.print_parts(*_told(then, now, found))
    if not found.reproduced:
        raise typer.Exit(1)


def _again(
    console: Console, store: "Store", then: "RunRecord", data: str | None, weights: str | None, db: str
) -> "RunRecord":
    from stmbench import reproduce as repeat
    from stmbench import runner
    from stmbench.cli import run

    warn_of_network(db)
    asked = repeat.request(then, data=data, weights=weights)
    started: list[str] = []

    def jobs() -> "Iterator[Job]":
        for job in runner.start(asked, store):
            started.append(job.folder.name)
            _tell_changes(then, store.run(started[0]))
            yield job

    run.follow_all(console, store, jobs(), db)
    return store.run(started[0])


def _tell_changes(then: "RunRecord", now: "RunRecord") -> None:
    """What is not as it was; of code and environment, the first question when an outcome differs."""
    from stmbench import reproduce as repeat
    from stmbench.reading.tables import NONE

    table = layout.table("changed since", then.id, now.id, wrap=(then.id, now.id))
    for change in repeat.changed(then, now):
        table.add_row(escape(change.name), *(escape(value) or NONE for value in change.values))
    same = "Recipe, data, code, libraries and machine are as they were."
    layout.print_parts(table if table.row_count else same)


def _told(then: "RunRecord", now: "RunRecord", found: "Outcome") -> "Iterator[str | Table]":
    if found.weights is not None:
        same = "the same, bit for bit" if found.weights else "others"
        yield f"trained weights: {same}"
    if found.alike is not None:
        yield f"test images judged alike, right or wrong: {found.alike:,} of {found.images:,}"
    yield _table(found)
    outside = [check for check in found.checks if not check.holds]
    if outside:
        yield _outside(outside)
    verdict = "[green]reproduced[/]" if found.reproduced else "[red]not reproduced[/]"
    yield f"{verdict}: {then.id} by {now.id}"


def _table(found: "Outcome") -> Table:
    stages: dict[str, list[Check]] = defaultdict(list)
    for check in found.checks:
        stages[check.then.stage].append(check)
    table = layout.table(
        "stage", "numbers", "equal", "within", "outside", right=("numbers", "equal", "within", "outside")
    )
    for stage, checks in stages.items():
        equal = sum(check.now == check.then.value for check in checks)
        holds = sum(check.holds for check in checks)
        counts = (len(checks), equal, holds - equal, len(checks) - holds)
        table.add_row(stage, *map(str, counts))
    return table


def _outside(checks: "list[Check]") -> Table:
    table = layout.table(
        "outside",
        "condition",
        "then",
        "interval",
        "now",
        right=("then", "interval", "now"),
        wrap=("condition",),
    )
    for check in checks[:_EXAMPLES]:
        m = check.then
        interval = f"{layout.value(check.low)} to {layout.value(check.high)}"
        numbers = (layout.value(m.value), interval, layout.value(check.now))
        table.add_row(escape(f"{m.stage} {m.name}"), escape(m.condition), *numbers)
    if len(checks) > _EXAMPLES:
        table.add_row(f"and {len(checks) - _EXAMPLES} more")
    return table
