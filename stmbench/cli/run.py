"""`stmbench run` and `stmbench resume`: take networks through their stages and show it."""

import contextlib
import dataclasses
import functools
import itertools
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from stmbench.cli import errors
from stmbench.cli.db import warn_of_network
from stmbench.cli.options import DEFAULT, Database
from stmbench.training.stopping import SIGNALS

if TYPE_CHECKING:
    from stmbench.plan import Request
    from stmbench.record import Job
    from stmbench.store import Store

RUN_HELP = "The run's id, or enough of its beginning to be the only one."
Sinks = Annotated[
    list[str] | None,
    typer.Option("--sink", help="Also send numbers to tensorboard, wandb or mlflow; may be repeated."),
]
Processes = Annotated[int, typer.Option("--gpus", min=1, help="Processes that train together, a GPU each.")]


def run(
    mixer: Annotated[
        str | None, typer.Option(help="A mixer, several (halo,swin), or all. \\[default: halo]")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="A classifier of timm's, or several: timm:resnet18.")
    ] = None,
    stage: Annotated[
        str, typer.Option(help="A stage, several (train,eval), or all the recipe lists.")
    ] = "all",
    scale: Annotated[
        str | None, typer.Option(help="micro, tiny, small, base. \\[default: the recipe's]")
    ] = None,
    recipe: Annotated[
        str | None, typer.Option(help="A recipe's name or TOML file. \\[default: quick, or --from's]")
    ] = None,
    seed: Annotated[
        int, typer.Option(help="Seed of weights, order and augmentation.", min=0, max=2**32 - 1)
    ] = 0,
    seeds: Annotated[
        str | None, typer.Option(help="Several seeds, a run for each: 0,1,2. \\[default: --seed]")
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="Data set: a name or path. \\[default: the recipe's]")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
    weights: Annotated[
        Path | None, typer.Option(help="Checkpoint to start from: .safetensors, .pth, or a hub folder.")
    ] = None,
    from_: Annotated[
        str | None, typer.Option("--from", metavar="RUN", help="Start from the weights of this run instead.")
    ] = None,
    backend: Annotated[
        str,
        typer.Option(help="How mixers compute: see `stmbench mixers show halo`. \\[default: the fastest]"),
    ] = "",
    design: Annotated[
        str | None,
        typer.Option(
            help="What stands around the mixers: original, or a step: `stmbench ladder`. \\[default: unified]"
        ),
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Override the recipe: section.key=value.")
    ] = None,
    gpus: Processes = 1,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with this very run if it was interrupted before.")
    ] = False,
    sink: Sinks = None,
    db: Database = DEFAULT,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would run, and run nothing.")] = False,
) -> None:
    """Build, train, evaluate and profile networks by one recipe, and store every number."""
    from stmbench import devices, plan, sinks, world

    if world.follows():
        return _take_part(device)
    sinks.check(sink or ())
    network = {"mixer": mixer, "model": model, "scale": scale, "design": design, "weights": weights}
    protocol = {"recipe_name": recipe, "overrides": set_ or [], "stage": stage, "data": data}
    options = resolved(network | protocol, from_, db)
    asked = plan.request(**options, seed=seed, device=device, backend=backend)
    for warning in asked.warnings:
        errors.warn(warning)
    console, numbers = Console(soft_wrap=True), plan.seeds(seeds or str(seed))
    if dry_run:
        from stmbench.cli import preview

        return preview.show(console, asked, numbers)
    devices.check_processes(max(gpus, world.processes()), asked.device, asked.recipe)
    if gpus > 1:
        return _launch(gpus)
    with world.joined(asked.device):
        each = [dataclasses.replace(asked, seed=number) for number in numbers]
        _run_all(console, each, db, resume=resume, sinks=sink or ())
    return None


def resume(
    run: Annotated[str, typer.Argument(help=RUN_HELP)],
    gpus: Processes = 1,
    sink: Sinks = None,
    db: Database = DEFAULT,
) -> None:
    """Go on with an interrupted or failed run from its last checkpoint and stage."""
    from stmbench import devices, runner, sinks, world
    from stmbench.store import open_store

    sinks.check(sink or ())
    warn_of_network(db)
    console, store = Console(soft_wrap=True), open_store(db, create=False)
    device = store.run(run).device
    if world.follows():
        return _take_part(device)
    if gpus > 1:
        return _launch(gpus)
    with world.joined(devices.find(device)):
        follow_all(console, store, iter([runner.reopen(run, store)]), db, sinks=sink or ())
    return None


