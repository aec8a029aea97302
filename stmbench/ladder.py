"""From a mixer's original network to the unified one, a part at a time: what did each step bring?

The claim of Hu et al. 2022 (arXiv:2211.05781) is that most of what separates published networks is the
engineering around their mixers. The rungs of `catalog.rungs` are trained by one recipe, and each is held
against the one before it by the paired tests of `reading.compare`, corrected for their number (Holm 1979).
Where that is the original network's own recipe, a last rung changes the recipe alone.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from stmbench import catalog, plan
from stmbench.catalog import Design, Scale
from stmbench.nn.timm_models import is_timm
from stmbench.plan import Request
from stmbench.reading import compare
from stmbench.reading.compare import Comparison, Side
from stmbench.reading.holm import Corrected, holm
from stmbench.reading.significance import Interval, Test, Verdict, verdict
from stmbench.store import Store

RECIPE = "recipe"  # the rung whose network is that of the one before, trained by another recipe


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


def requests(
    mixer: str, seeds: str, *, original_recipe: str | None = None, **options: Any
) -> list[tuple[str, Request]]:
    """What to run for the ladder of a mixer, and on which rung: `options` are those of `plan.request`.

    With `original_recipe` all rungs are trained by it, and the unified network once more by the recipe of the
    options, on the rung `RECIPE`.

    Raises:
        ValueError: a mixer without an original network, no seeds, the same recipe twice, or whatever
            `plan.request` refuses.
    """
    last = plan.request(mixer=None, model=mixer, design="unified", seed=0, weights=None, **options)
    if len(last.mixers) != 1 or is_timm(last.mixers[0]):
        raise ValueError("A ladder is one mixer's: give one --mixer.")
    found = catalog.rungs(last.mixers[0], last.scale)
    if len(found) == 1:
        raise ValueError(f"{mixer} has no original network of its own to start from.")
    first = last if original_recipe is None else _by_recipe(last, original_recipe)
    rungs = [(design, dataclasses.replace(first, design=design)) for design in found]
    rungs[-1] = (f"unified ({_last_part(*found.values())})", first)
    if first is not last:
        rungs.append((RECIPE, last))
    return [
        (name, dataclasses.replace(each, seed=seed)) for name, each in rungs for seed in plan.seeds(seeds)
    ]


def _last_part(*rungs: tuple[Design, Scale]) -> str:
    """What becomes unified with the last of them, as the others say by their names."""
    *_, (before, _), (after, _) = rungs
    changed = (part for part in catalog.PARTS if getattr(before, part) != getattr(after, part))
    return next(changed, "depths")


def _by_recipe(asked: Request, name: str) -> Request:
    """The same request by another recipe; ValueError if that one is the same."""
    other = plan.request(
        mixer=asked.mixers[0],
        scale=asked.scale,
        recipe_name=name,
        overrides=asked.overrides,
        stage=",".join(asked.stages),
        seed=asked.seed,
        data=asked.info.source,
        device=asked.device,
        weights=None,
    )
    if other.recipe.digest == asked.recipe.digest:
        raise ValueError(
            f"--original-recipe {name} and --recipe {asked.recipe.name} are one protocol: give one of them."
        )
    return other


def steps(store: Store, rungs: Sequence[tuple[str, Sequence[str]]]) -> list[Step]:
    """The ladder of finished runs: the name of each of its rungs, two or more, with the ids of its runs.

    Raises:
        ValueError: rungs that may not be compared, such as runs by two recipes, but for the rung `RECIPE`.
    """
    found = [
        compare.compare(store, [",".join(old), ",".join(new)], across_recipes=name == RECIPE)
        for (_, old), (name, new) in itertools.pairwise(rungs)
    ]
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
