"""How tables look in a terminal and in a pipe, and a few values as a person reads them."""

import math
import sys
from collections.abc import Sequence
from datetime import timedelta

from rich import box
from rich.console import Console, RenderableType
from rich.table import Table

UNLIMITED = 10_000  # characters in a line
DASH = "\N{EN DASH}"
BARS = "▁▂▃▄▅▆▇█"
_STATE_STYLES = {"done": "green", "running": "cyan", "failed": "red", "interrupted": "yellow"}


def unfolded(console: Console) -> Console:
    """The console, or where it is no terminal one that folds no line."""
    return console if console.is_terminal else Console(file=console.file, width=UNLIMITED)


def print_parts(*parts: RenderableType | None, console: Console | None = None) -> None:
    """Print the parts with a line between; fold nothing where no terminal sets the width."""
    console = unfolded(console or Console())
    for i, part in enumerate(part for part in parts if part is not None):
        if i:
            console.print()
        console.print(part, highlight=False)


def table(*headers: str, right: Sequence[str] = (), wrap: Sequence[str] = ()) -> Table:
    """Columns flush left but for those in `right`; in a narrow terminal those in `wrap` give way."""
    rule = box.SIMPLE_HEAD if sys.stdout.isatty() else None
    made = Table(box=rule, padding=(0, 1 if rule else 2, 0, 0), pad_edge=False, show_edge=False)
    for header in headers:
        justify = "right" if header in right else "left"
        least = 7 if header in wrap else None  # or they would give way down to nothing
        made.add_column(
            header, justify=justify, no_wrap=header not in wrap, min_width=least, header_style="bold"
        )
    return made


def state(text: str) -> str:
    """A run's or a stage's state in its colour."""
    return f"[{_STATE_STYLES[text]}]{text}[/]"


def value(number: float, digits: int = 4) -> str:
    """Whole and large numbers in full, others with so many significant digits."""
    if math.isfinite(number) and (number == int(number) or abs(number) >= 1e6):
        return f"{int(number):,}"
    return f"{number:,.1f}" if abs(number) >= 1000 else f"{number:.{digits}g}"


def duration(time: timedelta) -> str:
    """``12.3 s``, ``3:25`` (minutes) or ``1:03:25``."""
    seconds = time.total_seconds()
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, hours = int(seconds) // 60 % 60, int(seconds) // 3600
    return (f"{hours}:{minutes:02}" if hours else f"{minutes}") + f":{int(seconds) % 60:02}"


def sparkline(values: Sequence[float], *, most: float | None = None, width: int = 20) -> str:
    """A bar for each value, from 0 (or the least, if negative) to `most`; evenly spread ones of too many."""
    if len(values) > width:
        values = [values[round(i * (len(values) - 1) / (width - 1))] for i in range(width)]
    there = [number for number in values if math.isfinite(number)]
    low, high = min(there, default=0), max(there, default=0) if most is None else most
    low = min(low, 0)
    span = (high - low) or 1
    steps = len(BARS) - 1
    return "".join(
        BARS[min(steps, round((number - low) / span * steps))] if math.isfinite(number) else " "
        for number in values
    )
