"""Profiling: numbers under their conditions, failures as rows, disturbed rounds again; one real process."""

import dataclasses
import gzip
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from stmbench.measure.count import Traffic
from stmbench.measure.setting import Memory, Prepared, Rates, Round, Setting
from stmbench.measure.worker import WorkerError
from stmbench.record import Artifact, Event, Job, Measurement, Note, Progress
from stmbench.stages import profile
from stmbench.training import network

MACHINE = f"threads={torch.get_num_threads()},torch={torch.__version__.partition('+')[0]}"
AT = (
    "device=cpu,execution=eager,format=channels_last,precision=fp32,protocol=latency/1-short,size=28,"
    + MACHINE
)
CEILINGS = {
    ("ceiling.matmul", f"device=cpu,precision=fp32,{MACHINE}"): 1e9,
    ("ceiling.copy", f"device=cpu,{MACHINE}"): 1e9,
}
CALM = Round(
    seconds=(0.5, 0.5, 0.25, 0.75, 0.5),
    before={},
    after={},
    others=0.0,
    steal=0.0,
    rates=(Rates(1e9, 1e9), Rates(1e9, 1e9)),
)


class FakeWorker:
    """Stands in for the measuring process: answers by rule, and remembers what it was asked."""

    asked: list[tuple[Setting, bool]]  # and whether it was the control
    answer: Callable[[Setting, int], Round]  # the setting and how often it has been asked for

    def __init__(self, make: Any, setting: Setting, make_optimizer: Any) -> None:
        assert isinstance(make_optimizer(nn.Linear(2, 2)), torch.optim.Optimizer)
        self.setting, self.control = setting, make.func is network.twin
        self.asked.append((setting, self.control))

    def __enter__(self) -> "FakeWorker":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def prepare(self) -> Prepared:
        compile_s = None if self.setting.execution == "eager" else 7.0
        return Prepared(compile_s=compile_s, warm_up=(0.5,), settled=True, no_energy="no counter")

    def sample(self, count: int, least_s: float, calibrate: bool = True) -> Round:
        assert (count, least_s) == (5, 1.0)
        taken = FakeWorker.answer(self.setting, self.asked.count((self.setting, self.control)))
        if self.control:
            return dataclasses.replace(taken, seconds=tuple(each / 2 for each in taken.seconds))
        return taken

    def memory(self) -> Memory:
        return Memory(base=100, peak=250)


class Counted:
    macs = 7_000_000


@pytest.fixture
def workers(monkeypatch: pytest.MonkeyPatch) -> type[FakeWorker]:
    FakeWorker.asked = []
    FakeWorker.answer = staticmethod(lambda setting, _: CALM)
    monkeypatch.setattr(profile, "Worker", FakeWorker)
    monkeypatch.setattr(profile.count, "count", lambda model, shape: Counted())
    monkeypatch.setattr(profile.count, "traffic", lambda *_: Traffic(weights=12_000, activations=2000))
    return FakeWorker


@pytest.fixture
def job(tiny_job: Job) -> Job:
    job = profiled(tiny_job, batch_sizes=(1, 4), train_batch_size=4, control=True)
    return dataclasses.replace(job, ceilings=CEILINGS)


def profiled(job: Job, **changes: Any) -> Job:
    recipe = dataclasses.replace(job.recipe, profile=dataclasses.replace(job.recipe.profile, **changes))
    return dataclasses.replace(job, recipe=recipe)


def rows(events: list[Event]) -> dict[tuple[str, str], Measurement]:
    return {(event.name, event.condition): event for event in events if isinstance(event, Measurement)}


def test_every_number_stands_under_its_condition(job: Job, workers: type[FakeWorker]) -> None:
    events = list(profile.run(job))
    found = rows(events)
    values = {name: (row.value, row.unit) for (name, at), row in found.items() if at == f"batch=1,{AT}"}
    assert values == {
        "throughput": (2.0, "images/s"),
        "samples": (5, ""),
        "disturbed": (0, ""),
        "latency": (500.0, "ms"),
        "latency_iqr": (0.0, "ms"),
        "latency_min": (250.0, "ms"),
        "latency_p90": (pytest.approx(650.0), "ms"),
        "latency_p95": (pytest.approx(700.0), "ms"),
        "peak_memory": (250, "bytes"),
        "base_memory": (100, "bytes"),
        "mixer_cost": (2.0, ""),
        "intensity": (500.0, "MACs/byte"),
        "matmul_share": (pytest.approx(1.4), "%"),
        "copy_share": (pytest.approx(0.0028), "%"),
    }
    large = {name: row.value for (name, at), row in found.items() if at == f"batch=4,{AT}"}
    assert large["throughput"] == 8.0
    assert large["train_throughput"] == 8.0
    assert large["train_step"] == 500.0
    assert large["train_peak_memory"] == 250
    assert large["intensity"] == 28e6 / (4 * (3000 + 4 * 500))  # weights are read once
    assert large["matmul_share"] == pytest.approx(100 * 28e6 / 0.5 / 1e9)
    assert large["mixer_cost"] == large["train_mixer_cost"] == 2.0
    assert not {"latency", "train_latency", "train_intensity"} & large.keys()
    assert found["best_throughput", f"batches=1+4,{AT}"].value == 8.0
    assert found["best_batch", f"batches=1+4,{AT}"].value == 4
    modes = [(setting.mode, setting.batch, control) for setting, control in workers.asked]
    assert modes == [
        *(("inference", 1, False), ("inference", 4, False), ("train", 4, False)),
        *(("inference", 1, True), ("inference", 4, True), ("train", 4, True)),
    ]
    last = [event for event in events if isinstance(event, Progress)][-1]
    assert last.done == last.total == 6
    assert [e.text for e in events if isinstance(e, Note)] == ["Energy is left out: no counter."]


