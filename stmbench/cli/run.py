"""`stmbench run` and `stmbench resume`: take networks through their stages and show it."""

import contextlib
import dataclasses
import itertools
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape

from stmbench.cli import errors
from stmbench.cli.db import warn_of_network
from stmbench.cli.options import DEFAULT, Database

if TYPE_CHECKING:
    from stmbench.plan import Request
    from stmbench.record import Job
    from stmbench.store import Store

RUN_HELP = "The run's id, or enough of its beginning to be the only one."


def run(
    mixer: Annotated[
        str | None, typer.Option(help="A mixer, several (halo,swin), or all. [default: halo]")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="A classifier of timm's, or several: timm:resnet18.")
    ] = None,
    stage: Annotated[
        str, typer.Option(help="A stage, several (train,eval), or all the recipe lists.")
    ] = "all",
    scale: Annotated[
        str | None, typer.Option(help="micro, tiny, small, base. [default: the recipe's]")
    ] = None,
    recipe: Annotated[str, typer.Option(help="A recipe's name or TOML file.")] = "quick",
    seed: Annotated[
        int, typer.Option(help="Seed of weights, order and augmentation.", min=0, max=2**32 - 1)
    ] = 0,
    seeds: Annotated[
        str | None, typer.Option(help="Several seeds, a run for each: 0,1,2. [default: --seed]")
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="Data set: a name or path. [default: the recipe's]")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
    weights: Annotated[
        Path | None, typer.Option(help="Checkpoint to start from (.safetensors, .pth).")
    ] = None,
    backend: Annotated[
        str, typer.Option(help="How mixers compute: see `stmbench mixers show halo`. [default: the fastest]")
    ] = "",
    design: Annotated[
        str,
        typer.Option(help="What stands around the mixers: unified, original, or a step: `stmbench ladder`."),
    ] = "unified",
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Override the recipe: section.key=value.")
    ] = None,
    db: Database = DEFAULT,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would run, and run nothing.")] = False,
) -> None:
    """Build, train, evaluate and profile networks by one recipe, and store every number."""
    from stmbench import plan

    asked = plan.request(
        mixer=mixer,
        model=model,
        scale=scale,
        recipe_name=recipe,
        overrides=set_ or [],
        stage=stage,
        seed=seed,
        data=data,
        device=device,
        weights=weights,
        backend=backend,
        design=design,
    )
    for warning in asked.warnings:
        errors.warn(warning)
    console, numbers = Console(soft_wrap=True), plan.seeds(seeds or str(seed))
    if dry_run:
        from stmbench.cli import preview

        preview.show(console, asked, numbers)
    else:
        _run_all(console, [dataclasses.replace(asked, seed=number) for number in numbers], db)


def resume(
    run: Annotated[str, typer.Argument(help=RUN_HELP)],
    db: Database = DEFAULT,
) -> None:
    """Go on with an interrupted or failed run from its last finished epoch and stage."""
    from stmbench import runner
    from stmbench.store import open_store

    warn_of_network(db)
    console, store = Console(soft_wrap=True), open_store(db, create=False)
    follow_all(console, store, iter([runner.reopen(run, store)]), db)


def _run_all(console: Console, asked: "list[Request]", db: str) -> None:
    from stmbench import runner
    from stmbench.store import open_store

    warn_of_network(db)
    store = open_store(db)
    store.reap()
    jobs = itertools.chain.from_iterable(runner.start(each, store) for each in asked)
    follow_all(console, store, jobs, db)


def follow_all(console: Console, store: "Store", jobs: "Iterator[Job]", db: str) -> None:
    """Follow runs one after the other; a failed one does not keep the next from running."""
    option = db_option(db)
    done: list[str] = []
    code = 0
    with terminated_as_interrupt(), errors.fallbacks():
        for job in jobs:
            run_id = job.folder.name
            try:
                _follow(console, store, job)
                done.append(run_id)
            except KeyboardInterrupt:
                console.print(f"[yellow]Stopped.[/] `stmbench resume {run_id}{option}` goes on from here.")
                code = 130
                break
            except Exception as error:
                if "--debug" in sys.argv:
                    raise
                errors.show(error, f"{run_id}: ")
                code = errors.exit_code(error)
    if done:
        close(console, store, done, option)
    if code:
        raise typer.Exit(code)


def _follow(console: Console, store: "Store", job: "Job") -> None:
    from stmbench import runner
    from stmbench.cli.draw import Drawer

    console.print(
        f"[bold]{job.folder.name}[/]  {f'{job.mixer} {job.scale}'.rstrip()}, "
        f"recipe {job.recipe.name} ({job.recipe_digest}), "
        f"data {escape(job.data)}, {job.device}, seed {job.seed}"
        f"{f', backend {job.backend}' if job.backend else ''}"
        f"{f', design {job.design}' if job.design not in ('', 'unified') else ''}",
        highlight=False,
    )
    with Drawer(console) as drawer:
        for event in runner.execute(job, store):
            if isinstance(event, runner.StageDone):
                drawer.stage_done(event.stage, event.seconds)
            else:
                drawer.draw(event)


def db_option(db: str) -> str:
    """What a command that is recommended needs to find these results."""
    return "" if db == os.environ.get("STMBENCH_DB", DEFAULT) else f" --db {db}"


def close(console: Console, store: "Store", done: list[str], option: str) -> None:
    """Rank runs that are done, and say where to read on."""
    from stmbench.cli import results

    results.summary(console, store, done)
    console.print(
        f"Next: `stmbench leaderboard{option}` ranks all runs, "
        f"`stmbench show {done[-1]}{option}` tells this one's story.",
        highlight=False,
    )


@contextlib.contextmanager
def terminated_as_interrupt() -> Iterator[None]:
    """Let SIGTERM end a run as Ctrl-C does: recorded as interrupted, resumable."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
