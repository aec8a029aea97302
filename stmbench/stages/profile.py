"""Stage `profile`: what the network takes, in time, memory and energy, and how near it is to the limit.

Every setting of the recipe (batch size, precision, execution, memory format; inference and a training step)
is measured by the protocol latency/1 (`stmbench.measure.protocol`), each in a fresh process. So is the same
backbone around the identity, whose time is what the mixer's time is compared with. What cannot be measured,
out of memory above all, is a failure with its reason; the other settings go on.
"""

import dataclasses
import functools
import gc
import gzip
import itertools
import json
import math
import statistics
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from stmbench.measure import ceilings, count, protocol, roofline
from stmbench.measure.process import WorkerError
from stmbench.measure.protocol import Attempt
from stmbench.measure.setting import AUTOCAST, Rates, Setting, check
from stmbench.measure.statistics import summarise
from stmbench.measure.worker import Worker
from stmbench.nn.detector import Detector
from stmbench.nn.timm_models import is_timm
from stmbench.nn.weights import write_whole
from stmbench.record import Artifact, Event, Job, Measurement, Note, Progress, condition
from stmbench.training import network
from stmbench.training.optimizer import make_optimizer

_TORCH = torch.__version__.partition("+")[0]


def run(job: Job) -> Iterator[Event]:
    """Yield the ceilings, the numbers of every setting, every round taken, and a picture of the roofline."""
    numbers = []
    for event in _events(job):
        if isinstance(event, Measurement):
            numbers.append(event)
        yield event
    points, most = roofline.read(f"{job.mixer} {job.scale}".strip(), numbers)
    if points and most:
        path = job.folder / "roofline.png"
        roofline.draw(points, most, path, "What the device reaches, and what the network does")
        yield Artifact("profile", "roofline", path)


def _events(job: Job) -> Iterator[Event]:
    check(job.device, job.recipe.profile)
    if job.device.startswith("cuda"):  # what earlier stages hold in this process, the measured ones lack
        gc.collect()
        torch.cuda.empty_cache()
    session = _Session(job, *network.makers(job))
    yield from _ceilings(session)
    yield from _count(session)
    for way in session.ways:
        yield from _measure(session, way)
    yield from _against_the_limit(session)
    yield from _conclude(session)
    yield Progress("profile", "profile", session.total, session.total)


@dataclass
class _Session:
    """What the settings of one run share, and what has been found so far."""

    job: Job
    make: Callable[..., nn.Module]  # the network
    make_control: Callable[..., nn.Module]  # the same around the identity
    matmul: dict[str, float | None] = field(default_factory=dict)  # ceilings in MACs/s, by precision
    copy: float | None = None  # ceiling in bytes/s
    no_ceilings: str = ""  # why some are not known
    macs: int | None = None  # of one image
    traffic: dict[str, count.Traffic] = field(default_factory=dict)  # of one image, by precision
    attempts: list[Attempt] = field(default_factory=list)  # every one, in the order in which they were taken
    kept: list[Attempt] = field(default_factory=list)  # one for each setting
    said: set[str] = field(default_factory=set)  # of backends that cannot run

    @property
    def batches(self) -> list[int]:
        return sorted({1, *self.job.recipe.profile.batch_sizes})

    @property
    def ways(self) -> list[Setting]:
        """Inference at batch 1 in every precision, execution and memory format."""
        job, profile = self.job, self.job.recipe.profile
        own = network.precision(job.recipe, job.device)
        precisions: Any = dict.fromkeys(own if name == "auto" else name for name in profile.precisions)
        lists = (precisions, dict.fromkeys(profile.executions), dict.fromkeys(profile.memory_formats))
        shape = network.image_shape(job.recipe)
        return [
            Setting(batch=1, shape=shape, device=job.device, precision=p, execution=e, memory_format=m)
            for p, e, m in itertools.product(*lists)
        ]

    @property
    def controlled(self) -> bool:
        """Whether the identity says what this mixer costs."""
        mixer = self.job.mixer
        return self.job.recipe.profile.control and mixer != "identity" and not is_timm(mixer)

    @property
    def total(self) -> int:
        """Settings to be measured; one less where batch 1 is the best."""
        trained = int(self.job.recipe.profile.train_batch_size > 0)
        controls = min(2, len(self.batches)) + trained if self.controlled else 0
        return len(self.ways) * (len(self.batches) + trained + controls)

    def progress(self, text: str) -> Progress:
        return Progress("profile", text, len(self.kept), self.total)

    def ceiling(self, precision: str) -> Rates:
        return Rates(self.matmul[precision], self.copy)

    def raise_ceilings(self, precision: str, rates: Sequence[Rates]) -> None:
        """Calibrations that are all faster than a ceiling show that it was taken on a busy machine."""
        best = ceilings.best([self.ceiling(precision), ceilings.least(rates)])
        self.matmul[precision], self.copy = best.matmul, best.copy

    def at(self, attempt: Attempt, **batch: object) -> str:
        """The condition of an attempt's numbers; `batch` says how many images, where not the setting does."""
        setting, prepared = attempt.setting, attempt.prepared
        return condition(
            **({"backend": prepared.backend} if prepared and prepared.backend else {}),
            **(batch or {"batch": setting.batch}),
            device=torch.device(setting.device).type,
            execution=setting.execution,
            format=setting.memory_format,
            precision=setting.precision,
            protocol=protocol.name(self.job.recipe.profile.samples),
            size="x".join(map(str, dict.fromkeys(setting.shape[1:]))),  # one number for a square
            threads=torch.get_num_threads(),
            torch=_TORCH,
        )


