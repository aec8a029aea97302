"""Copies of a run's numbers elsewhere: complete, named alike, and never the run's undoing."""

import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from stmbench import sinks
from stmbench.record import Measurement, Note
from stmbench.store import NewRun, RunRecord, open_store

EVENTS = [
    Measurement("build", "macs", 5e8),
    Measurement("train", "loss", 2.0, step=1),
    Note("train", "of no interest"),
    Measurement("train", "top1", 40.0, "%", "weights=ema", step=1),
    Measurement("train", "loss", 1.0, step=2),
    Measurement("profile", "latency", float("nan"), reason="out of memory"),
]


@pytest.fixture
def run(tmp_path: Path, new_run: NewRun) -> Iterator[RunRecord]:
    with open_store(str(tmp_path / "results.db")) as store:
        yield store.create_run(replace(new_run, recipe_values={"train": {"batch_size": 64, "clip": None}}))


def send(names: list[str], run: RunRecord, warn: Callable[[str], None] = pytest.fail) -> None:
    with sinks.opened(names, run, warn) as tell:
        for event in EVENTS:
            tell(event)


def test_tensorboard_gets_curves_numbers_and_the_run(run: RunRecord) -> None:
    send(["tensorboard", "tensorboard"], run)
    found = EventAccumulator(str(run.folder / "tensorboard")).Reload()
    assert [(e.step, e.value) for e in found.Scalars("train/loss")] == [(1, 2.0), (2, 1.0)]
    assert [(e.step, e.value) for e in found.Scalars("train/top1/weights-ema")] == [(1, 40.0)]
    assert [(e.step, e.value) for e in found.Scalars("build/macs")] == [(0, 5e8)]
    assert len(found.Tags()["scalars"]) == 3
    (text,) = found.Tensors("run/text_summary")
    table = text.tensor_proto.string_val[0].decode()
    assert "| mixer | halo |" in table
    assert "| recipe.train.batch_size | 64 |" in table


class FakeWandb:
    """As much of wandb as is used, written down."""

    Settings = staticmethod(lambda **options: options)

    def __init__(self) -> None:
        self.summary: dict[str, float] = {}
        self.logged: list[dict[str, float]] = []
        self.axes: list[tuple[str, str]] = []

    def init(self, **options: Any) -> "FakeWandb":
        self.options = options
        return self

    def define_metric(self, name: str, step_metric: str) -> None:
        self.axes.append((name, step_metric))

    def log(self, numbers: dict[str, float]) -> None:
        self.logged.append(numbers)

    def finish(self, exit_code: int) -> None:
        self.exit_code = exit_code


def test_wandb_gets_curves_over_epochs_and_a_summary(run: RunRecord, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", fake := FakeWandb())
    send(["wandb"], run)
    assert fake.summary == {"build/macs": 5e8}
    assert fake.axes == [("train/*", "train/epoch")]
    assert fake.logged == [
        {"train/loss": 2.0, "train/epoch": 1},
        {"train/top1/weights-ema": 40.0, "train/epoch": 1},
        {"train/loss": 1.0, "train/epoch": 2},
    ]
    assert (fake.options["id"], fake.options["resume"], fake.exit_code) == (run.id, "allow", 0)
    assert fake.options["config"]["recipe.train.batch_size"] == 64
    assert fake.options["config"]["recipe.train.clip"] == "null"


class FakeMlflow:
    """As much of mlflow as is used, written down."""

    entities = SimpleNamespace(Param=lambda name, value: (name, value))

    def __init__(self) -> None:
        self.runs: dict[str, str] = {}  # by their tag
        self.parameters: dict[str, str] = {}
        self.metrics: list[tuple[str, str, float, int]] = []
        self.states: list[str] = []

    def MlflowClient(self) -> "FakeMlflow":  # noqa: N802
        return self

    def get_experiment_by_name(self, name: str) -> Any:
        return SimpleNamespace(experiment_id=name) if self.runs else None

    def create_experiment(self, name: str) -> str:
        return name

    def search_runs(self, places: list[str], condition: str) -> list[Any]:
        found = [made for tag, made in self.runs.items() if condition == f"tags.stmbench_run = '{tag}'"]
        return [SimpleNamespace(info=SimpleNamespace(run_id=each)) for each in found]

    def create_run(self, place: str, run_name: str, tags: dict[str, str]) -> Any:
        self.runs[tags["stmbench_run"]] = made = f"{place}-{len(self.runs)}"
        return SimpleNamespace(info=SimpleNamespace(run_id=made))

    def log_batch(self, run_id: str, params: list[tuple[str, str]]) -> None:
        assert len(params) <= 100
        self.parameters |= dict(params)

    def log_metric(self, run_id: str, name: str, value: float, step: int) -> None:
        self.metrics.append((run_id, name, value, step))

    def set_terminated(self, run_id: str, status: str) -> None:
        self.states.append(status)


def test_mlflow_goes_on_with_the_same_run(run: RunRecord, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", fake := FakeMlflow())
    with pytest.raises(KeyboardInterrupt), sinks.opened(["mlflow"], run, pytest.fail):
        raise KeyboardInterrupt
    send(["mlflow"], run)
    assert fake.metrics == [
        ("stmbench-0", "build/macs", 5e8, 0),
        ("stmbench-0", "train/loss", 2.0, 1),
        ("stmbench-0", "train/top1/weights-ema", 40.0, 1),
        ("stmbench-0", "train/loss", 1.0, 2),
    ]
    assert fake.states == ["KILLED", "RUNNING", "FINISHED"]
    assert fake.parameters.items() >= {"mixer": "halo", "recipe.train.batch_size": "64"}.items()


def test_a_sink_that_fails_is_dropped_and_the_others_go_on(
    run: RunRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[float] = []

    class Full(sinks.TensorBoard):
        def add(self, number: Measurement) -> None:
            asked.append(number.value)
            if len(asked) == 2:
                raise OSError("No space\nleft")

    class Refused(sinks.TensorBoard):
        def __init__(self, run: RunRecord) -> None:
            raise RuntimeError("not logged in")

    monkeypatch.setattr(sinks, "SINKS", {"full": Full, "refused": Refused, **sinks.SINKS})
    warnings: list[str] = []
    send(["full", "refused", "tensorboard"], run, warnings.append)
    assert warnings == [
        "The sink refused failed and gets nothing more of this run: not logged in",
        "The sink full failed and gets nothing more of this run: No space left",
    ]
    assert asked == [5e8, 2.0]
    found = EventAccumulator(str(run.folder / "tensorboard")).Reload()
    assert len(found.Scalars("train/loss")) == 2


def test_how_a_run_ended_is_told(run: RunRecord, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", fake := FakeWandb())
    with pytest.raises(ZeroDivisionError), sinks.opened(["wandb"], run, pytest.fail):
        raise ZeroDivisionError
    assert fake.exit_code == 1


def test_unknown_and_missing_sinks(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"Unknown sink 'wandbb'\. Did you mean 'wandb'\?"):
        sinks.check(["wandbb"])
    monkeypatch.setattr(sinks, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'stmbench\[mlflow\]'"):
        sinks.check(["mlflow"])


def test_names_keep_to_letters_that_every_sink_takes() -> None:
    odd = Measurement("eval", "top1", 1.0, condition="backend=a*3+b,weights=ema")
    assert sinks.tag(odd) == "eval/top1/backend-a_3_b_weights-ema"
