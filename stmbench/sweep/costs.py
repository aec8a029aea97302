"""How long runs will take, from how long stages of runs like them took.

Each stage's time is the median over the finished stages of the likest runs there are: the same network,
recipe, data and hardware; else the same network by a recipe of this name; else any network by it. A stage
that was resumed counts with its last part alone, which the median forgives where most were not. Training is
known by the epoch.
"""

import statistics
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from stmbench.store.records import StageTime

LIKENESS = ("same runs", "like runs", "other networks")


@dataclass(frozen=True, slots=True)
class Cost:
    """Seconds of each stage to be run, and how like the runs were that they are known from.

    A stage that nobody knows of is `unknown`; `likeness` is that of the least like, "" for none.
    """

    seconds: Mapping[str, float]
    unknown: tuple[str, ...]
    likeness: str

    def total(self, without: Collection[str] = ()) -> float:
        """Seconds of all known stages but these."""
        return sum(seconds for stage, seconds in self.seconds.items() if stage not in without)


class Costs:
    """What is known; `cost` looks it up."""

    def __init__(self, times: Iterable[StageTime]) -> None:
        self._of: dict[tuple[str, ...], list[float]] = defaultdict(list)
        for one in times:
            for key in _keys(one):
                self._of[key].append(one.seconds / _units(one))

    def cost(self, like: StageTime, stages: Collection[str]) -> Cost:
        """What these stages of such a run will take; the stage and the seconds of `like` say nothing."""
        seconds, levels = {}, [-1]
        for stage in stages:
            asked = like._replace(stage=stage)
            found = [self._of.get(key) for key in _keys(asked)]
            level = next((i for i, times in enumerate(found) if times), None)
            if level is not None:
                seconds[stage] = statistics.median(found[level] or ()) * _units(asked)
                levels.append(level)
        unknown = tuple(stage for stage in stages if stage not in seconds)
        return Cost(seconds, unknown, LIKENESS[max(levels)] if seconds else "")


def _units(one: StageTime) -> int:
    """How many of what takes the time: training is known by the epoch, all else as a whole."""
    return one.epochs if one.stage == "train" else 1


def _keys(one: StageTime) -> tuple[tuple[str, ...], ...]:
    """What a stage's time is filed under, the most telling first, as in `LIKENESS`."""
    network, recipe = (one.mixer, one.scale, one.design), one.recipe_name
    same = (one.recipe_digest, one.data_fingerprint, one.hardware)
    return (one.stage, *network, recipe, *same), (one.stage, *network, recipe), (one.stage, recipe)
