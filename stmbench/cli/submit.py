"""`stmbench submit`: one `stmbench run` as a Slurm job that is queued again until it is done."""

import tomllib
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer

from stmbench.cli import errors, run
from stmbench.cli.options import DEFAULT, Database

SETTINGS = {"allow_extra_args": True, "ignore_unknown_options": True}  # of the command: they are the run's
_HERE = ("dry_run", "resume")  # options of a run that a job has its own answer to


def submit(
    context: typer.Context,
    time: Annotated[int, typer.Option(min=1, help="Minutes until the job is to go on in another one.")],
    gpus: Annotated[int, typer.Option(min=0, help="GPUs of each node, a process on each; 0: the CPU.")] = 1,
    nodes: Annotated[int, typer.Option(min=1, help="Machines to train on at once.")] = 1,
    cpus: Annotated[int | None, typer.Option(min=1, help="CPU cores of each node.")] = None,
    memory_gb: Annotated[int | None, typer.Option(min=1, help="Memory of each node.")] = None,
    partition: Annotated[str | None, typer.Option(help="The partition to queue in.")] = None,
    slurm: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="Anything else: account=lab, qos=low.")
    ] = None,
    db: Database = DEFAULT,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be submitted, and submit nothing.")
    ] = False,
) -> None:
    """Have Slurm make one run; all other options are those of `stmbench run`."""
    from stmbench import submit

    words = [word for word in context.args if word != "--"]
    job = submit.training([*_checked(words, nodes, gpus, db), "--db", db], nodes=nodes, gpus=gpus)
    typed = {"time": time, "cpus": cpus, "memory_gb": memory_gb, "partition": partition}
    given = {key: value for key, value in typed.items() if value is not None} | _pairs(slurm or [])
    asked = submit.options(given, nodes=nodes, gpus=gpus)
    if dry_run:
        typer.echo(submit.script(job, asked, db))
        return
    queued = submit.submit(job, asked, db)
    typer.echo(f"Job {queued.job_id} is queued; its log: {queued.paths.stdout}")
    typer.echo(f"`stmbench runs{run.db_option(db)}` shows its run once it has started.")


def _checked(words: list[str], nodes: int, gpus: int, db: str) -> list[str]:
    """The options of `stmbench run` with their device; an error now rather than after hours in a queue."""
    from stmbench import plan, sinks
    from stmbench.training.engine import shares

    made = typer.Typer()
    made.command()(run.run)
    given = typer.main.get_command(made).make_context("stmbench run", list(words)).params
    for name in _HERE:
        if given[name]:
            raise ValueError(f"--{name.replace('_', '-')} is not for a run that is submitted.")
    if given["device"] == "auto":
        given["device"] = "cuda" if gpus else "cpu"
        words = [*words, "--device", given["device"]]
    sinks.check(given["sink"] or ())
    plan.seeds(given["seeds"] or str(given["seed"]))
    arguments = _arguments(given, db)
    # The job finds the best precision where it runs; here any will do to check the rest.
    arguments["overrides"] = ["train.precision=fp32", *arguments["overrides"]]
    asked = plan.request(**arguments, elsewhere=True)
    shares(asked.recipe, nodes * max(gpus, 1))
    for warning in asked.warnings:
        errors.warn(warning)
    return words


def _arguments(given: Mapping[str, Any], db: str) -> dict[str, Any]:
    """The arguments of `plan.request`, from the parameters of `run`."""
    names = ("mixer", "model", "scale", "design", "weights", "stage", "data")
    asked = {name: given[name] for name in names}
    asked |= {"recipe_name": given["recipe"], "overrides": given["set_"] or []}
    others = {name: given[name] for name in ("seed", "device", "backend")}
    return run.resolved(asked, given["from_"], db) | others


def _pairs(texts: Sequence[str]) -> dict[str, Any]:
    """KEY=VALUE texts as values, as TOML reads them; a bare word is a text."""
    found = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals:
            raise ValueError(f"--slurm takes KEY=VALUE, not '{text}'.")
        try:
            found[key] = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            found[key] = value
    return found
