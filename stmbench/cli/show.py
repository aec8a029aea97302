"""`stmbench show`: the whole story of one run. It imports no torch."""

import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console, ConsoleOptions, RenderResult
from rich.markup import escape
from rich.table import Table

from stmbench.cli import layout
from stmbench.cli.numbers import told
from stmbench.cli.options import DEFAULT, Database

if TYPE_CHECKING:
    from stmbench.record import Measurement
    from stmbench.store import RunRecord, Store

_WIDEST = 60  # bars in a curve
_SCORES = re.compile(r"top\d")  # curves of which the most is the best
_LOSSES = re.compile(r"(val )?loss")  # and those of which the least is


def show(
    run: Annotated[str, typer.Argument(help="The run's id, or enough of its beginning to be the only one.")],
    epochs: Annotated[bool, typer.Option("--epochs", help="Every epoch's numbers below the curves.")] = False,
    db: Database = DEFAULT,
) -> None:
    """Tell the whole story of a run: what, with what, stages, curves, numbers and files."""
    from stmbench.store import open_store

    with open_store(db, create=False) as store:
        record = store.run(run)
        measurements = store.measurements(record.id)
        curves = _curves(measurements)
        parts = [_facts(record), _stages(store, record), _Curves(curves) if curves else None]
        parts += [_epochs(curves) if epochs else None, *told(measurements), _files(store, record)]
    layout.print_parts(*parts)


def _facts(run: "RunRecord") -> Table:
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold")
    reason = f": {run.reason}" if run.reason else ""
    code = run.git_commit[:12] + (" with uncommitted changes" if run.git_dirty else "")
    facts = {
        "run": run.id,
        "state": run.state + reason,
        "network": f"{run.mixer} {run.scale}".rstrip(),
        "design": "" if run.design == "unified" else run.design,
        "weights": f"{run.weights} (sha256 {run.weights_sha256[:12]})" if run.weights else "",
        "recipe": f"{run.recipe_name} ({run.recipe_digest})",
        "overrides": ", ".join(run.overrides),
        "backend": f"{run.backend}, forced" if run.backend else "",
        "images": ", ".join(f"{key} {value}" for key, value in run.preprocessing.items()),
        "data": f"{run.data_name} ({run.data_fingerprint[:12]})",
        "seed": str(run.seed),
        "device": f"{run.hardware} [{run.device}], {run.precision}, {run.threads} threads",
        "started": f"{run.created.astimezone():%Y-%m-%d %H:%M:%S %Z} on {run.host}, process {run.pid}",
        "command": " ".join(run.argv),
        "code": code,
        "versions": ", ".join(f"{name} {version}" for name, version in run.versions.items()),
        "folder": str(run.folder),
    }
    for name, value in facts.items():
        if value:
            table.add_row(name, escape(value))
    return table


def _stages(store: "Store", run: "RunRecord") -> Table | None:
    stages = store.stages(run.id)
    reason = ["reason"] * any(stage.reason for stage in stages)
    table = layout.table("stage", "state", "started", "took", *reason, right=("took",), wrap=("reason",))
    for stage in stages:
        took = layout.duration(stage.ended - stage.started) if stage.ended else ""
        started = f"{stage.started.astimezone():%H:%M:%S}"
        table.add_row(
            stage.name, layout.state(stage.state), started, took, *[escape(stage.reason)] * len(reason)
        )
    return table if table.row_count else None


_Curve = Mapping[int, float]  # by epoch


def _curves(measurements: "Sequence[Measurement]") -> dict[str, _Curve]:
    """What was measured at every epoch, by its name and condition."""
    curves: defaultdict[str, dict[int, float]] = defaultdict(dict)
    for m in measurements:
        if m.step:
            under = " ".join(part.partition("=")[2] for part in m.condition.split(","))
            curves[f"{m.name} {under}".strip().replace("_", " ")][m.step] = m.value
    return {name: dict(sorted(curve.items())) for name, curve in curves.items()}


class _Curves:
    """A line per curve: as many bars as there is room for, and its first, best and last number."""

    def __init__(self, curves: Mapping[str, _Curve]) -> None:
        self.curves = curves

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        steps = [step for curve in self.curves.values() for step in curve]
        epochs = f"epochs {layout.DASH.join(dict.fromkeys((str(min(steps)), str(max(steps)))))}"
        numbers = ("first", "best", "epoch", "last")
        rows = {name: _told(name, curve) for name, curve in self.curves.items()}
        taken = max(map(len, rows)) + 2
        taken += sum(
            2 + max(len(head), *map(len, cells)) for head, *cells in zip(numbers, *rows.values(), strict=True)
        )
        room = max(len(epochs), min(_WIDEST, options.max_width - taken))
        table = layout.table("curve", epochs, *numbers, right=numbers, wrap=("curve",))
        for name, curve in self.curves.items():
            values = list(curve.values())
            least = (
                min(values) if _best(name) else None
            )  # of a score, what changed; of a rate, how much it is
            table.add_row(escape(name), layout.sparkline(values, least=least, width=room), *rows[name])
        yield table


def _best(name: str) -> Callable[[Sequence[float]], float] | None:
    return max if _SCORES.match(name) else min if _LOSSES.match(name) else None


def _told(name: str, curve: _Curve) -> tuple[str, str, str, str]:
    values, best = list(curve.values()), _best(name)
    found = [value for value in values if value == value]  # less those that are no number
    most = best(found) if best and found else None
    where = "" if most is None else next(str(step) for step, value in curve.items() if value == most)
    text = "" if most is None else layout.value(most)
    return layout.value(values[0]), text, where, layout.value(values[-1])


def _epochs(curves: Mapping[str, _Curve]) -> Table | None:
    """One line per epoch, one column per curve."""
    table = layout.table("epoch", *curves, right=("epoch", *curves), wrap=tuple(curves))
    for epoch in sorted({step for curve in curves.values() for step in curve}):
        cells = (layout.value(curve[epoch]) if epoch in curve else "" for curve in curves.values())
        table.add_row(str(epoch), *cells)
    return table if table.row_count else None


def _files(store: "Store", run: "RunRecord") -> Table | None:
    table = layout.table(
        "file", "kind", "condition", "size", "sha256", right=("size",), wrap=("file", "condition")
    )
    for file in store.artifacts(run.id):
        size = f"{file.bytes / 1e6:.2f} MB"
        table.add_row(escape(str(file.path)), file.kind, escape(file.condition), size, file.sha256[:12])
    return table if table.row_count else None
