"""Which networks of a leaderboard cannot be told apart by their top-1, and so share a rank.

The best is tested against every one below it, image by image (`reading.significance`), and its tests are
corrected for being that many (Holm 1979). The rows above the first that is told apart share its rank.
With that one the next rank begins, and it is tested against those below it in turn.

Where predictions are missing or of other images, two networks are tested as if each had had test images of
its own, which takes a larger difference to tell them apart. So are those of a leaderboard over more than
`MOST_READ` runs, whose predictions nobody would wait to be read.
"""

import functools
import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import TYPE_CHECKING, NamedTuple

from stmbench.reading import answers
from stmbench.reading.answers import Answers
from stmbench.reading.holm import ALPHA, holm
from stmbench.store import Store

if TYPE_CHECKING:
    from stmbench.reading.significance import Hits


MOST_READ = 1000  # predictions: a millisecond or more each


class Scored(NamedTuple):
    """A network's top-1, in per cent, over so many test images, and the runs it is from: one per seed."""

    top1: float
    images: float | None
    runs: tuple[str, ...]


class _Known(NamedTuple):
    """A network's answers: the test images, by one of its seeds, and what all of them got right."""

    images: Answers
    hits: "Hits"


class Ties:
    """Finds ties, and reads each run's predictions once."""

    def __init__(self, store: Store, *, paired: bool = True) -> None:
        self._store, self.paired = store, paired
        self._files = functools.cache(lambda: answers.files(store))
        self._read: dict[str, Answers | None] = {}

    def firsts(self, networks: Sequence[Scored]) -> list[int]:
        """For each of the networks, best first, the place of the first that shares its rank, from 0."""
        known = [self._known(network) if len(networks) > 1 and self.paired else None for network in networks]
        found: list[int] = []
        while (first := len(found)) < len(networks):
            below = range(first + 1, len(networks))
            ps = [_p(networks[first], networks[i], known[first], known[i]) for i in below]
            apart = (place for place, corrected in enumerate(holm(ps), 1) if corrected.p <= ALPHA)
            found += [first] * next(apart, len(ps) + 1)
        return found

    def _known(self, network: Scored) -> _Known | None:
        """None if the predictions of a seed are missing, or two of them are of other images."""
        seeds = [seed for run in network.runs if (seed := self._answers(run))]
        if len(seeds) < len(network.runs) or not all(seed.same_images(seeds[0]) for seed in seeds):
            return None
        # It imports numpy, which a table without predictions does not need.
        from stmbench.reading.significance import Hits

        return _Known(seeds[0], Hits.of([seed.hits for seed in seeds]))

    def _answers(self, run_id: str) -> Answers | None:
        if run_id not in self._read:
            file = self._files().get(run_id)
            try:
                self._read[run_id] = answers.read(self._store.run(run_id), file) if file else None
            except ValueError:  # a table is shown all the same; `stmbench compare` says what is wrong
                self._read[run_id] = None
        return self._read[run_id]


def _p(best: Scored, other: Scored, known: _Known | None, other_known: _Known | None) -> float:
    if known and other_known and known.images.same_images(other_known.images):
        from stmbench.reading.significance import paired

        return paired(known.hits, other_known.hits).p
    return _unpaired(best, other)


def _unpaired(best: Scored, other: Scored) -> float:
    """The two-sided p-value of two shares of independent images, pooled and normal."""
    if best.top1 == other.top1 or not (best.images and other.images):
        return float(best.top1 == other.top1)
    share = (best.top1 * best.images + other.top1 * other.images) / (best.images + other.images) / 100
    error = 100 * math.sqrt(share * (1 - share) * (1 / best.images + 1 / other.images))
    return 2 * NormalDist().cdf(-abs(best.top1 - other.top1) / error)
