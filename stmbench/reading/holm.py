"""Several tests at once: what each p-value is worth among the others.

Holm 1979, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of Statistics
6, 65.
"""

from collections.abc import Sequence
from typing import NamedTuple

ALPHA = 0.05


class Corrected(NamedTuple):
    """A p-value among others; `p` is at most `ALPHA` exactly where the raw one is at most `level`."""

    p: float
    level: float  # at which the raw p-value was tested


def holm(ps: Sequence[float]) -> list[Corrected]:
    """Correct p-values for being several, in their order.

    The smallest of m is tested at `ALPHA` / m, the next at `ALPHA` / (m - 1), until one fails; the others
    fail with it, at its level.
    """
    found: dict[int, Corrected] = {}
    worst, level = 0.0, ALPHA
    for i in sorted(range(len(ps)), key=ps.__getitem__):
        left = len(ps) - len(found)
        level = ALPHA / left if worst <= ALPHA else level
        worst = max(worst, min(1.0, left * ps[i]))
        found[i] = Corrected(worst, level)
    return [found[i] for i in range(len(ps))]