def _ceilings(session: _Session) -> Iterator[Event]:
    """Those the machine is known to have, and the rest measured."""
    job, device = session.job, session.job.device
    session.copy = job.ceilings.get(("ceiling.copy", _ceiling_at(device)))
    for way in session.ways:
        at = _ceiling_at(device, precision=way.precision)
        session.matmul[way.precision] = job.ceilings.get(("ceiling.matmul", at))
    if missing := [precision for precision, rate in session.matmul.items() if not (rate and session.copy)]:
        yield session.progress("what this device reaches at most")
        try:
            for precision, rates in ceilings.measure(device, missing, torch.get_num_threads()).items():
                session.raise_ceilings(precision, [rates])
        except WorkerError as error:
            session.no_ceilings = str(error)
            yield Note("profile", f"What this device reaches at most could not be measured: {error}.")
    yield from _ceiling_rows(session)


def _ceiling_rows(session: _Session) -> Iterator[Measurement]:
    device = session.job.device
    rows = [("ceiling.copy", session.copy, "bytes/s", _ceiling_at(device))]
    for precision, rate in session.matmul.items():
        rows.append(("ceiling.matmul", rate, "MACs/s", _ceiling_at(device, precision=precision)))
    for name, value, unit, at in rows:
        reason = "" if value else session.no_ceilings
        yield Measurement("profile", name, value or math.nan, unit, at, reason=reason)


def _ceiling_at(device: str, **precision: str) -> str:
    kind, threads = torch.device(device).type, torch.get_num_threads()
    return condition(device=kind, threads=threads, torch=_TORCH, **precision)


def _count(session: _Session) -> Iterator[Event]:
    yield session.progress("MACs and bytes of an image")
    shape = session.ways[0].shape
    model = session.make(device="cpu")
    try:
        session.macs = _macs(model, shape)
        for precision in session.matmul:
            dtype = AUTOCAST.get(precision, torch.float32)
            session.traffic[precision] = count.traffic(model, shape, dtype)
    except Exception as error:  # whatever a network does to who traces it, its times are as true
        yield Note("profile", f"Shares of the ceilings are left out, MACs cannot be counted: {error}")


def _macs(model: nn.Module, shape: count.Shape) -> int:
    """Of one image; a detector's heads at as many boxes as there can be."""
    if not isinstance(model, Detector):
        return count.count(model, shape).macs
    heads = model.head_macs(*shape[1:]).values()
    return count.count(model.pyramid, shape).macs + sum(form.total for form in heads)


def _measure(session: _Session, way: Setting) -> Iterator[Event]:
    """One precision, execution and memory format: the batch sweep, the training step, the controls."""
    sweep: list[Attempt] = []
    for batch in session.batches:
        attempt = yield from _setting(session, dataclasses.replace(way, batch=batch))
        sweep.append(attempt)
    controlled = [attempt for attempt in sweep if attempt.round and attempt.setting.batch == 1]
    if fine := [attempt for attempt in sweep if attempt.round]:
        best = min(fine, key=lambda attempt: attempt.median / attempt.setting.batch)
        at = session.at(best, batches="+".join(map(str, session.batches)))
        yield Measurement("profile", "best_throughput", best.setting.batch / best.median, "images/s", at)
        yield Measurement("profile", "best_batch", best.setting.batch, "images", at)
        controlled += [best] if best not in controlled else []
    if batch := session.job.recipe.profile.train_batch_size:
        step = yield from _setting(session, dataclasses.replace(way, mode="train", batch=batch))
        controlled += [step] if step.round else []
    for attempt in controlled if session.controlled else ():
        yield from _compare(session, attempt)