def test_a_faster_calibration_raises_the_ceiling(job: Job, workers: type[FakeWorker]) -> None:
    fast = dataclasses.replace(CALM, rates=(Rates(2e9, 1e9), Rates(2.5e9, 3e9)))  # the copy, only once
    workers.answer = staticmethod(lambda setting, _: fast)
    events = [e for e in profile.run(job) if isinstance(e, Measurement)]
    ceilings = [(e.name, e.value) for e in events if e.name.startswith("ceiling")]
    assert ceilings == [
        *(("ceiling.copy", 1e9), ("ceiling.matmul", 1e9)),
        *(("ceiling.copy", 1e9), ("ceiling.matmul", 2e9)),
    ]


def test_a_disturbed_round_is_taken_again_in_a_fresh_process(job: Job, workers: type[FakeWorker]) -> None:
    busy = dataclasses.replace(CALM, others=0.5, seconds=(0.125,))
    workers.answer = staticmethod(lambda setting, count: busy if count < 3 and setting.batch == 1 else CALM)
    events = list(profile.run(profiled(job, control=False, train_batch_size=0)))
    assert len(workers.asked) == 3 + 1
    found = rows(events)
    assert found["latency", f"batch=1,{AT}"].value == 500.0  # the calm one, though it is slower
    assert found["disturbed", f"batch=1,{AT}"].value == 0
    texts = [event.text for event in events if isinstance(event, Progress)]
    assert any("again: other processes used 50% of the CPU" in text for text in texts)
    (path,) = {e.path for e in events if isinstance(e, Artifact) and e.kind == "rounds"}
    rounds = json.loads(gzip.decompress(path.read_bytes()))
    assert [each["round"]["seconds"] for each in rounds] == [
        [0.125],
        [0.125],
        [*CALM.seconds],
        [*CALM.seconds],
    ]
    assert [len(each["disturbed"]) for each in rounds] == [1, 1, 0, 0]
    assert rounds[0]["condition"] == f"batch=1,{AT}"


def test_disturbed_every_time_is_marked(job: Job, workers: type[FakeWorker]) -> None:
    def answer(setting: Setting, count: int) -> Round:
        return dataclasses.replace(CALM, others=0.5, seconds=({1: 3.0, 2: 1.0, 3: 2.0}[count],))

    workers.answer = staticmethod(answer)
    events = list(profile.run(profiled(job, control=False, train_batch_size=0, batch_sizes=(1,))))
    found = rows(events)
    assert found["latency", f"batch=1,{AT}"].value == 1000.0  # the fastest
    assert found["disturbed", f"batch=1,{AT}"].value == 1
    assert any("marked: 1 of 1 settings" in event.text for event in events if isinstance(event, Note))


def fail_at(batch: int) -> Callable[[Setting, int], Round]:
    def answer(setting: Setting, _: int) -> Round:
        if setting.batch >= batch:
            raise WorkerError("memory", "Out of memory (here)")
        return CALM

    return answer


def test_what_fails_is_a_row_with_its_reason_and_the_rest_goes_on(
    job: Job, workers: type[FakeWorker]
) -> None:
    workers.answer = staticmethod(fail_at(4))
    events = list(profile.run(job))
    found = rows(events)
    failed = {name: row for (name, _), row in found.items() if row.reason == "Out of memory (here)"}
    assert failed.keys() == {
        *("throughput", "peak_memory"),
        *("train_throughput", "train_peak_memory", "train_step"),
    }
    assert all(math.isnan(row.value) and f"batch=4,{AT}" == row.condition for row in failed.values())
    assert found["best_batch", f"batches=1+4,{AT}"].value == 1
    assert found["mixer_cost", f"batch=1,{AT}"].value == 2.0
    assert len(workers.asked) == 4  # nothing is tried at a smaller batch, or twice
    notes = [event.text for event in events if isinstance(event, Note)]
    assert "inference batch 4 fp32 eager channels_last failed: Out of memory (here)." in notes


