"""Which of two networks is faster, or does nobody know: protocol bench/1.

Groups of fresh processes are taken one after the other, each contender in a process of its own. The processes
of a group start together and are timed in turns, never two at once, in rounds whose order is turned round
every time (A B, B A, A B). A round is at least five passes and 0.2 s; its time is their median. The log ratio
of a group is the median over its rounds, so that what changes slowly touches both alike; the ratio of the
bench is the median over groups, with a bootstrap interval over groups (`stmbench.measure.statistics`).

Around its first and its last round a process is calibrated by a matrix product that is the same for all. A
group in which a process ran slower than 80 % of what its like did is taken again, in as many groups more as a
third of those asked for. The calmest are counted, whoever of them is faster.
"""

import contextlib
import dataclasses
import functools
import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch

from stmbench import catalog, devices, evidence, recipe
from stmbench.measure.setting import Execution, MemoryFormat, Precision
from stmbench.measure.statistics import Ratio, ratio
from stmbench.measure.worker import Prepared, Round, Setting, Worker, WorkerError, check
from stmbench.nn import timm_models
from stmbench.plan import check_backend
from stmbench.recipe import Profile
from stmbench.record import Job, Note, Progress
from stmbench.training import network

PROTOCOL = "bench/1"
FEWEST = 8  # groups; the interval of fewer covers less than it says
ROUNDS = 3
PASSES, ROUND_S = 5, 0.2  # a round has at least both
CALM = 0.8  # of what the contender's processes reach in the calibration
_CHOICES = {
    "mode": ("inference", "train"),
    "precision": get_args(Precision),
    "execution": get_args(Execution),
    "memory_format": get_args(MemoryFormat),
}
_KEYS = ("scale", "design", "weights", "backend", "precision", "execution", "memory_format")


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What all contenders have in common; their own keys go before the last seven."""

    batch_size: int | None = None  # 1, or 8 for a training step: BatchNorm learns nothing from one image
    image_size: int = 224
    channels: int = 3
    classes: int = 1000
    device: str = "auto"
    mode: str = "inference"
    scale: str = "micro"
    design: str = "unified"  # what stands around the mixers
    weights: str = ""
    backend: str = ""  # of the mixers; "" for the fastest
    precision: str = "fp32"
    execution: str = "eager"
    memory_format: str = "channels_last"


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """A network and how it is run; `name` is what the user typed, and no other's."""

    name: str
    job: Job
    classes: int
    setting: Setting

    def start(self) -> Worker:
        """A fresh process that makes it ready."""
        return Worker(functools.partial(network.make, self.job, self.classes), self.setting)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What was found of one contender."""

    contender: Contender
    seconds: float | None  # of a pass: the median over groups
    ratio: Ratio | None  # of its time to the reference's; None for the reference, and after a failure
    log_ratios: tuple[float, ...]  # one a group, behind the ratio
    backend: str = ""  # that its mixers took; "" for a network that is not ours, and after a failure
    reason: str = ""  # why it failed


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """A bench; the first row is the reference's."""

    rows: tuple[Row, ...]
    groups: int  # counted
    set_aside: int
    others: float  # share of the machine's CPU time that went to other processes, in the median round
    hardware: str
    threads: int
    versions: Mapping[str, str]


def contenders(texts: Sequence[str], options: Options) -> list[Contender]:
    """Read ``NAME[@key=value,...]``, each NAME a mixer or ``timm:NAME``.

    Raises:
        ValueError: fewer than two, an unknown name, key or value, or weights that do not fit.
    """
    if len(texts) < 2:
        raise ValueError("Name two contenders or more, such as: stmbench bench halo swin.")
    if options.channels not in (1, 3):
        raise ValueError(f"--channels is 1 or 3, not {options.channels}.")
    found = []
    for i, text in enumerate(texts):
        again = texts[:i].count(text)
        found.append(contender(text, options, f"{text} ({again + 1})" if again else text))
    return found