def _setting(session: _Session, setting: Setting) -> Generator[Event, None, Attempt]:
    """The network itself under one setting: its numbers, or the failure."""
    attempt = yield from _take(session, setting)
    if attempt.round:
        yield from _numbers(session, attempt)
        return attempt
    at, train = session.at(attempt), setting.mode == "train"
    units = {"throughput": "images/s", "peak_memory": "bytes"}
    headlines = {f"train_{name}" if train else name: unit for name, unit in units.items()}
    if train or setting.batch == 1:
        headlines["train_step" if train else "latency"] = "ms"
    for name, unit in headlines.items():
        yield Measurement("profile", name, math.nan, unit, at, reason=attempt.error)
    yield Note("profile", f"{_text(setting)} failed: {attempt.error}.")
    return attempt


def _compare(session: _Session, attempt: Attempt) -> Iterator[Event]:
    """The time of a setting over that of the same backbone around the identity."""
    control = yield from _take(session, attempt.setting, control=True)
    name = "train_mixer_cost" if attempt.setting.mode == "train" else "mixer_cost"
    value = attempt.median / control.median if control.round else math.nan
    yield Measurement("profile", name, value, "", session.at(attempt), reason=control.error)


def _take(session: _Session, setting: Setting, *, control: bool = False) -> Generator[Event, None, Attempt]:
    """Fresh processes until one was not disturbed, or failed; the attempt to keep."""
    tries: list[Attempt] = []
    while not tries or (tries[-1].disturbed and len(tries) < protocol.ATTEMPTS):
        again = f", again: {tries[-1].disturbed[0]}" if tries else ""
        attempt = yield from _attempt(session, setting, control, again)
        tries.append(attempt)
        if attempt.round:
            session.raise_ceilings(setting.precision, attempt.round.rates)
    yield from _fallbacks(session, tries[-1])
    session.attempts += tries
    session.kept.append(protocol.kept(tries))
    yield _rounds(session)
    return session.kept[-1]


def _fallbacks(session: _Session, attempt: Attempt) -> Iterator[Note]:
    """Why a backend that was forced is not taken, each reason once."""
    for text in attempt.prepared.fallbacks if attempt.prepared else ():
        if text not in session.said:
            session.said.add(text)
            yield Note("profile", text)


def _rounds(session: _Session) -> Artifact:
    """Every round so far, as a file: written anew after each setting, so that none is lost."""
    path = session.job.folder / "rounds.json.gz"
    rounds = [_plain(session, attempt) for attempt in session.attempts]
    write_whole(path, gzip.compress(json.dumps(rounds, separators=(",", ":")).encode()))
    return Artifact("profile", "rounds", path)


def _attempt(
    session: _Session, setting: Setting, control: bool, again: str
) -> Generator[Event, None, Attempt]:
    job, samples = session.job, session.job.recipe.profile.samples
    make = session.make_control if control else session.make
    optimizer = functools.partial(make_optimizer, protocol=job.recipe, device=job.device)
    text = _text(setting, control) + again
    yield session.progress(text)
    with Worker(make, setting, optimizer) as worker:
        try:
            prepared = worker.prepare()
            each = statistics.median(prepared.warm_up)
            yield session.progress(f"{text}: {samples} x {1e3 * each:.3g} ms")
            taken = worker.sample(samples, protocol.LEAST_S)
            memory = worker.memory()
        except WorkerError as error:
            return Attempt(setting=setting, control=control, error=str(error))
    return Attempt(
        setting=setting,
        control=control,
        prepared=prepared,
        memory=memory,
        round=taken,
        disturbed=protocol.disturbances(setting, taken, session.ceiling(setting.precision)),
    )


def _text(setting: Setting, control: bool = False) -> str:
    words = [setting.mode, f"batch {setting.batch}", setting.precision, setting.execution]
    return " ".join([*words, setting.memory_format, *(["around the identity"] if control else [])])


def _numbers(session: _Session, attempt: Attempt) -> Iterator[Measurement]:
    """Everything measured under one setting, name by name."""
    at = session.at(attempt)
    prefix = "train_" if attempt.setting.mode == "train" else ""
    for name, (value, unit) in (_times(attempt) | _resources(attempt)).items():
        yield Measurement("profile", prefix + name, value, unit, at)


_Numbers = dict[str, tuple[float, str]]  # name -> (value, unit)


