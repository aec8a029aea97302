"""One run of a sweep, made in whatever process calls this: claimed in the database, then executed.

What goes in is plain: arguments and paths, no data. The process resolves them anew and compares fingerprints,
so that it makes the run that was planned or none.
"""

import os
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from stmbench import evidence, plan, runner
from stmbench.record import Event
from stmbench.runner import StageDone
from stmbench.store import Store, open_store

_OPTIONS = {"recipe_name": "recipe"}  # arguments that the command line calls otherwise


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """Everything that another process needs to make one run."""

    asked: Mapping[str, Any]  # arguments of `plan.request`, for one network
    fingerprint: str  # that the plan has found
    db: str
    folder: str  # in which relative paths hold
    retry: bool  # a run that failed is taken up again
    later: tuple[str, ...] = ()  # stages to put off

    @property
    def command(self) -> tuple[str, ...]:
        """The command that makes the same run by itself, as its evidence has it."""
        asked = dict(self.asked)
        overrides = asked.pop("overrides")
        options = {
            f"--{_OPTIONS.get(name, name)}": value for name, value in asked.items() if value not in (None, "")
        }
        words = [word for pair in options.items() for word in map(str, pair)]
        return "stmbench", "run", *words, *(word for text in overrides for word in ("--set", text))


@dataclass(frozen=True, slots=True)
class Started:
    """The run was claimed; what it prints goes to `folder`."""

    run_id: str
    folder: Path


@dataclass(frozen=True, slots=True)
class Outcome:
    """How it ended; `running` is another process's run, `later` one whose last stages were put off."""

    state: Literal["done", "later", "failed", "interrupted", "running"]
    run_id: str = ""
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Told:
    """What was heard of one of the tasks, by its place in the list."""

    task: int
    event: Started | Event | StageDone


@dataclass(frozen=True, slots=True)
class Ended:
    """One of the tasks has ended."""

    task: int
    outcome: Outcome


Tell = Callable[[Started | Event | StageDone], None]


def work(task: Task, tell: Tell = lambda event: None) -> Outcome:
    """Make the run unless it is done or another process's. Whatever fails is an outcome, and on stderr."""
    run_id = ""

    def note(event: Started | Event | StageDone) -> None:
        nonlocal run_id
        if isinstance(event, Started):
            run_id = event.run_id
        tell(event)

    try:
        os.chdir(task.folder)
        with open_store(task.db, create=False) as store:
            return _make(task, store, note)
    except Exception as error:
        traceback.print_exc()
        line = " ".join(str(error).split())
        return Outcome(
            "failed", run_id, line if isinstance(error, ValueError) else f"{type(error).__name__}: {line}"
        )


def _make(task: Task, store: Store, tell: Tell) -> Outcome:
    asked = plan.request(**task.asked)
    (network,) = asked.mixers
    if evidence.fingerprint(asked, network) != task.fingerprint:
        raise ValueError(
            "The recipe, data, weights or code are no longer those of the plan: start the sweep again."
        )
    run, job = runner.claim(asked, network, store, argv=task.command, retry=task.retry)
    if job is None:
        return Outcome(run.state, run.id, run.reason)
    tell(Started(run.id, run.folder))
    for event in runner.execute(job, store, later=task.later):
        tell(event)
    return Outcome("done" if store.run(run.id).state == "done" else "later", run.id)
