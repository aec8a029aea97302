"""The Pareto front, by hand and against its definition."""

import numpy as np

from stmbench.reading.front import front


def test_a_hand_example() -> None:
    #            front     dominated  front      front      equal in both: none dominates the other
    points = [(1.0, 70.0), (2.0, 69.0), (3.0, 75.0), (2.0, 71.0), (3.0, 75.0)]
    assert front(points) == [0, 3, 2, 4]
    assert front([(1.0, 70.0), (1.0, 71.0)]) == [1]  # as cheap, and better
    assert front([(1.0, 70.0), (2.0, 70.0)]) == [0]  # as good, and cheaper
    assert front([]) == []


def test_it_is_what_nothing_dominates() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        points = [(float(cost), float(value)) for cost, value in rng.integers(0, 6, (12, 2))]
        kept = {
            i
            for i, (cost, value) in enumerate(points)
            if not any(c <= cost and v >= value and (c, v) != (cost, value) for c, v in points)
        }
        assert set(front(points)) == kept
