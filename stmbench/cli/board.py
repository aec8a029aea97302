"""How a running sweep looks: lines of what its runs reach, and in a terminal a table of those that run."""

import time
from collections.abc import Sequence
from datetime import timedelta
from types import TracebackType
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.text import Text

from stmbench import record
from stmbench.cli import layout
from stmbench.cli.draw import Drawer
from stmbench.record import Event, Measurement
from stmbench.runner import StageDone
from stmbench.sweep import Ended, Item, Outcome, Started, Told
from stmbench.sweep.costs import Cost

BAR = 20  # characters


class Board:
    """Draws what is told of a sweep's items as it comes; a context manager, so that the table is closed."""

    def __init__(self, console: Console, items: Sequence[Item]) -> None:
        self.items = items
        self.outcomes: dict[int, Outcome] = {}
        self._console = console
        self._rows: dict[int, _Row] = {}
        self._left = {i: list(item.left) for i, item in enumerate(items)}  # stages
        self._live = Live(console=console, get_renderable=self._table, transient=True)

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def draw(self, event: Told | Ended) -> None:
        """Show one event."""
        if isinstance(event, Ended):
            self._end(event)
        elif isinstance(event.event, Started):
            item, left = self.items[event.task], self._left[event.task]
            self._rows[event.task] = row = _Row(self._console, event.event.run_id, left, item.cost)
            goes_on = len(left) < len(item.asked["stage"].split(","))
            row.say(f"{item.label}{', goes on' if goes_on else ''}")
        elif isinstance(event.event, StageDone):
            stage = event.event.stage
            if stage in self._left[event.task]:  # not so where the run had to be made anew
                self._left[event.task].remove(stage)
            self._rows[event.task].stage_done(stage, event.event.seconds)
        else:
            self._rows[event.task].draw(event.event)

    def count(self, state: str) -> int:
        """How many of the items have ended so."""
        return sum(outcome.state == state for outcome in self.outcomes.values())

    def _end(self, event: Ended) -> None:
        outcome, item = event.outcome, self.items[event.task]
        self.outcomes[event.task] = outcome
        row = self._rows.pop(event.task, None)
        row = row or _Row(self._console, outcome.run_id or item.label, [], item.cost)
        reason, *more = escape(outcome.reason).splitlines() or [""]
        row.say(
            {
                "done": f"[green]done[/]  {self.count('done')} of {len(self.items)}",
                "later": "waits to be timed alone",
                "failed": f"[red]failed[/]  {reason}",
                "interrupted": f"[yellow]interrupted[/]  {reason}",
                "running": "is another process's now",
            }[outcome.state]
        )
        for line in more:
            row.say(f"[dim]{line}[/]")

    def _table(self) -> Group:
        table = layout.table("run", "at", "", "left", right=("left",))
        for row in self._rows.values():
            table.add_row(*row.cells())
        failed = f", [red]{self.count('failed')} failed[/]" if self.count("failed") else ""
        state = f"{self.count('done')} of {len(self.items)} runs done{failed}"
        return Group(table, Text.from_markup(state))


class _Row(Drawer):
    """One run: what it says, each line with its name before it, and where it is now."""

    def __init__(self, console: Console, name: str, left: list[str], cost: Cost) -> None:
        super().__init__(console)
        self.bars = None  # the table is in their place
        self.name = name
        self._ahead = left  # its stages; the first is running, and the board takes it out at its end
        self._cost = cost.seconds
        self._stage_began = time.monotonic()
        self._progress: record.Progress | None = None
        self._epochs: list[float] = []

    def say(self, line: str) -> None:
        """Print a line about the run."""
        self._say(line)

    def draw(self, event: Event) -> None:
        if isinstance(event, Measurement) and (event.stage, event.name) == ("train", "seconds"):
            self._epochs.append(event.value)
        super().draw(event)

    def stage_done(self, stage: str, seconds: float) -> None:
        self._stage_began, self._progress = time.monotonic(), None
        super().stage_done(stage, seconds)

    def cells(self) -> tuple[str, str, RenderableType, str]:
        """Its name, where it is and how far, and how long it will take yet as far as is known."""
        at = self._progress
        stage = self._ahead[0] if self._ahead else ""
        seconds, known = self._left(stage)
        left = layout.duration(timedelta(seconds=seconds)) + "+" * (not known) if seconds else layout.DASH
        bar = ProgressBar(total=at.total, completed=at.done, width=BAR) if at else ""
        return escape(self.name), escape(at.text) if at else stage, bar, left

    def _left(self, stage: str) -> tuple[float, bool]:
        """Seconds until the run's end, and whether those of every stage are known."""
        ahead = self._ahead[1:]
        seconds = sum(self._cost.get(name, 0.0) for name in ahead)
        known = all(name in self._cost for name in ahead)
        if stage in self._cost:
            return seconds + max(0.0, self._cost[stage] - (time.monotonic() - self._stage_began)), known
        if stage == "train" and self._epochs and self._progress:
            now, _, last = self._progress.text.rpartition(" ")[2].partition("/")
            mean = sum(self._epochs) / len(self._epochs)
            return seconds + mean * (int(last) - int(now) + 1), known
        return seconds, False

    def _say(self, line: str) -> None:
        self.spoke = time.monotonic()
        self.console.print(f"[bold]{escape(self.name)}[/]  {line}", highlight=False)

    def _advance(self, event: record.Progress) -> None:
        self._progress = event
        if not self.console.is_terminal:
            super()._advance(event)
