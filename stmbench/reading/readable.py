"""Numbers as a person reads them."""

import math
from datetime import timedelta

DASH = "\N{EN DASH}"  # for what there is not
_UNITS = {"bytes": (1e6, "MB"), "bytes/s": (1e9, "GB/s"), "MACs/s": (1e9, "GMACs/s")}


def value(number: float, digits: int = 4) -> str:
    """Whole and large numbers in full, others with so many significant digits."""
    if math.isfinite(number) and (number == int(number) or abs(number) >= 1e6):
        return f"{int(number):,}"
    return f"{number:,.1f}" if abs(number) >= 1000 else f"{number:.{digits}g}"


def spread(mean: float, sd: float | None) -> str:
    """A mean to four significant digits, at least, and its standard deviation to as many places."""
    if sd is None:
        return value(mean)
    places = max(0, 3 - math.floor(math.log10(abs(mean)))) if mean else 2
    return f"{mean:,.{places}f} ±{sd:,.{places}f}"


def unit(of: str) -> tuple[float, str]:
    """What a person reads numbers of this unit in, and by what to divide them for it."""
    return _UNITS.get(of, (1, of))


def amount(count: float) -> str:
    """A count in millions: ``4.39 M``."""
    return f"{count / 1e6:.2f} M"


def macs(count: float) -> str:
    """Multiply-accumulates: ``0.86 G``, or ``13.5 M`` below a tenth of that unit."""
    return f"{count / 1e9:.2f} G" if count >= 1e8 else f"{count / 1e6:.1f} M"


def design(name: str) -> str:
    """What is put behind a mixer's name: ``@original``; nothing for the unified design."""
    return "" if name in ("", "unified") else f"@{name}"


def duration(time: timedelta) -> str:
    """``12.3 s``, ``3:25`` (minutes) or ``1:03:25``; a dash if a clock was set back in the meantime."""
    seconds = time.total_seconds()
    if seconds < 0:
        return DASH
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, hours = int(seconds) // 60 % 60, int(seconds) // 3600
    return (f"{hours}:{minutes:02}" if hours else f"{minutes}") + f":{int(seconds) % 60:02}"