def test_when_everything_fails_the_stage_does(job: Job, workers: type[FakeWorker]) -> None:
    workers.answer = staticmethod(fail_at(1))
    with pytest.raises(
        RuntimeError, match=r"No setting could be measured: Out of memory \(here\)\. A smaller"
    ):
        list(profile.run(job))
    with pytest.raises(RuntimeError, match="executions="):
        list(profile.run(profiled(job, executions=("compiled",))))


@pytest.mark.parametrize("mixer", ["identity", "timm:resnet10t"])
def test_controls_have_no_control(job: Job, workers: type[FakeWorker], mixer: str) -> None:
    found = rows(list(profile.run(dataclasses.replace(job, mixer=mixer))))
    assert not any(control for _, control in workers.asked)
    assert not any("mixer_cost" in name for name, _ in found)


def test_every_combination_is_measured_once(job: Job, workers: type[FakeWorker]) -> None:
    lists = {"precisions": ("auto", "fp32", "bf16"), "executions": ("eager", "compiled")}
    changed = profiled(job, **lists, memory_formats=("contiguous",), control=False, train_batch_size=0)
    ceilings = {**CEILINGS, ("ceiling.matmul", f"device=cpu,precision=bf16,{MACHINE}"): 1e9}
    found = rows(list(profile.run(dataclasses.replace(changed, ceilings=ceilings))))
    ways = {(setting.precision, setting.execution) for setting, _ in workers.asked}
    assert len(workers.asked) == 2 * len(ways) == 8
    at = f"batch=1,{AT}".replace("eager", "compiled").replace("channels_last", "contiguous")
    assert found["compile_time", at].value == 7.0


def test_what_the_device_does_not_have_is_refused_first(job: Job) -> None:
    with pytest.raises(ValueError, match="tf32 needs a CUDA device"):
        next(iter(profile.run(profiled(job, precisions=("tf32",)))))


def test_unknown_ceilings_are_measured_and_a_failure_stops_nothing(
    tiny_job: Job, workers: type[FakeWorker], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, list[str], int]] = []

    def measure(device: str, precisions: list[str], threads: int) -> dict[str, Rates]:
        asked.append((device, precisions, threads))
        if len(asked) == 2:
            raise WorkerError("crash", "broken")
        return {"fp32": Rates(4e9, 5e9)}

    monkeypatch.setattr(profile.ceilings, "measure", measure)
    calm = dataclasses.replace(CALM, rates=(Rates(None, None), Rates(None, None)))
    workers.answer = staticmethod(lambda setting, _: calm)
    copy = ("ceiling.copy", f"device=cpu,{MACHINE}")
    quick = profiled(tiny_job, control=False, train_batch_size=0)
    assert rows(list(profile.run(quick)))[copy].value == 5e9
    failed = rows(list(profile.run(quick)))
    assert math.isnan(failed[copy].value)
    assert failed[copy].reason == "broken"
    assert ("matmul_share", f"batch=1,{AT}") not in failed
    assert asked == [("cpu", ["fp32"], torch.get_num_threads())] * 2


def test_a_real_process_measures_the_network(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profile.protocol, "ATTEMPTS", 1)  # whatever else this machine is doing
    monkeypatch.setattr(profile.protocol, "LEAST_S", 0.0)
    events = list(profile.run(profiled(job, batch_sizes=(1,), train_batch_size=0, control=False)))
    found = {
        (name, at.partition(",")[2]): row for (name, at), row in rows(events).items() if "backend=" in at
    }
    assert found["samples", f"batch=1,{AT}"].value == 5
    assert 0 < found["matmul_share", f"batch=1,{AT}"].value < 100
    assert 0.1 < found["latency", f"batch=1,{AT}"].value < 60_000
    assert 50e6 < found["peak_memory", f"batch=1,{AT}"].value < 20e9
    files = {event.kind: event.path for event in events if isinstance(event, Artifact)}
    assert files == {
        "rounds": Path(job.folder) / "rounds.json.gz",
        "roofline": Path(job.folder) / "roofline.png",
    }
    assert files["roofline"].read_bytes().startswith(b"\x89PNG")


def test_the_twin_differs_in_its_mixers_alone(tiny_job: Job) -> None:
    for mixer in ("dwconv", "sra"):
        job = dataclasses.replace(tiny_job, mixer=mixer)
        own, twin = network.make(job, 4), network.twin(job, 4)
        rest = [
            {name: tuple(p.shape) for name, p in model.named_parameters() if ".mixer." not in name}
            for model in (own, twin)
        ]
        assert rest[0] == rest[1]


def test_rounds_are_kept_whatever_comes_after_them(job: Job, workers: type[FakeWorker]) -> None:
    def answer(setting: Setting, _: int) -> Round:
        if setting.batch == 4:
            raise OSError("the disk is gone")
        return CALM

    workers.answer = staticmethod(answer)
    with pytest.raises(OSError, match="gone"):
        list(profile.run(job))
    rounds = json.loads(gzip.decompress((job.folder / "rounds.json.gz").read_bytes()))
    assert [each["setting"]["batch"] for each in rounds] == [1]
