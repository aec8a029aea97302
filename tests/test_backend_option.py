"""`--backend` through plan, run, stages, results and bench, by a mixer whose backends are made up."""

import copy
import csv
import dataclasses
import gc
import io
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import choosy
import pytest
import torch
from typer.testing import CliRunner

from stmbench import bench, catalog, devices, plan, runner
from stmbench.cli import app, errors
from stmbench.measure import count
from stmbench.measure.setting import Round, Setting
from stmbench.measure.subject import Subject, adamw
from stmbench.mixers import backends
from stmbench.mixers.backends import BackendMixer, BackendWarning
from stmbench.nn import create_model
from stmbench.reading import formats, leaderboard, tables
from stmbench.record import Event, Job, Measurement, Note, condition
from stmbench.stages import build, profile
from stmbench.store import NewRun, open_store
from stmbench.training import network

REFUSED = "Choosy: the backend 'quick' cannot run (it has no backward pass); the plain one does."


@pytest.fixture(autouse=True)
def _choosy(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The catalogue has it, and nothing was said of it yet."""
    table = catalog.mixers() | {"choosy": choosy.ROW}
    monkeypatch.setattr(catalog, "mixers", lambda: table)
    backends._say.cache_clear()
    yield
    backends._say.cache_clear()
    gc.unfreeze()  # what a measuring process freezes, here


@pytest.fixture
def job(tiny_job: Job) -> Job:
    return dataclasses.replace(tiny_job, mixer="choosy")


def forced(job: Job, name: str) -> Job:
    return dataclasses.replace(job, backend=name)


def names(model: torch.nn.Module) -> set[str]:
    return {module.forced for module in model.modules() if isinstance(module, BackendMixer)}


# Asking for one


def test_a_network_is_made_with_a_backend(job: Job) -> None:
    assert names(create_model("choosy", "micro", backend="quick")) == {"quick"}
    assert names(network.make(forced(job, "plain"), 4)) == {"plain"}
    assert names(copy.deepcopy(network.make(forced(job, "plain"), 4))) == {"plain"}  # an EMA's
    assert names(network.twin(forced(job, "quick"), 4)) == set()
    create_model("pool", "micro", backend="plain")
    with pytest.raises(ValueError, match=r"Unknown backend 'quik'\. Did you mean 'quick'\?"):
        create_model("choosy", "micro", backend="quik")


def ask(tiny_data: Path, **more: Any) -> plan.Request:
    given = {"scale": None, "recipe_name": "quick", "overrides": [], "stage": "build", "seed": 0}
    return plan.request(**(given | {"data": str(tiny_data), "device": "cpu", "weights": None} | more))


def test_every_mixer_must_have_it(tiny_data: Path) -> None:
    asked = ask(tiny_data, mixer="choosy,pool,identity", backend="plain")
    assert asked.job("pool", Path()).backend == "plain"
    assert ask(tiny_data, mixer="choosy", backend="absent").backend == "absent"  # it falls back, and says so
    with pytest.raises(ValueError, match=r"Unknown backend of pool 'quick'\. Known: plain\."):
        ask(tiny_data, mixer="choosy,pool", backend="quick")
    with pytest.raises(ValueError, match="timm:test_resnet has no backends to choose from"):
        ask(tiny_data, mixer=None, model="timm:test_resnet", backend="plain")


def test_a_run_remembers_it(tiny_data: Path, tiny_recipe_file: Path, tmp_path: Path) -> None:
    asked = ask(tiny_data, mixer="choosy", backend="quick", recipe_name=str(tiny_recipe_file))
    with open_store(str(tmp_path / "results.db")) as store:
        started = next(runner.start(asked, store))
        assert started.backend == store.run("choosy").backend == "quick"
        store.end_run(started.folder.name, "interrupted")
        assert runner.reopen("choosy", store).backend == "quick"


# What is stored


def measured(events: list[Event]) -> list[Measurement]:
    return [event for event in events if isinstance(event, Measurement)]


def test_train_and_eval_say_what_was_taken(job: Job) -> None:
    model = network.make(job, 4)
    for stage, path in (("eval", "quick"), ("train", "plain")):
        [row] = network.taken(job, model, stage)
        assert row == Measurement(stage, "mixers", 17, "", f"backend={path}")
    assert list(network.taken(dataclasses.replace(job, mixer="timm:test_resnet"), model, "eval")) == []


def test_what_cannot_run_is_noted_once(job: Job) -> None:
    model = network.make(forced(job, "quick"), 4)
    note, row = network.taken(job, model, "train")
    assert note == Note("train", REFUSED)
    assert measured([row])[0].condition == "backend=plain"
    model.train()(torch.zeros(2, 1, 28, 28))  # a warning would be an error
    assert len(list(network.taken(job, model, "train"))) == 1


@pytest.mark.filterwarnings("ignore:Skipping serialization")  # torch 2.6, of its own state
@pytest.mark.parametrize("execution", ["eager", pytest.param("compiled", marks=pytest.mark.slow)])
@pytest.mark.parametrize(("mode", "path"), [("inference", "quick"), ("train", "plain")])
def test_a_measuring_process_says_what_was_taken(execution: Any, mode: Any, path: str) -> None:
    def make() -> torch.nn.Module:
        return create_model("choosy", "micro", num_classes=4, in_channels=1, image_size=28, backend="quick")

    setting = Setting(mode=mode, batch=2, shape=(1, 28, 28), execution=execution)
    subject = Subject(make, setting, adamw, torch.get_num_threads())
    prepared = subject.prepare()
    assert prepared.backend == path
    assert prepared.fallbacks == (REFUSED,) * (mode == "train")
    with torch.compiler.set_stance("fail_on_recompile"):  # looking has changed nothing
        subject._once()


def test_profiled_numbers_stand_under_what_was_taken(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    class Here(Subject):
        """The measuring process, in this one."""

        def __init__(self, make: Any, setting: Setting, make_optimizer: Any) -> None:
            super().__init__(make, setting, make_optimizer, torch.get_num_threads())

        def __enter__(self) -> "Here":
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def sample(self, count: int, least_s: float, calibrate: bool = False) -> Round:
            return super().sample(count, least_s, calibrate)

    monkeypatch.setattr(profile, "Worker", Here)
    monkeypatch.setattr(profile.protocol, "ATTEMPTS", 1)
    monkeypatch.setattr(profile.protocol, "LEAST_S", 0.0)
    changed = dataclasses.replace(job.recipe.profile, train_batch_size=2)
    recipe = dataclasses.replace(job.recipe, profile=changed)
    events = list(profile.run(dataclasses.replace(job, recipe=recipe, backend="quick")))
    found = {m.name: m.condition.partition(",")[0] for m in measured(events)}
    assert found["latency"] == found["best_throughput"] == found["intensity"] == "backend=quick"
    assert found["train_step"] == "backend=plain"
    assert [e.text for e in events if isinstance(e, Note)].count(REFUSED) == 1


def test_counting_is_by_the_plain_backend(job: Job) -> None:
    runs: list[str] = []

    class Spy(choosy.Choosy):
        def backend(self, x: torch.Tensor) -> backends.Backend:
            runs.append(super().backend(x).name)
            return super().backend(x)

    choosy.Spy = Spy  # pyright: ignore[reportAttributeAccessIssue]
    catalog.mixers()["choosy"] = dataclasses.replace(choosy.ROW, target="choosy:Spy")
    list(build.run(job))
    model = network.make(job, 4)
    count.traffic(model, (1, 28, 28))
    assert set(runs) == {"plain"}
    assert names(model) == {""}


# Saying so


def test_a_fallback_is_one_line_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    model = create_model("choosy", "micro", num_classes=4, image_size=28, backend="quick")
    with errors.fallbacks():
        for _ in range(2):
            model(torch.zeros(2, 3, 28, 28))
        with pytest.warns(UserWarning, match="another"):
            warnings.warn("another", stacklevel=1)
    assert capsys.readouterr().err == f"Warning: {REFUSED}\n"
    backends._say.cache_clear()
    with pytest.warns(BackendWarning, match="no backward pass"):
        model(torch.zeros(2, 3, 28, 28))


def test_the_leaderboard_compares_the_fastest_and_names_the_forced(tmp_path: Path, new_run: NewRun) -> None:
    with open_store(str(tmp_path / "results.db")) as store:
        for mixer, backend, path in (("halo", "", "sdpa"), ("halo", "plain", "plain"), ("swin", "", "flex")):
            run = store.create_run(dataclasses.replace(new_run, mixer=mixer, backend=backend)).id
            for name, batch in (("latency", {"batch": 1}), ("best_throughput", {"batches": "1+8"})):
                at = condition(backend=path, device="cpu", **batch)
                store.record(run, Measurement("profile", name, 1.0, "", at))
            store.end_run(run, "done")
        [group] = leaderboard.rank(store, sort="latency")
        assert (group.latency_condition, group.throughput_condition) == (
            "batch=1,device=cpu",
            "batches=1+8,device=cpu",
        )
        assert [tables.cells(row)[1] for row in group.rows] == ["halo", "halo (plain)", "swin"]
        [_, line, _] = csv.DictReader(io.StringIO(formats.to_csv([group])))
        assert (line["mixer"], line["backend"]) == ("halo", "plain")
        cli = CliRunner()
        shown = cli.invoke(app, ["runs", "--db", str(tmp_path / "results.db")]).stdout
        assert shown.splitlines()[0].split()[:3] == ["run", "state", "backend"]
        shown = cli.invoke(
            app, ["show", store.runs(mixer="halo")[0].id, "--db", str(tmp_path / "results.db")]
        )
        assert "plain, forced" in shown.stdout


# Comparing two


def test_contenders_have_backends() -> None:
    options = bench.Options(device="cpu", image_size=28, backend="quick")
    asked = bench.contenders(["choosy@backend=plain", "choosy", "timm:resnet18"], options)
    assert [each.job.backend for each in asked] == ["plain", "quick", ""]
    for wrong in ("dwconv@backend=fast", "timm:resnet18@backend=plain"):
        with pytest.raises(ValueError, match="backend"):
            bench.contenders(["choosy", wrong], options)


def test_mixers_show_tells_what_takes_what(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "kinds", lambda: ["cpu"])
    monkeypatch.setenv("COLUMNS", "120")
    text = CliRunner().invoke(app, ["mixers", "show", "choosy"]).stdout
    lines = {line.split()[0]: " ".join(line.split()[1:]) for line in text.splitlines() if line.strip()}
    assert lines["absent"].count("no: it is not here") == 2  # eager and compiled
    assert lines["quick"] == "without gradients takes inference takes inference"
    assert lines["plain"] == "always takes training takes training"
    assert lines["tiny"].endswith("29.03 M 4.48 G")


@pytest.mark.parametrize("mixer", list(catalog.mixers()))
def test_every_mixer_can_be_shown(mixer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    outcome = CliRunner().invoke(app, ["mixers", "show", mixer], catch_exceptions=False)
    assert "plain" in outcome.stdout
    assert max(map(len, outcome.stdout.splitlines())) <= 60
    assert mixer in CliRunner().invoke(app, ["mixers"]).stdout
