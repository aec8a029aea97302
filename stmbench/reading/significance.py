"""Is one top-1 above another? Paired tests on which images each network got right. Differences are in points.

One network on either side: McNemar's exact test (1947) on the images that only one of the two gets right, and
the percentile interval of a paired bootstrap (Efron 1979) of the difference.

Several seeds: the difference of their means, under a hierarchical bootstrap (Davison & Hinkley 1997) that
draws seeds, then images, the same for all. Its own percentiles cover too little where seeds vary much. Of
its variance, which is known without drawing as a sum of parts, it gets two wrong: it has (n - 1)/n of what
n seeds vary, and counts three times what is peculiar to one seed on one image (Owen 2007, "The pigeonhole
bootstrap", arXiv:0712.1111). So the interval that decides has each part once, unbiased, and is Student's
(1908), with the degrees of freedom of Satterthwaite (1946). Both sides' seeds are taken to vary alike, so
that a side may have a single one. docs/analysis.md has the coverage of both.

The verdict is read from the interval, so that the two always agree.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import ClassVar, Literal

import numpy as np

from stmbench.reading.holm import ALPHA

Verdict = Literal["better", "worse", "inconclusive"]
Interval = tuple[float, float]

_RESAMPLES = 100_000
_HIERARCHICAL_RESAMPLES = 4_000
_NORMAL = 1000  # degrees of freedom above which Student's distribution is the normal one


@dataclass(frozen=True, slots=True)
class Hits:
    """What one side, S seeds of a network, got right on N images: enough to test it against any other."""

    seeds: int
    share: np.ndarray  # (N,) float, of the seeds that got the image right
    accuracies: np.ndarray  # (S,) float, share of the images
    peculiar: float  # sum of squares of what neither the seed nor the image explains

    @classmethod
    def of(cls, answers: Sequence[np.ndarray] | np.ndarray) -> "Hits":
        """From (N,) bool of each seed, or all of them as (S, N)."""
        hits = np.asarray(answers)  # (S, N)
        seeds, images = hits.shape
        share, accuracies, mean = hits.mean(axis=0), hits.mean(axis=1), float(hits.mean())
        explained = seeds * (share**2).sum() + images * (accuracies**2).sum() - seeds * images * mean**2
        return cls(seeds, share, accuracies, max(0.0, float(hits.sum() - explained)))


@dataclass(frozen=True, slots=True)
class Pair:
    """Two networks, image by image."""

    name: ClassVar = "McNemar, exact"
    only_reference: int  # images that the reference alone gets right
    only_contender: int
    images: int

    @property
    def value(self) -> float:
        """Contender minus reference."""
        return 100 * (self.only_contender - self.only_reference) / self.images

    @property
    def p(self) -> float:
        return mcnemar(self.only_reference, self.only_contender)

    def interval(self, level: float = ALPHA) -> Interval:
        """Of the bootstrap, all but `level`; it reaches to zero where the exact test does not exclude it."""
        shares = np.array([self.only_reference, self.only_contender]) / self.images
        drawn = np.random.default_rng(0).multinomial(self.images, [*shares, 1 - shares.sum()], _RESAMPLES)
        differences = 100 * (drawn[:, 1] - drawn[:, 0]) / self.images
        low, high = np.quantile(differences, [level / 2, 1 - level / 2]).tolist()
        return (low, high) if self.p <= level else (min(low, 0.0), max(high, 0.0))


@dataclass(frozen=True, slots=True)
class Seeded:
    """Means over seeds, of which at least one side has several."""

    name: ClassVar = "Student, over seeds and images"
    value: float  # contender minus reference
    error: float  # its standard error
    freedom: float  # degrees of freedom of that

    @property
    def p(self) -> float:
        if self.error == 0:
            return float(self.value == 0)
        return _beyond(abs(self.value) / self.error, self.freedom)

    def interval(self, level: float = ALPHA) -> Interval:
        """Student's, all but `level`."""
        half = self.error * _quantile(level, self.freedom)
        return self.value - half, self.value + half


Test = Pair | Seeded