def contender(text: str, options: Options, name: str = "") -> Contender:
    """Read one ``NAME[@key=value,...]``, to be known as `name`; ValueError as for several."""
    network_name, _, settings = text.partition("@")
    own: dict[str, str] = {}
    for part in settings.split(",") if settings else ():
        key, equals, value = part.partition("=")
        if not equals:
            raise ValueError(f"A contender is NAME or NAME@key=value,key=value, not '{text}'.")
        own[catalog.known("key of a contender", key, _KEYS)] = value
    options = dataclasses.replace(options, **own, device=devices.find(options.device))
    found = Contender(
        name=name or text,
        job=_job(network_name, own, options),
        classes=options.classes,
        setting=_setting(text, options),
    )
    _check(found, options)
    return found


def _check(contender: Contender, options: Options) -> None:
    """ValueError for weights or images that do not fit: before minutes of timing, not in them."""
    job = contender.job
    if not (job.weights or timm_models.is_timm(job.mixer)):
        return
    model = network.make(job, options.classes, device="cpu")
    if timm_models.is_timm(job.mixer):
        sizes = {"num_classes": options.classes, "in_channels": options.channels}
        try:
            timm_models.check_images(model, job.mixer, **sizes, image_size=options.image_size)
        except ValueError as error:  # it names the recipe's key, which nobody types here
            raise ValueError(str(error).replace("--set data.image_size=", "--image-size ")) from None


def _setting(text: str, options: Options) -> Setting:
    chosen: dict[str, Any] = {
        key: catalog.known(key, getattr(options, key), choices) for key, choices in _CHOICES.items()
    }
    needed = Profile(precisions=(chosen["precision"],), executions=(chosen["execution"],))
    try:
        check(options.device, needed)
    except ValueError as error:  # it names the recipe's key, which nobody typed here
        raise ValueError(f"{text}: {str(error).rpartition(': ')[2]}") from None
    return Setting(
        batch=options.batch_size or (8 if options.mode == "train" else 1),
        shape=(options.channels, options.image_size, options.image_size),
        device=options.device,
        **chosen,
    )


def _job(name: str, own: Collection[str], options: Options) -> Job:
    if timm_models.is_timm(name):
        timm_models.check_name(name)
        if {"scale", "design"} & set(own):
            raise ValueError(f"{name} has no scale and no design: its name settles what it is.")
        scale, design, backend = "", "", ""
        check_backend(name, options.backend if "backend" in own else "")
    else:
        name, scale, design = catalog.mixer(name).name, options.scale, options.design
        backend = options.backend
        catalog.rung(name, scale, design)
        check_backend(name, backend)
    data = {"image_size": options.image_size, "channels": options.channels}
    data |= dict.fromkeys(("mean", "std"), [0.5] * options.channels)  # of images that are never read
    if options.weights and not Path(options.weights).is_file():
        raise ValueError(f"No weights at {options.weights}.")
    return Job(
        mixer=name,
        scale=scale,
        recipe=recipe.from_values({"data": data}, "bench"),
        stages=(),
        data="",
        device=options.device,
        weights=options.weights or None,
        backend=backend,
        design=design,
        folder=Path(),
    )


def run(asked: Sequence[Contender], groups: int) -> Iterator[Progress | Note | Result]:
    """Compare the contenders with the first of them in so many groups; the last event is the result.

    One that fails is left out from then on. Without two to compare, one group is enough.
    """
    live = {contender.name: contender for contender in asked}
    failures: dict[str, str] = {}
    taken: list[_Group] = []
    said: set[str] = set()
    while live and (missing := _missing(taken, groups)):
        yield Progress("bench", f"bench {len(live)} models", len(taken), len(taken) + missing)
        try:
            taken.append(_take(list(live.values()), turned=len(taken) % 2 == 1))
        except _FailedError as failed:
            failures[failed.name] = failed.reason
            del live[failed.name]
            if asked[0].name not in live or len(live) == 1:
                groups = max(1, len(taken))
        for text in _fallbacks(taken[-1:]) - said:
            said.add(text)
            yield Note("bench", text)
    kept = sorted(taken, key=_calmness(taken), reverse=True)[:groups]
    yield Result(
        rows=tuple(_row(contender, asked[0], kept, failures) for contender in asked),
        groups=len(kept),
        set_aside=len(taken) - len(kept),
        others=statistics.median([timed.others for group in kept for timed in group.values()] or [0.0]),
        hardware=evidence.hardware(asked[0].setting.device),
        threads=torch.get_num_threads(),
        versions=evidence.versions(),
    )


