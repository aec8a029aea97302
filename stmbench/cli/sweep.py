"""`stmbench sweep`: plan many runs, show the plan, and make what is left of it."""

from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import closing
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from stmbench.cli import errors
from stmbench.cli.db import warn_of_network
from stmbench.cli.options import DEFAULT, Database
from stmbench.cli.run import close, db_option, terminated_as_interrupt

if TYPE_CHECKING:
    from stmbench.cli.board import Board
    from stmbench.sweep import Ended, Item, Outcome, Plan, Sweep, Told


class Executor(StrEnum):
    LOCAL = "local"
    SLURM = "slurm"
    RAY = "ray"


def sweep(
    file: Annotated[str, typer.Argument(help="A sweep's TOML file, or the name of one that comes with us.")],
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Runs at once: 1, or one on each GPU, unless said.")
    ] = None,
    gpus: Annotated[str, typer.Option(help="Spread over GPUs: how many (8) or which (0,2).")] = "",
    device: Annotated[str, typer.Option(help="Instead of the file's: auto, cpu, cuda, mps.")] = "",
    executor: Annotated[Executor, typer.Option(help="Where the runs are made.")] = Executor.LOCAL,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Also take up runs that failed before.")
    ] = False,
    db: Database = DEFAULT,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan, and run nothing.")] = False,
) -> None:
    """Make many runs by one file: networks, scales, recipes, seeds; what is done is skipped."""
    from stmbench.cli.sweep_plan import show
    from stmbench.sweep import executors, load, planned

    asked, elsewhere = load(file), executor != Executor.LOCAL
    cards = executors.check(asked, executor.value, jobs=jobs, gpus=gpus)
    device = "cuda" if cards else device
    plan = planned(asked, executors.existing(db), device=device, elsewhere=elsewhere)
    for warning in (*plan.warnings, *executors.warnings(executor.value, db)):
        errors.warn(warning)
    console = Console(soft_wrap=True)
    show(console, plan, retry=retry_failed, jobs=jobs or len(cards) or 1, devices=len(cards) or 1)
    if not dry_run:
        options = {"executor": executor.value, "retry": retry_failed, "jobs": jobs, "gpus": cards}
        _make(console, asked, plan, db, options)


def _make(console: Console, asked: "Sweep", plan: "Plan", db: str, options: dict[str, Any]) -> None:
    """Make what is left, draw it, and say how it ended, with the exit code too."""
    from stmbench.cli.board import Board
    from stmbench.store import open_store
    from stmbench.sweep import executors

    left = plan.to_run(retry=options["retry"])
    if len(plan.of("done")) == len(plan.items):
        console.print(f"Nothing to do: {len(plan.items)} of {len(plan.items)} runs are done.")
        return
    warn_of_network(db)
    with open_store(db) as store:
        store.reap()
        events = executors.follow(asked, plan, store, db, **options)
        with terminated_as_interrupt(), Board(console, left) as board, closing(events):
            stopped = _draw(board, events)
        store.reap()
        code = _close(console, plan, left, list(board.outcomes.values()), stopped)
        if stopped and options["executor"] == "slurm":
            console.print("What is queued stays queued: `scancel` takes it out.")
        if done := [outcome.run_id for outcome in board.outcomes.values() if outcome.state == "done"]:
            close(console, store, done, db_option(db))
    if code:
        raise typer.Exit(code)


def _draw(board: "Board", events: "Iterable[Told | Ended]") -> bool:
    """Draw what is told; whether the user stopped it."""
    try:
        for event in events:
            board.draw(event)
    except KeyboardInterrupt:
        return True
    return False


def _close(
    console: Console, plan: "Plan", left: "Sequence[Item]", ended: "Sequence[Outcome]", stopped: bool
) -> int:
    """Count what has become of the runs; the exit code."""
    before = Counter(item.state for item in plan.items if item not in left)
    now = Counter(outcome.state for outcome in ended)
    failed = now["failed"] + before["failed"]
    counts = {
        f"{now['done']} now, {before['done']} before": now["done"] and before["done"],
        f"[red]{failed} failed[/]": failed,
        f"[yellow]{now['interrupted']} interrupted[/]": now["interrupted"],
        f"{now['running']} another process's": now["running"],
    }
    done = f"[bold]{now['done'] + before['done']} of {len(plan.items)} runs are done[/]"
    console.print(
        "; ".join([done, *(text for text, count in counts.items() if count)]) + ".", highlight=False
    )
    if stopped:
        console.print("[yellow]Stopped.[/] The same command goes on from here.")
    return 130 if stopped else 1 if failed else 0
