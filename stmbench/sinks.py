"""Copies of a run's numbers for TensorBoard, Weights & Biases and MLflow, beside the database.

A sink is told of the run once, of each measurement as it appears, and of the end. It never fails a run: one
that fails is dropped with a warning, and the database has every number anyway. Names are ``stage/name``, with
``/condition`` where there is one (docs/sinks.md).
"""

import contextlib
import importlib
import json
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from typing import Any, Protocol

from stmbench import catalog
from stmbench.record import Event, Measurement
from stmbench.store import RunRecord

PROJECT = "stmbench"  # in Weights & Biases, and the experiment in MLflow, unless their own variables say so
_PARAMETERS_AT_ONCE = 100  # that MLflow takes
Ended = str  # done, interrupted or failed


class Sink(Protocol):
    """Where the numbers of one run go."""

    def __init__(self, run: RunRecord) -> None: ...

    def add(self, number: Measurement) -> None: ...

    def close(self, ended: Ended) -> None: ...


class TensorBoard:
    """Event files in the run's folder: ``tensorboard --logdir runs`` shows all runs."""

    def __init__(self, run: RunRecord) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(run.folder / "tensorboard"))
        rows = [f"| {name} | {value} |" for name, value in facts(run).items()]
        self.writer.add_text("run", "\n".join(["| | |", "|---|---|", *rows]))

    def add(self, number: Measurement) -> None:
        self.writer.add_scalar(tag(number), number.value, number.step)
        self.writer.flush()

    def close(self, ended: Ended) -> None:
        self.writer.close()


class Wandb:
    """A run of the same id in Weights & Biases; epochs are a stage's own axis, single numbers the summary."""

    def __init__(self, run: RunRecord) -> None:
        wandb = importlib.import_module("wandb")
        run.folder.mkdir(parents=True, exist_ok=True)
        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            id=run.id,
            name=run.id,
            config=facts(run),
            dir=run.folder,
            resume="allow",
            settings=wandb.Settings(silent=True, console="off", disable_git=True),
        )
        self.stages: set[str] = set()

    def add(self, number: Measurement) -> None:
        if not number.step:
            self.run.summary[tag(number)] = number.value
            return
        epoch = f"{number.stage}/epoch"
        if number.stage not in self.stages:
            self.stages.add(number.stage)
            self.run.define_metric(f"{number.stage}/*", step_metric=epoch)
        self.run.log({tag(number): number.value, epoch: number.step})

    def close(self, ended: Ended) -> None:
        self.run.finish(exit_code=0 if ended == "done" else 1)


class MLflow:
    """A run in MLflow, found again by its tag when it goes on; where, MLflow's own variables say."""

    def __init__(self, run: RunRecord) -> None:
        mlflow = importlib.import_module("mlflow")
        self.client, entities = mlflow.MlflowClient(), mlflow.entities
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        experiment = self.client.get_experiment_by_name(name)
        place = experiment.experiment_id if experiment else self.client.create_experiment(name)
        before = self.client.search_runs([place], f"tags.stmbench_run = '{run.id}'")
        if before:
            self.run_id = before[0].info.run_id
            self.client.set_terminated(self.run_id, "RUNNING")
            return
        made = self.client.create_run(place, run_name=run.id, tags={"stmbench_run": run.id})
        self.run_id = made.info.run_id
        told = [entities.Param(name, str(value)) for name, value in facts(run).items()]
        for first in range(0, len(told), _PARAMETERS_AT_ONCE):
            self.client.log_batch(self.run_id, params=told[first : first + _PARAMETERS_AT_ONCE])

    def add(self, number: Measurement) -> None:
        self.client.log_metric(self.run_id, tag(number), number.value, step=number.step)

    def close(self, ended: Ended) -> None:
        states = {"done": "FINISHED", "interrupted": "KILLED"}
        self.client.set_terminated(self.run_id, states.get(ended, "FAILED"))


SINKS: dict[str, type[Sink]] = {"tensorboard": TensorBoard, "wandb": Wandb, "mlflow": MLflow}


def check(names: Sequence[str]) -> None:
    """ValueError for a sink that is not known, or whose package is not installed."""
    for name in names:
        if find_spec(catalog.known("sink", name, SINKS)) is None:
            raise ValueError(f"--sink {name} needs a package: pip install 'stmbench[{name}]'.")


@contextlib.contextmanager
def opened(
    names: Sequence[str], run: RunRecord, warn: Callable[[str], None]
) -> Iterator[Callable[[Event], None]]:
    """Open the sinks for a run, and give what passes its events on to them; `warn` hears which one failed."""
    sinks: dict[str, Sink] = {}

    def attempt(name: str, work: Callable[[], Any]) -> Any:
        try:
            return work()
        except Exception as error:  # whatever a service, a network or a full disk come up with
            sinks.pop(name, None)
            line = " ".join(str(error).split()) or type(error).__name__
            warn(f"The sink {name} failed and gets nothing more of this run: {line}")

    def send(event: Event) -> None:
        if isinstance(event, Measurement) and math.isfinite(event.value):
            for name, sink in list(sinks.items()):
                attempt(name, lambda sink=sink: sink.add(event))

    for name in dict.fromkeys(names):
        if sink := attempt(name, lambda name=name: SINKS[name](run)):
            sinks[name] = sink
    ended = "failed"
    try:
        yield send
        ended = "done"
    except (KeyboardInterrupt, GeneratorExit):
        ended = "interrupted"
        raise
    finally:
        for name, sink in list(sinks.items()):
            attempt(name, lambda sink=sink: sink.close(ended))


def tag(number: Measurement) -> str:
    """What a number is called in a sink: ``train/top1/weights-ema``; letters that all of them take."""
    name = "/".join(part for part in (number.stage, number.name, number.condition) if part)
    return re.sub(r"[^\w./-]", "_", name.replace("=", "-"))


def facts(run: RunRecord) -> dict[str, Any]:
    """What a sink is told of a run: what it is of, by which recipe, on what."""
    names = ("mixer", "scale", "design", "backend", "seed", "device", "hardware", "precision")
    data = {"data": run.data_name, "data_fingerprint": run.data_fingerprint}
    recipe = {"recipe": run.recipe_name, "recipe_digest": run.recipe_digest}
    return {name: getattr(run, name) for name in names} | data | recipe | _flat(run.recipe_values)


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for section, value in values.items():
        for key, each in value.items() if isinstance(value, Mapping) else [("", value)]:
            plain = each if isinstance(each, str | int | float) else json.dumps(each)
            flat[f"recipe.{section}.{key}".rstrip(".")] = plain
    return flat