@dataclass(frozen=True, slots=True)
class _Timed:
    """One contender's process in one group."""

    seconds: tuple[float, ...]  # the median pass of each round
    pace: float | None  # MACs/s in the calibration; None where there was no memory for it
    others: float
    backend: str
    fallbacks: tuple[str, ...]  # why the backend that was forced is not taken


_Group = Mapping[str, _Timed]  # by the contender's name


class _FailedError(RuntimeError):
    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name}: {reason}")
        self.name, self.reason = name, reason


@contextlib.contextmanager
def _blamed(contender: Contender) -> Iterator[None]:
    try:
        yield
    except WorkerError as error:
        raise _FailedError(contender.name, str(error)) from error


def _take(members: Sequence[Contender], turned: bool) -> _Group:
    """Time one group of fresh processes; ends them all, whatever happens."""
    rounds: dict[str, list[Round]] = defaultdict(list)
    prepared: dict[str, Prepared] = {}
    with contextlib.ExitStack() as stack:
        ready = [(contender, stack.enter_context(contender.start())) for contender in members]
        for contender, worker in ready:
            with _blamed(contender):
                worker.wait()  # for all, before the first is warmed up: starting takes every core
        for contender, worker in ready:
            with _blamed(contender):
                prepared[contender.name] = worker.prepare()
        for turn in range(ROUNDS):
            for contender, worker in reversed(ready) if (turn % 2 == 1) != turned else ready:
                with _blamed(contender):
                    taken = worker.sample(PASSES, ROUND_S, calibrate=turn in (0, ROUNDS - 1))
                    rounds[contender.name].append(taken)
    return {name: _timed(prepared[name], found) for name, found in rounds.items()}


def _timed(prepared: Prepared, rounds: Sequence[Round]) -> _Timed:
    paces = [rates.matmul for found in rounds for rates in found.rates if rates.matmul is not None]
    return _Timed(
        seconds=tuple(statistics.median(found.seconds) for found in rounds),
        pace=statistics.median(paces) if paces else None,
        others=statistics.median(found.others for found in rounds),
        backend=prepared.backend,
        fallbacks=prepared.fallbacks,
    )


def _fallbacks(groups: Sequence[_Group]) -> set[str]:
    """What is said of backends that cannot run, with the contender it is said of."""
    return {f"{name}: {text}" for group in groups for name, each in group.items() for text in each.fallbacks}


def _missing(taken: Sequence[_Group], groups: int) -> int:
    """How many more groups there should be, as things stand."""
    calmness = _calmness(taken)
    calm = sum(calmness(group) >= CALM for group in taken)
    return min(groups - calm, groups + groups // 3 - len(taken))


def _calmness(taken: Sequence[_Group]) -> Callable[[_Group], float]:
    """A function of a group: the pace of its slowest process over what is usual for its like."""
    paces: dict[str, list[float]] = defaultdict(list)
    for group in taken:
        for name, timed in group.items():
            if timed.pace is not None:
                paces[name].append(timed.pace)
    usual = {name: statistics.median(values) for name, values in paces.items()}

    def calmness(group: _Group) -> float:
        return min((t.pace / usual[name] for name, t in group.items() if t.pace is not None), default=1.0)

    return calmness


def _row(
    contender: Contender, reference: Contender, groups: Sequence[_Group], failures: Mapping[str, str]
) -> Row:
    name, base = contender.name, reference.name
    seconds = [statistics.median(group[name].seconds) for group in groups if name in group]
    logs: list[float] = []
    if contender is not reference and not {name, base} & failures.keys():
        both = [(group[name], group[base]) for group in groups if name in group and base in group]
        logs = [
            statistics.median(math.log(a / b) for a, b in zip(ours.seconds, theirs.seconds, strict=True))
            for ours, theirs in both
        ]
    return Row(
        contender=contender,
        seconds=statistics.median(seconds) if seconds else None,
        ratio=ratio(logs) if len(logs) >= FEWEST else None,
        log_ratios=tuple(logs),
        backend=next((group[name].backend for group in groups if name in group), ""),
        reason=failures.get(name, ""),
    )
