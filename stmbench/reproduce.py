"""Again: a finished run's network, recipe, seed, data and weights, and whether the outcome is the same.

On a CPU with the same number of threads, code and libraries it is, bit for bit, the trained weights too.
Elsewhere a number counts as reproduced if it lies within the uncertainty that was stored with
the first one: the counts of `build` have none and must be equal; shares of test images have Wilson's 95 %
interval, other numbers of `erf`, `invariance` and `robustness` the one they were stored with. Times are
judged where hardware, threads and torch are the same: the median must lie between the least and the 95th
percentile of the samples then.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from stmbench import devices, plan, recipe
from stmbench.evidence import sha256
from stmbench.measure.shares import wilson
from stmbench.plan import Request
from stmbench.reading import answers, differences
from stmbench.reading.differences import Difference
from stmbench.record import Measurement
from stmbench.store import RunRecord, Store
from stmbench.store.records import ArtifactRecord

_TOPICS = ("configuration", "data", "environment")
_DECIDES = ("build", "eval")  # stages whose numbers must all be reproduced
_SHARES = ("top1", "top5")


@dataclass(frozen=True, slots=True)
class Check:
    """One number then and now, and the interval that was stored with the first."""

    then: Measurement
    now: float
    low: float
    high: float

    @property
    def holds(self) -> bool:
        return self.low <= self.now <= self.high or self.now == self.then.value


@dataclass(frozen=True, slots=True)
class Outcome:
    """What two runs of the same have in common."""

    weights: bool | None  # whether every trained file is the same, bit for bit; None if none was trained
    alike: int | None  # test images that both got right, or both wrong; None without comparable predictions
    images: int
    checks: tuple[Check, ...]

    @property
    def reproduced(self) -> bool:
        """Whether the counts are equal and what was evaluated lies within its uncertainty."""
        decisive = [check for check in self.checks if check.then.stage in _DECIDES]
        return all(check.holds for check in decisive)


def request(run: RunRecord, *, data: str | None = None, weights: str | None = None) -> Request:
    """What to ask for to do `run` again; on a CPU, this process takes on its number of threads.

    Raises:
        ValueError: it is not finished, or its data, weights or kind of device are not here.
    """
    if run.state != "done":
        raise ValueError(f"Run {run.id} is {run.state}: only a finished one can be reproduced.")
    protocol = recipe.from_values(run.recipe_values, run.recipe_name)
    info = plan.find_data(data or run.data_source, protocol)
    if info.fingerprint != run.data_fingerprint:
        raise ValueError(
            f"The data at {info.source} are not those of {run.id} ({info.fingerprint}, then "
            f"{run.data_fingerprint}). Give --data."
        )
    weights = weights or run.weights or None
    if weights and sha256(weights) != run.weights_sha256:
        raise ValueError(f"{weights} is not the file that {run.id} started from. Give --weights.")
    device = devices.find(run.device)
    if device == "cpu":
        torch.set_num_threads(run.threads)
    asked = Request(
        mixers=(run.mixer,),
        scale=run.scale,
        recipe=protocol,
        overrides=tuple(run.overrides),
        stages=tuple(run.stages),
        seed=run.seed,
        info=info,
        device=device,
        weights=weights,
        backend=run.backend,
        design=run.design or "unified",
        preprocessing=run.preprocessing,
    )
    plan.check(asked)
    return asked


def changed(then: RunRecord, now: RunRecord) -> list[Difference]:
    """What is not as it was: code, libraries, machine, and settings that are newer than the first run."""
    found = differences.differences([[then], [now]], {})
    return [each for each in found if each.topic in _TOPICS]


def outcome(store: Store, then: RunRecord, now: RunRecord) -> Outcome:
    """Compare two runs of the same."""
    alike, images = _answers(store, then, now)
    again = {_key(m): m.value for m in store.measurements(now.id)}
    return Outcome(
        _same_weights(store, then, now),
        alike,
        images,
        tuple(
            Check(m, again[_key(m)], *interval)
            for m, interval in _intervals(store.measurements(then.id), same_machine=_same_machine(then, now))
            if _key(m) in again
        ),
    )


def _same_weights(store: Store, then: RunRecord, now: RunRecord) -> bool | None:
    old, new = (
        {file.condition: (run, file) for file in store.artifacts(run.id) if file.kind == "weights"}
        for run in (then, now)
    )
    if not old or old.keys() != new.keys():
        return False if old else None
    return all(_same_tensors(old[kind], new[kind]) for kind in old)


def _same_tensors(*files: tuple[RunRecord, ArtifactRecord]) -> bool:
    """By the files' digests, or by what is in them: safetensors writes its metadata in any order."""
    if len({file.sha256 for _, file in files}) == 1:
        return True
    try:
        then, now = (load_file(run.folder / file.path) for run, file in files)
    except (OSError, SafetensorError):
        return False
    return then.keys() == now.keys() and all(torch.equal(then[key], now[key]) for key in then)


def _answers(store: Store, *runs: RunRecord) -> tuple[int | None, int]:
    try:
        then, now = (answers.read(run, answers.headline(store.artifacts(run.id))) for run in runs)
    except ValueError:
        return None, 0
    if not then.same_images(now):
        return None, 0
    return int((then.hits == now.hits).sum()), len(then.hits)


def _key(m: Measurement) -> tuple[str, str, str, int]:
    return m.stage, m.name, m.condition, m.step


def _same_machine(then: RunRecord, now: RunRecord) -> bool:
    return (then.hardware, then.threads) == (now.hardware, now.threads)


def _intervals(
    measurements: Sequence[Measurement], *, same_machine: bool
) -> Iterator[tuple[Measurement, tuple[float, float]]]:
    """The final numbers that have an uncertainty to be judged by, each with its interval."""
    values = {_key(m): m.value for m in measurements}
    for m in measurements:
        if m.step or math.isnan(m.value):
            continue

        def beside(name: str, m: Measurement = m) -> float | None:
            return values.get((m.stage, name, m.condition, 0))

        low, high = beside(f"{m.name}.low"), beside(f"{m.name}.high")
        images = beside("images")
        if low is not None and high is not None:
            yield m, (low, high)
        elif m.stage == "build":
            yield m, (m.value, m.value)
        elif m.stage == "eval" and m.name in _SHARES and images:
            yield m, wilson(m.value, images)
        elif same_machine and m.name == "latency":
            least, most = beside("latency_min"), beside("latency_p95")
            if least is not None and most is not None:
                yield m, (least, most)
