"""Wilson's interval solves the equation it is defined by."""

import math

import pytest

from stmbench.measure.shares import wilson


@pytest.mark.parametrize(("percent", "n"), [(88.7, 2000), (0.5, 200), (99.99, 50_000)])
def test_its_ends_are_the_shares_that_are_just_not_refuted(percent: float, n: int) -> None:
    low, high = wilson(percent, n)
    assert low < percent < high
    for end in (low / 100, high / 100):
        assert abs(percent / 100 - end) == pytest.approx(1.959964 * math.sqrt(end * (1 - end) / n), rel=1e-6)


def test_it_stays_between_0_and_100() -> None:
    assert wilson(0, 100)[0] == 0
    assert wilson(100, 100)[1] == 100
