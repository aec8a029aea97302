"""What timings say: the middle and the tails of one set, and the ratio of two with its uncertainty.

The ratio of two networks' times comes from independent groups of fresh processes, one log ratio a group. The
estimate is their median, since a process now and then runs at half speed from its start to its end. The
interval is a bootstrap of that median over groups (Efron 1979), whose percentiles for a dozen groups cover
less than they say: the 0.5th and the 99.5th are taken, and cover a true ratio 98 times in 100
(tests/measure/test_statistics.py simulates it, with one process of eight at half speed).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

Verdict = Literal["faster", "slower", "inconclusive"]

SMALLEST_EFFECT = 0.01  # a difference of 1 % or less is nobody's reason to choose, however sure it is
TAIL_SAMPLES = 1000  # fewer put less than ten beyond the 99th percentile
_LEVEL = 0.99
_RESAMPLES = 10_000


@dataclass(frozen=True, slots=True)
class Summary:
    """The middle and the tails of a set of timings, in its unit."""

    median: float
    iqr: float
    least: float
    p90: float
    p95: float
    p99: float | None  # None under `TAIL_SAMPLES` samples


def summarise(samples: Sequence[float]) -> Summary:
    """Summarise one sample or more; quantiles are interpolated linearly."""
    low, median, high, p90, p95, p99 = np.quantile(samples, [0.25, 0.5, 0.75, 0.9, 0.95, 0.99]).tolist()
    return Summary(median, high - low, min(samples), p90, p95, p99 if len(samples) >= TAIL_SAMPLES else None)


@dataclass(frozen=True, slots=True)
class Ratio:
    """A ratio of two times with the interval that covers it at least 95 times in 100."""

    value: float
    low: float
    high: float

    @property
    def verdict(self) -> Verdict:
        """What it says of the numerator: sure of the direction, and more than the smallest effect."""
        if self.low > 1 and self.value > 1 + SMALLEST_EFFECT:
            return "slower"
        if self.high < 1 and self.value < 1 - SMALLEST_EFFECT:
            return "faster"
        return "inconclusive"


def ratio(log_ratios: Sequence[float]) -> Ratio:
    """The ratio behind independent log ratios; six or more, or the interval covers less than it says."""
    values = np.asarray(log_ratios)
    drawn = np.random.default_rng(0).integers(0, len(values), (_RESAMPLES, len(values)))
    tail = (1 - _LEVEL) / 2
    low, high = np.quantile(np.median(values[drawn], axis=1), [tail, 1 - tail])
    return Ratio(*np.exp([np.median(values), low, high]).tolist())
