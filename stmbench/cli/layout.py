"""How tables look in a terminal and in a pipe, and a few values as a person reads them."""

import math
import sys
from collections.abc import Sequence

from rich import box
from rich.cells import cell_len
from rich.console import Console, RenderableType
from rich.table import Table

from stmbench.reading.readable import DASH as DASH
from stmbench.reading.readable import duration as duration
from stmbench.reading.readable import value as value

UNLIMITED = 10_000  # characters in a line
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


def firm(table: Table) -> Table:
    """The table, whose columns that do not wrap need the width of their cells, and not that of a word."""
    for column in table.columns:
        if column.no_wrap:
            texts = (str(cell) for cell in (column.header, *column.cells))
            column.min_width = max(cell_len(line) for text in texts for line in text.splitlines() or [""])
    return table


def state(text: str) -> str:
    """A run's or a stage's state in its colour."""
    return f"[{_STATE_STYLES[text]}]{text}[/]"


def sparkline(
    values: Sequence[float], *, least: float | None = None, most: float | None = None, width: int = 20
) -> str:
    """A bar for each value, from `least` (0, or lower) to `most`; of too many, of evenly spread ones."""
    if len(values) > width:
        values = [values[round(i * (len(values) - 1) / (width - 1))] for i in range(width)]
    there = [number for number in values if math.isfinite(number)]
    low = min([0, *there]) if least is None else least
    high = max(there, default=0) if most is None else most
    span = (high - low) or 1
    steps = len(BARS) - 1
    return "".join(
        BARS[max(0, min(steps, round((number - low) / span * steps)))] if math.isfinite(number) else " "
        for number in values
    )