def resolved(options: dict[str, Any], origin: str | None, db: str) -> dict[str, Any]:
    """The options with what was left out: of the run to start from, or the defaults."""
    if origin is None:
        given = {key: value for key, value in options.items() if value is not None}
        return options | {"recipe_name": "quick", "design": "unified"} | given
    from stmbench import origins
    from stmbench.store import open_store

    with open_store(db, create=False) as store:
        return origins.options(store, origin, options)


def _launch(gpus: int) -> None:
    """The same command once more, in so many processes."""
    from stmbench import world

    arguments = iter(sys.argv[1:])
    kept = [
        word for word in arguments if not (word == "--gpus" and next(arguments)) and word[:7] != "--gpus="
    ]
    if code := world.launch(gpus, kept):
        raise typer.Exit(code)


def _take_part(device: str) -> None:
    """Be one of several processes, but not the first."""
    from stmbench import devices, runner, world

    try:
        with terminated_as_interrupt(), world.joined(devices.find(device)):
            runner.follow()
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    except runner.SHARED_ERRORS:  # the first process has it too, and says so
        raise typer.Exit(1) from None


def _run_all(
    console: Console, asked: "list[Request]", db: str, *, resume: bool, sinks: Sequence[str]
) -> None:
    from stmbench import runner
    from stmbench.store import open_store

    warn_of_network(db)
    store = open_store(db)
    store.reap()
    begin = functools.partial(_go_on, console) if resume else runner.start
    jobs = itertools.chain.from_iterable(begin(each, store) for each in asked)
    follow_all(console, store, jobs, db, sinks=sinks)


def _go_on(console: Console, asked: "Request", store: "Store") -> "Iterator[Job]":
    """The jobs of the runs that were interrupted or failed, or are new."""
    from stmbench import runner, world

    for mixer in asked.mixers:
        run, job = runner.claim(asked, mixer, store, argv=world.command(), retry=True)
        if job:
            yield job
        else:
            console.print(f"{run.id} is {run.state} already.", highlight=False)


def follow_all(
    console: Console, store: "Store", jobs: "Iterator[Job]", db: str, *, sinks: Sequence[str] = ()
) -> None:
    """Follow runs one after the other; a failed one does not keep the next from running."""
    from stmbench import world

    option = db_option(db)
    done: list[str] = []
    code = 0
    with terminated_as_interrupt(), errors.fallbacks():
        for job in jobs:
            run_id = job.folder.name
            try:
                _follow(console, store, job, sinks)
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
                if world.size() > 1:
                    break  # the other processes are lost
    if not code:
        world.tell(None)
    if done:
        close(console, store, done, option)
    if code:
        raise typer.Exit(code)


def _follow(console: Console, store: "Store", job: "Job", names: Sequence[str]) -> None:
    from stmbench import runner, sinks
    from stmbench.cli.draw import Drawer

    console.print(
        f"[bold]{job.folder.name}[/]  {f'{job.mixer} {job.scale}'.rstrip()}, "
        f"recipe {job.recipe.name} ({job.recipe_digest}), "
        f"data {escape(job.data)}, {job.device}, seed {job.seed}"
        f"{f', backend {job.backend}' if job.backend else ''}"
        f"{f', design {job.design}' if job.design not in ('', 'unified') else ''}"
        f"{f', from {escape(job.weights)}' if job.weights else ''}",
        highlight=False,
    )
    with Drawer(console) as drawer, sinks.opened(names, store.run(job.folder.name), errors.warn) as send:
        for event in runner.execute(job, store):
            if isinstance(event, runner.StageDone):
                drawer.stage_done(event.stage, event.seconds)
            else:
                drawer.draw(event)
                send(event)


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
    """Let SIGTERM and SIGUSR1 end a run as Ctrl-C does: recorded as interrupted, resumable."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = [signal.signal(number, interrupt) for number in SIGNALS]
    try:
        yield
    finally:
        for number, handler in zip(SIGNALS, before, strict=True):
            signal.signal(number, handler)
