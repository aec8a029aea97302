"""From a mixer's original network to the unified one, a part at a time: what did each step bring?

The claim of Hu et al. 2022 (arXiv:2211.05781) is that most of what separates published networks is the
engineering around their mixers. The rungs of `catalog.rungs` are trained by one recipe, and each is held
against the one before it by the paired tests of `reading.compare`, corrected for their number (Holm 1979).
"""

import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from stmbench import catalog, plan
from stmbench.nn.timm_models import is_timm
from stmbench.plan import Request
from stmbench.reading import compare
from stmbench.reading.compare import Comparison, Side
from stmbench.reading.holm import Corrected, holm
from stmbench.reading.significance import Interval, Test, Verdict, verdict
from stmbench.store import Store


@dataclass(frozen=True, slots=True)
class Cost:
    """A number of a rung, its mean over seeds, and the ratio to the rung before; None where there is none."""

    value: float | None
    ratio: float | None
    disturbed: bool  # while it was timed


@dataclass(frozen=True, slots=True)
class Step:
    """One rung, and what it brought over the one before; the first brought nothing."""

    name: str
    runs: tuple[str, ...]
    top1: tuple[float | None, ...]  # per cent, of each seed
    costs: dict[str, Cost]  # parameters, MACs, latency in ms, throughput in images/s
    test: Test | None = None  # against the rung before
    corrected: Corrected | None = None

    @property
    def interval(self) -> Interval | None:
        """Of the difference, at the level that its corrected test was held to."""
        return self.test.interval(self.corrected.level) if self.test and self.corrected else None

    @property
    def verdict(self) -> Verdict | None:
        return verdict(self.interval) if self.interval else None


def requests(mixer: str, seeds: str, **options: Any) -> list[Request]:
    """What to run for the ladder of a mixer, rung by rung: `options` are those of `plan.request`.

    Raises:
        ValueError: a mixer without an original network, no seeds, or whatever `plan.request` refuses.
    """
    first = plan.request(mixer=None, model=mixer, design="unified", seed=0, weights=None, **options)
    if len(first.mixers) != 1 or is_timm(first.mixers[0]):
        raise ValueError("A ladder is one mixer's: give one --mixer.")
    found = list(catalog.rungs(first.mixers[0], first.scale))
    if len(found) == 1:
        raise ValueError(f"{mixer} has no original network of its own to start from.")
    return [
        dataclasses.replace(first, design=design, seed=seed) for design in found for seed in plan.seeds(seeds)
    ]


def steps(store: Store, rungs: Sequence[tuple[str, Sequence[str]]]) -> list[Step]:
    """The ladder of finished runs: the name of each of its rungs, two or more, with the ids of its runs.

    Raises:
        ValueError: rungs that may not be compared, such as runs by two recipes.
    """
    ids = [",".join(runs) for _, runs in rungs]
    found = [compare.compare(store, pair) for pair in itertools.pairwise(ids)]
    tests = [each.outcomes[0].test for each in found]
    corrected = iter(holm([test.p for test in tests if test]))
    made = [_step(rungs[0][0], found[0].sides[0], found[0], 0)]
    for (name, _), each, test in zip(rungs[1:], found, tests, strict=True):
        made.append(_step(name, each.sides[1], each, 1, test, next(corrected) if test else None))
    return made


def _step(name: str, side: Side, found: Comparison, place: int, *tested: Test | Corrected | None) -> Step:
    costs = {
        cost.name: Cost(cost.values[place], cost.ratios[place] if place else None, cost.disturbed)
        for cost in reversed(found.costs)  # of throughputs the first, at the whole sweep
    }
    return Step(name, tuple(run.id for run in side.runs), side.top1, costs, *tested)  # pyright: ignore