def _times(attempt: Attempt) -> _Numbers:
    """Throughput; at batch 1 and in training also the time of a pass, with its spread."""
    assert attempt.round
    assert attempt.prepared
    setting, seconds = attempt.setting, attempt.round.seconds
    found: _Numbers = {
        "throughput": (setting.batch / attempt.median, "images/s"),
        "samples": (len(seconds), ""),
        "disturbed": (int(bool(attempt.disturbed)), ""),
    }
    if attempt.prepared.compile_s is not None:
        found["compile_time"] = (attempt.prepared.compile_s, "s")
    if setting.mode == "train":
        return found | _spread("step", seconds, attempt.round.device_seconds)
    if setting.batch == 1:
        return found | _spread("latency", seconds, attempt.round.device_seconds)
    return found


def _spread(name: str, seconds: Sequence[float], device_seconds: Sequence[float]) -> _Numbers:
    """Median, IQR, least and high quantiles in ms; on CUDA also the median of the device's own clock."""
    summary = summarise([1e3 * each for each in seconds])
    found: _Numbers = {
        name: (summary.median, "ms"),
        f"{name}_iqr": (summary.iqr, "ms"),
        f"{name}_min": (summary.least, "ms"),
        f"{name}_p90": (summary.p90, "ms"),
        f"{name}_p95": (summary.p95, "ms"),
    }
    if summary.p99 is not None:
        found[f"{name}_p99"] = (summary.p99, "ms")
    if device_seconds:
        found[f"{name}_events"] = (1e3 * statistics.median(device_seconds), "ms")
    return found


def _resources(attempt: Attempt) -> _Numbers:
    """Memory, and energy where it is known."""
    assert attempt.memory
    assert attempt.round
    memory = attempt.memory
    found: _Numbers = {"peak_memory": (memory.peak, "bytes"), "base_memory": (memory.base, "bytes")}
    if memory.reserved is not None:
        found["peak_memory_reserved"] = (memory.reserved, "bytes")
    if attempt.round.energy is not None:
        found["energy"] = (attempt.round.energy / attempt.setting.batch, "J/image")
    return found


def _against_the_limit(session: _Session) -> Iterator[Measurement]:
    """The ceilings as they stand at the end, and what each setting reaches of them."""
    yield from _ceiling_rows(session)
    for attempt in session.kept:
        batch, precision, at = attempt.setting.batch, attempt.setting.precision, session.at(attempt)
        traffic = session.traffic.get(precision)
        if attempt.control or not attempt.round or attempt.setting.mode == "train" or not traffic:
            continue
        assert session.macs is not None
        macs, moved = batch * session.macs, traffic.weights + batch * traffic.activations
        yield Measurement("profile", "intensity", macs / moved, "MACs/byte", at)
        most = session.ceiling(precision)
        if most.matmul and most.copy:
            seconds = attempt.median
            yield Measurement("profile", "matmul_share", 100 * macs / seconds / most.matmul, "%", at)
            yield Measurement("profile", "copy_share", 100 * moved / seconds / most.copy, "%", at)


def _plain(session: _Session, attempt: Attempt) -> dict[str, Any]:
    """An attempt as the artifact has it: times with five significant digits."""
    values: dict[str, Any] = dataclasses.asdict(attempt) | {"condition": session.at(attempt)}
    if attempt.round:
        for name in ("seconds", "device_seconds"):
            values["round"][name] = [float(f"{each:.5g}") for each in values["round"][name]]
    if attempt.prepared:
        values["prepared"]["warm_up"] = [float(f"{each:.5g}") for each in values["prepared"]["warm_up"]]
    return values


def _conclude(session: _Session) -> Iterator[Note]:
    """What the reader must know of the whole; RuntimeError when nothing was measured."""
    own = [attempt for attempt in session.kept if not attempt.control]
    if not any(attempt.round for attempt in own):
        key = "detect.image_size=[H,W]" if session.job.recipe.detects else "data.image_size=N"
        advice = f"A smaller --scale, or a smaller --set {key}, may do"
        if "eager" not in session.job.recipe.profile.executions:
            advice = "Try --set 'profile.executions=[\"eager\"]'"
        raise RuntimeError(f"No setting could be measured: {own[0].error}. {advice}.")
    no_energy = next((attempt.prepared.no_energy for attempt in own if attempt.prepared), "")
    if no_energy:
        yield Note("profile", f"Energy is left out: {no_energy}.")
    if disturbed := [attempt for attempt in session.kept if attempt.disturbed]:
        first = disturbed[0]
        yield Note(
            "profile",
            f"Disturbed every time, and marked: {len(disturbed)} of {len(session.kept)} settings "
            f"({_text(first.setting, first.control)}: {first.disturbed[0]}).",
        )
