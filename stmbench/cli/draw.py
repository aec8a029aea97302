"""How a running run looks: bars in a terminal, one line per milestone anywhere else."""

import math
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from stmbench import record
from stmbench.reading import tables
from stmbench.record import Event, Measurement, Note

QUIET_S = 60  # without a terminal: a sign of life so often within an epoch
_UNITS = {"images/s": "{:,.0f} images/s", "loss": "loss {:.3f}", "acc": "train top-1 {:.1f} %"}


class Drawer:
    """Draws the events of one run as they come; a context manager, so that bars are always closed."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.bars: Progress | None = None
        self.task: TaskID | None = None
        self.text = ""
        self.spoke = time.monotonic()
        self.numbers: dict[tuple[str, str, str, int], float] = {}  # (stage, name, condition, step)
        if console.is_terminal:
            self.bars = Progress(
                TextColumn("{task.description:<14}"),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[numbers]}"),
                console=console,
                transient=True,
            )

    def __enter__(self) -> Self:
        if self.bars:
            self.bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bars:
            self.bars.stop()

    def draw(self, event: Event) -> None:
        """Show one event."""
        if isinstance(event, record.Progress):
            self._advance(event)
        elif isinstance(event, Note):
            self._say(f"[yellow]note[/]  {escape(event.text)}")
        elif isinstance(event, Measurement):
            self.numbers[event.stage, event.name, event.condition, event.step] = event.value
            if event.step and event.name == "seconds":  # the last number of an epoch
                self._epoch(event.stage, event.step)

    def stage_done(self, stage: str, seconds: float) -> None:
        """Say in one line what the stage found."""
        line = _SUMMARIES.get(stage, lambda _: "")(self)
        self._say(f"[green]{stage:<10}[/] {line:<56} {seconds:6.1f} s")

    def _say(self, line: str) -> None:
        self.spoke = time.monotonic()
        self.console.print(f"  {line}", highlight=False)

    def last(self, stage: str, name: str, where: str = "") -> float:
        """The value drawn last for this name, under a condition that contains `where`; NaN if none."""
        found = [v for (s, n, c, _), v in self.numbers.items() if (s, n) == (stage, name) and where in c]
        return next((value for value in reversed(found) if not math.isnan(value)), math.nan)

    def _advance(self, event: record.Progress) -> None:
        numbers = "  ".join(
            form.format(event.numbers[key]) for key, form in _UNITS.items() if key in event.numbers
        )
        if not self.bars:
            if time.monotonic() > self.spoke + QUIET_S:
                self._say(f"{event.text} {event.done}/{event.total}  {numbers}")
            return
        if self.task is None or self.text != event.text:
            if self.task is not None:
                self.bars.remove_task(self.task)
            self.task, self.text = self.bars.add_task(event.text, total=event.total, numbers=""), event.text
        self.bars.update(self.task, completed=event.done, numbers=numbers)

    def _epoch(self, stage: str, epoch: int) -> None:
        find = {(n, c): v for (s, n, c, step), v in self.numbers.items() if (s, step) == (stage, epoch)}
        scores = "  ".join(
            f"{_SCORES[name]}{'' if where == 'weights=plain' else ' (EMA)'} {value:5.2f} %"
            for (name, where), value in find.items()
            if name in _SCORES
        )
        self._say(
            f"epoch {epoch:<3} loss {find['loss', '']:.3f}  {scores}  "
            f"{find['images_per_second', '']:,.0f} images/s  {find['seconds', '']:.0f} s"
        )


_SCORES = {"top1": "val top-1", "box_ap": "box AP", "mask_ap": "mask AP"}  # of an epoch


def _build(drawer: Drawer) -> str:
    parameters, macs = drawer.last("build", "parameters"), drawer.last("build", "macs")
    return f"{tables.amount(parameters)} parameters, {tables.macs(macs)} MACs"


def _train(drawer: Drawer) -> str:
    loss = drawer.last("train", "loss")
    return f"last loss {loss:.3f}" if loss == loss else ""  # NaN: every epoch was trained before


def _eval(drawer: Drawer) -> str:
    parts = []
    for kind, label in (("plain", "top-1"), ("ema", "EMA top-1")):
        value = drawer.last("eval", "top1", f"weights={kind}")
        if value == value:  # not NaN: these weights exist
            parts.append(
                f"{label} {value:.2f} %, top-5 {drawer.last('eval', 'top5', f'weights={kind}'):.2f} %"
            )
    return "; ".join(parts)


def _detect(drawer: Drawer) -> str:
    parts = []
    for kind, of in (("plain", ""), ("ema", "EMA ")):
        for what in ("box", "mask"):
            ap, ap50 = (drawer.last("detect", f"{what}_{name}", f"weights={kind}") for name in ("ap", "ap50"))
            if ap == ap:  # not NaN: there are such weights, and such objects
                parts.append(f"{of}{what} AP {ap:.1f} % (AP50 {ap50:.1f} %)")
    return ", ".join(parts)


def _profile(drawer: Drawer) -> str:
    latency, throughput = drawer.last("profile", "latency"), drawer.last("profile", "best_throughput")
    batch = drawer.last("profile", "best_batch")
    cost = drawer.last("profile", "mixer_cost", f"batch={batch:.0f},")
    parts = {
        f"latency {latency:.3g} ms": latency,
        f"{throughput:,.0f} images/s at batch {batch:.0f}": throughput,
        f"{cost:.2f}x the identity's time": cost,
    }
    return ", ".join(text for text, value in parts.items() if not math.isnan(value))


def _erf(drawer: Drawer) -> str:
    found: dict[str, str] = {}  # by size, of the run's own weights; the last level comes last
    for (stage, name, where, _), side in drawer.numbers.items():
        if (stage, name) == ("erf", "side") and ",share=50," in where and not math.isnan(side):
            parts = dict(part.split("=") for part in where.split(","))
            if parts["weights"] != "random":
                found[parts["size"]] = f"{side:.0f} px of level {parts['level']} at {parts['size']} px"
    return "half the field: " + ", ".join(found.values()) if found else ""


def _robustness(drawer: Drawer) -> str:
    sets = {"V2": "v2", "A": "a", "R": "r", "Sketch": "sketch"}
    found = {title: drawer.last("robustness", "top1", f"set={name},") for title, name in sets.items()}
    found["mCE"] = drawer.last("robustness", "mce")
    return ", ".join(f"{title} {value:.1f} %" for title, value in found.items() if not math.isnan(value))


def _invariance(drawer: Drawer) -> str:
    areas = {
        where: value
        for (stage, name, where, _), value in drawer.numbers.items()
        if (stage, name) == ("invariance", "auc.top1") and "protocol=invariance/1," in where
    }
    titles = {"translation": "translation", "rotation_before": "rotation", "scale": "scale"}
    parts = [
        f"{title} {100 * value:.0f} %"
        for transform, title in titles.items()
        for where, value in areas.items()
        if f"transform={transform}," in where and not math.isnan(value)
    ]
    return "top-1 kept: " + ", ".join(parts) if parts else ""


def _probe(drawer: Drawer) -> str:
    found = {
        title: drawer.last("probe", "top1", f"probe={name},")
        for title, name in (("linear", "linear"), ("nearest neighbours", "knn"))
    }
    return ", ".join(f"{title} {value:.2f} %" for title, value in found.items() if not math.isnan(value))


_SUMMARIES = {
    "build": _build,
    "train": _train,
    "eval": _eval,
    "detect": _detect,
    "profile": _profile,
    "erf": _erf,
    "invariance": _invariance,
    "robustness": _robustness,
    "probe": _probe,
}