def paired(reference: Hits, contender: Hits) -> Test:
    """The test that the numbers of seeds call for. Both sides answered the same images, in the same order."""
    if reference.seeds == contender.seeds == 1:
        old, new = reference.share > 0, contender.share > 0
        return Pair(int((old & ~new).sum()), int((new & ~old).sum()), len(old))
    sides, images = (reference, contender), len(reference.share)
    freedom = reference.seeds + contender.seeds - 2
    each = (1 / reference.seeds + 1 / contender.seeds) / freedom
    of_seeds = each * sum(side.seeds * float(side.accuracies.var()) for side in sides)
    peculiar = each * sum(side.peculiar for side in sides) / (images * max(1, images - 1))
    of_images = float((contender.share - reference.share).var()) / max(1, images - 1)
    # What is peculiar is in both: the seeds keep it, and cannot truly vary less than it alone makes them
    variance = max(of_seeds, peculiar) + max(0.0, of_images - peculiar)
    value = 100 * float(contender.share.mean() - reference.share.mean())
    freedom = freedom * (variance / of_seeds) ** 2 if of_seeds else math.inf
    return Seeded(value, 100 * math.sqrt(variance), freedom)


def hierarchical(reference: np.ndarray, contender: np.ndarray, level: float = ALPHA) -> Interval:
    """Percentiles of a bootstrap over seeds, then images, all but `level`; from (S, N) bool of each side."""
    seeds, images = (len(reference), len(contender)), reference.shape[1]
    # Images with the same answers are alike: their numbers are drawn, not they
    answers, counts = np.unique(
        np.concatenate([reference, contender]), axis=1, return_counts=True
    )  # (S, K), (K,)
    rng, draws = np.random.default_rng(0), np.empty(_HIERARCHICAL_RESAMPLES)
    for i in range(len(draws)):
        old, new = (rng.multinomial(n, np.full(n, 1 / n)) / n for n in seeds)
        differences = np.concatenate([-old, new]) @ answers  # (K,)
        draws[i] = 100 * (rng.multinomial(images, counts / images) @ differences) / images
    low, high = np.quantile(draws, [level / 2, 1 - level / 2]).tolist()
    return low, high


def verdict(interval: Interval) -> Verdict:
    """What the interval says of the contender."""
    low, high = interval
    return "better" if low > 0 else "worse" if high < 0 else "inconclusive"


def mcnemar(b: int, c: int) -> float:
    """The two-sided p-value of `b` against `c` discordant pairs, exact, by the binomial distribution."""
    n = b + c
    k = np.arange(1, min(b, c) + 1)
    log_ways = np.append(0.0, np.cumsum(np.log((n - k + 1) / k)))  # of choosing 0, 1, ... of n
    return min(1.0, 2 * float(np.exp(log_ways - n * math.log(2)).sum()))


# Student's distribution, as that of the angle whose tangent is t / sqrt(freedom), whose density is a power
# of its cosine


def _beyond(t: float, freedom: float) -> float:
    """The probability below -t and above t, for t of at least 0."""
    if freedom > _NORMAL:
        return 2 * NormalDist().cdf(-t)
    return float(np.interp(math.atan(t / math.sqrt(freedom)), *_student(freedom)))


def _quantile(level: float, freedom: float) -> float:
    """The t with `level` beyond it, both sides together."""
    if freedom > _NORMAL:
        return -NormalDist().inv_cdf(level / 2)
    angles, beyond = _student(freedom)
    return math.sqrt(freedom) * math.tan(np.interp(level, beyond[::-1], angles[::-1]))


def _student(freedom: float) -> tuple[np.ndarray, np.ndarray]:
    """Angles from 0 to a right angle, and the probability beyond each, both sides together."""
    angles = np.linspace(0, math.pi / 2, 20_001)
    density = np.cos(angles) ** (freedom - 1)
    slices = (density[1:] + density[:-1]) / 2
    beyond = np.append(np.cumsum(slices[::-1])[::-1], 0.0)
    return angles, beyond / beyond[0]
