"""How sure a share of independent trials is: an interval without any heavy import, for whoever needs one."""

import math
import statistics

_Z = statistics.NormalDist().inv_cdf(0.975)


def wilson(percent: float, n: float) -> tuple[float, float]:
    """The 95 % interval of a share, both in per cent, of `n` independent trials (Wilson 1927)."""
    p, z2 = percent / 100, _Z**2
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    return 100 * max(0.0, centre - half), 100 * min(1.0, centre + half)
