"""How the plan of a sweep looks: a line for each network, scale, recipe and change, with its seeds."""

from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import timedelta

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from stmbench.cli import layout
from stmbench.sweep import Item, Plan
from stmbench.sweep.costs import LIKENESS
from stmbench.sweep.planning import wall

NARROW = 90  # columns of a terminal in which only the most telling ones of the table have room
_STYLES = {"done": "green", "running": "cyan", "interrupted": "yellow", "failed": "red", "new": "bold"}


def show(console: Console, plan: Plan, *, retry: bool, jobs: int, devices: int) -> None:
    """Print the plan, what it will take as far as is known, and what failed before."""
    items, left = plan.items, plan.to_run(retry=retry)
    same = f" ({plan.twice} more are the same)" if plan.twice else ""
    stages = dict.fromkeys(stage for item in items for stage in item.asked["stage"].split(","))
    console.print(
        f"[bold]Sweep {escape(plan.name)}[/]: {len(items)} run{'s' * (len(items) != 1)}{same}, "
        f"{' → '.join(stages)} on {plan.device}",
        highlight=False,
    )
    layout.print_parts(_table(items, left, layout.unfolded(Console()).width < NARROW))
    if left:
        console.print(_cost(left, jobs, devices), highlight=False)
    for item in plan.of("failed"):
        assert item.run
        reason = escape(" ".join(item.run.reason.split()))
        console.print(f"[red]{item.run.id}[/] failed before: {reason}", highlight=False)
    if plan.of("failed") and not retry:
        console.print("`--retry-failed` takes up what failed before.", highlight=False)


def _table(items: Sequence[Item], left: Sequence[Item], narrow: bool) -> Table:
    """A row for each group; what all of them have in common is left out."""
    groups: dict[tuple[str, ...], list[Item]] = {}
    for item in items:
        key = (item.name, item.scale or layout.DASH, item.recipe, "\n".join(item.variant) or layout.DASH)
        groups.setdefault(key, []).append(item)
    heads = ("network", "scale", "recipe", "changed")
    shown = [i for i in range(4) if i == 0 or len({key[i] for key in groups}) > 1]
    rest = ("seeds", "state", "to do") if narrow else ("seeds", "state", "a run", "to do", "known from")
    made = layout.table(*(heads[i] for i in shown), *rest, right=("a run", "to do"), wrap=("network",))
    for key, members in groups.items():
        ahead = [item for item in members if item in left]
        states = Counter(item.state for item in members)
        cells = {
            "seeds": _ranges(item.seed for item in members),
            "state": ", ".join(
                f"[{_STYLES[state]}]{states[state]} {state}[/]" for state in _STYLES if states[state]
            ),
            "a run": _duration(ahead, len(ahead)),
            "to do": _duration(ahead, 1),
            "known from": _least_like(ahead),
        }
        made.add_row(*(escape(key[i]) for i in shown), *(cells[name] for name in rest))
    return made


def _cost(left: Sequence[Item], jobs: int, devices: int) -> str:
    """One line: the work that is left, and how long it will take."""
    unknown = sum(bool(item.cost.unknown) for item in left)
    text = f"[bold]To do[/]: {len(left)} run{'s' * (len(left) != 1)}"
    if any(item.cost.seconds for item in left):
        text += f", {_duration(left, 1)} of work"
        if jobs > 1:
            text += f", {layout.duration(timedelta(seconds=wall(left, jobs, devices)))} by {jobs} at once"
    return text + (f"; {unknown} of unknown length" if unknown else "") + "."


def _duration(items: Sequence[Item], parts: int) -> str:
    """The known time of the items, or of one of so many; with a + where some of it is not known."""
    seconds = sum(item.cost.total() for item in items)
    if not seconds:
        return "unknown" if items else layout.DASH
    more = "+" * any(item.cost.unknown for item in items)
    return layout.duration(timedelta(seconds=seconds / parts)) + more


def _least_like(items: Sequence[Item]) -> str:
    found = {item.cost.likeness for item in items} - {""}
    return max(found, key=LIKENESS.index, default=layout.DASH)


def _ranges(numbers: Iterable[int]) -> str:
    """Whole numbers, three or more in a row as a range."""
    rows: list[list[int]] = []
    for number in sorted(numbers):
        if rows and rows[-1][-1] == number - 1:
            rows[-1].append(number)
        else:
            rows.append([number])
    parts = [
        [f"{row[0]}{layout.DASH}{row[-1]}"] if len(row) > 2 else [str(number) for number in row]
        for row in rows
    ]
    return ", ".join(part for row in parts for part in row)
