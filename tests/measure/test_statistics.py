"""Medians and tails; and that a verdict is right as often as it says, by simulation."""

import math

import numpy as np
import pytest

from stmbench.measure.statistics import Ratio, ratio, summarise

PAIRS = 12
TRIES = 400


def test_the_middle_and_the_tails() -> None:
    found = summarise([5.0, 1.0, 3.0, 2.0, 4.0])
    assert (found.median, found.iqr, found.least) == (3.0, 2.0, 1.0)
    assert (found.p90, found.p95) == (pytest.approx(4.6), pytest.approx(4.8))
    one = summarise([2.0])
    assert (one.median, one.iqr, one.least, one.p95) == (2.0, 0.0, 2.0, 2.0)


def test_the_99th_percentile_needs_a_thousand_samples() -> None:
    assert summarise(range(999)).p99 is None
    assert summarise(range(1001)).p99 == 990


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        ((1.10, 1.05, 1.15), "slower"),
        ((0.90, 0.85, 0.95), "faster"),
        ((1.10, 0.99, 1.20), "inconclusive"),  # not sure of the direction
        ((1.009, 1.008, 1.010), "inconclusive"),  # sure, and too small to matter
        ((0.991, 0.990, 0.992), "inconclusive"),
    ],
)
def test_a_verdict_needs_a_sure_and_a_relevant_difference(
    values: tuple[float, float, float], verdict: str
) -> None:
    assert Ratio(*values).verdict == verdict


def test_a_ratio_is_the_median_and_lies_in_its_interval() -> None:
    found = ratio([math.log(r) for r in (1.08, 1.09, 1.1, 1.1, 1.11, 1.12, 2.2)])
    assert found.value == pytest.approx(1.1)
    assert 1.08 <= found.low < found.value < found.high <= 2.2
    assert ratio([0.0] * 6) == Ratio(1.0, 1.0, 1.0)


def test_the_other_way_round_is_the_inverse() -> None:
    """Which of two is called the reference does not decide anything."""
    logs = np.random.default_rng(1).normal(0.05, 0.02, PAIRS)
    there, back = ratio(logs.tolist()), ratio((-logs).tolist())
    assert there.value == pytest.approx(1 / back.value)
    assert (there.low, there.high) == pytest.approx((1 / back.high, 1 / back.low), rel=0.01)


def simulated(true: float, slow: float, groups: int = PAIRS) -> list[Ratio]:
    """Tries of a bench whose processes differ by 2 %, with heavy tails, a share of them at half speed."""
    rng = np.random.default_rng(7)

    def processes() -> np.ndarray:
        shape = (TRIES, groups)
        noise = rng.normal(0, 0.02, shape) + 0.006 * rng.standard_t(2, shape)
        return noise + math.log(2) * (rng.random(shape) < slow)

    return [ratio(row) for row in math.log(true) + processes() - processes()]


@pytest.mark.parametrize("slow", [0, 1 / 8])
@pytest.mark.parametrize("groups", [PAIRS, 16])
def test_the_interval_covers_the_true_ratio(slow: float, groups: int) -> None:
    covered = np.mean([found.low <= 1 <= found.high for found in simulated(1, slow, groups)])
    assert covered >= 0.955


@pytest.mark.parametrize("slow", [0, 1 / 8])
def test_equals_are_seldom_told_apart(slow: float) -> None:
    wrong = np.mean([found.verdict != "inconclusive" for found in simulated(1, slow)])
    assert wrong <= 0.04


@pytest.mark.parametrize(("slow", "power"), [(0, 0.98), (0.03, 0.9), (1 / 8, 0.55)])
def test_a_tenth_is_found_most_of_the_time(slow: float, power: float) -> None:
    verdicts = [found.verdict for found in simulated(1.1, slow)]
    assert np.mean([verdict == "slower" for verdict in verdicts]) >= power
    assert "faster" not in verdicts
