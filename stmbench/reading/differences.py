"""What sets networks apart, but for how often they are right: how and where they were made, their cost."""

import json
import statistics
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stmbench import recipe
from stmbench.record import Measurement, without
from stmbench.store import RunRecord

TOPICS = ("configuration", "data", "seeds", "environment", "architecture")
STAGES = ("build", "eval", "profile")
_SIZES = {"parameters": "parameters", "macs": "MACs", "macs.mixers": "MACs of the mixers"}
_COSTS = {
    ("build", "parameters"): "parameters",
    ("build", "macs"): "MACs",
    ("profile", "latency"): "latency",
    ("profile", "best_throughput"): "throughput",
}
NAMES = (*_SIZES, *(name for _, name in _COSTS), "mixers", "disturbed", "top1", "images")

Numbers = Mapping[str, Sequence[Measurement]]  # by run id: those called `NAMES`, of `STAGES`


@dataclass(frozen=True, slots=True)
class Difference:
    """One fact that is not the same on all sides."""

    topic: str
    name: str
    values: tuple[str, ...]  # one per side, "" where there is none; unlike runs of a side joined by commas


@dataclass(frozen=True, slots=True)
class Cost:
    """A number of each side that was taken under one condition; None where a side has none under it."""

    name: str
    unit: str
    condition: str
    values: tuple[float | None, ...]  # means over the runs of a side
    disturbed: bool  # some were timed while the machine was disturbed

    @property
    def ratios(self) -> tuple[float | None, ...]:
        """Of each value to the first side's."""
        first = self.values[0]
        return tuple(value / first if value is not None and first else None for value in self.values)


def differences(sides: Sequence[Sequence[RunRecord]], numbers: Numbers) -> list[Difference]:
    """The facts in which the sides' runs differ, by topic."""
    facts = [[_facts(run, numbers.get(run.id, ())) for run in side] for side in sides]
    names = dict.fromkeys(name for side in facts for found in side for name in found)
    all_of = [Difference(topic, name, _values(facts, (topic, name))) for topic, name in names]
    unlike = [found for found in all_of if len(set(found.values)) > 1]
    return sorted(unlike, key=lambda found: TOPICS.index(found.topic))


_Facts = dict[tuple[str, str], str]  # (topic, name) -> value


def _values(facts: Sequence[Sequence[_Facts]], name: tuple[str, str]) -> tuple[str, ...]:
    return tuple(", ".join(dict.fromkeys(found.get(name, "") for found in side)) for side in facts)


def _facts(run: RunRecord, numbers: Sequence[Measurement]) -> _Facts:
    settings = dict(settings_of(run))
    configuration = {"recipe": f"{run.recipe_name} ({run.recipe_digest})", **settings}
    configuration |= {"--set": " ".join(run.overrides), "precision": run.precision}
    configuration |= {"weights": f"{run.weights} ({run.weights_sha256[:12]})" if run.weights else ""}
    configuration |= {f"images: {key}": _text(value) for key, value in run.preprocessing.items()}
    paths = [m.condition.partition("=")[2] for m in numbers if (m.stage, m.name) == ("eval", "mixers")]
    configuration |= {"forced backend": run.backend, "backend": " ".join(paths)}
    code = run.git_commit[:12] + (" with uncommitted changes" if run.git_dirty else "")
    build = {m.name: m.value for m in numbers if m.stage == "build"}
    topics: dict[str, Mapping[str, str]] = {
        "configuration": configuration,
        "data": {"name": run.data_name, "fingerprint": run.data_fingerprint, "source": run.data_source},
        "seeds": {"seed": str(run.seed)},
        "environment": {
            "hardware": f"{run.hardware} [{run.device}]",
            "threads": str(run.threads),
            "code": code,
            **run.versions,
        },
        "architecture": {
            "mixer": run.mixer,
            "scale": run.scale,
            "design": run.design,
            **{_SIZES[name]: f"{value:,.0f}" for name, value in build.items() if name in _SIZES},
        },
    }
    return {(topic, name): value for topic, found in topics.items() for name, value in found.items()}


def settings_of(run: RunRecord) -> Iterator[tuple[str, str]]:
    """The run's recipe as ``("section.key", text)``; a key that is newer than the run has its default."""
    for section, default in recipe.Recipe().values().items():
        values = run.recipe_values.get(section, default)
        if not isinstance(default, dict):
            yield section, _text(values)
            continue
        for key, value in (default | values).items():
            yield f"{section}.{key}", _text(value)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def costs(sides: Sequence[Sequence[RunRecord]], numbers: Numbers) -> list[Cost]:
    """What the first side and another one cost under one condition; times, on one kind of hardware too."""
    found: defaultdict[tuple[str, ...], list[list[Measurement]]] = defaultdict(lambda: [[] for _ in sides])
    disturbed = set()
    for side, run in ((i, run) for i, runs in enumerate(sides) for run in runs):
        for m in numbers.get(run.id, ()):
            hardware = run.hardware if m.stage == "profile" else ""
            if m.name == "disturbed" and m.value:
                disturbed.add((run.hardware, _way(m)))
            if (m.stage, m.name) in _COSTS and m.value == m.value:
                key = (m.stage, m.name, without(m.condition, "backend"), hardware)
                found[key][side].append(m)
    order = list(_COSTS)
    rows = sorted(found.items(), key=lambda item: (order.index((item[0][0], item[0][1])), item[0]))
    return [
        Cost(
            _COSTS[stage, name],
            next(m.unit for side in measured for m in side),
            at,
            tuple(statistics.fmean(m.value for m in side) if side else None for side in measured),
            any((hardware, _way(m)) in disturbed for side in measured for m in side),
        )
        for (stage, name, at, hardware), measured in rows
        if measured[0] and any(measured[1:])
    ]


def _way(m: Measurement) -> str:
    return without(m.condition, "backend", "batch", "batches")
