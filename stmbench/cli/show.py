"""`stmbench show`: the whole story of one run. It imports no torch."""

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from stmbench.cli import layout
from stmbench.cli.numbers import told
from stmbench.cli.options import DEFAULT, Database

if TYPE_CHECKING:
    from stmbench.record import Measurement
    from stmbench.store import RunRecord, Store

_WORTH_BARS = 3  # epochs


def show(
    run: Annotated[str, typer.Argument(help="The run's id, or enough of its beginning to be the only one.")],
    db: Database = DEFAULT,
) -> None:
    """Tell the whole story of a run: what, with what, stages, numbers, curves and files."""
    from stmbench.store import open_store

    with open_store(db, create=False) as store:
        record = store.run(run)
        measurements = store.measurements(record.id)
        parts = [_facts(record), _stages(store, record), *told(measurements)]
        parts += [_curves(measurements), _files(store, record)]
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
    table = layout.table("stage", "state", "started", "took", "reason", right=("took",), wrap=("reason",))
    for stage in store.stages(run.id):
        took = layout.duration(stage.ended - stage.started) if stage.ended else ""
        started = f"{stage.started.astimezone():%H:%M:%S}"
        table.add_row(stage.name, layout.state(stage.state), started, took, escape(stage.reason))
    return table if table.row_count else None


def _curves(measurements: "Sequence[Measurement]") -> Table | None:
    """One line per epoch, one column per name (and condition) measured at every epoch; bars on top."""
    epochs: dict[int, dict[str, float]] = defaultdict(dict)
    for m in measurements:
        if m.step:
            under = " ".join(part.partition("=")[2] for part in m.condition.split(","))
            epochs[m.step][f"{m.name} {under}".strip().replace("_", " ")] = m.value
    names = list(dict.fromkeys(name for values in epochs.values() for name in values))
    table = layout.table("epoch", *names, right=("epoch", *names), wrap=names)
    if len(epochs) >= _WORTH_BARS:
        points = [[epochs[epoch].get(name, math.nan) for epoch in sorted(epochs)] for name in names]
        table.add_row("all", *(layout.sparkline(values, width=7) for values in points))
    for epoch, values in sorted(epochs.items()):
        table.add_row(str(epoch), *(layout.value(values[name]) if name in values else "" for name in names))
    return table if table.row_count else None


def _files(store: "Store", run: "RunRecord") -> Table | None:
    table = layout.table(
        "file", "kind", "condition", "size", "sha256", right=("size",), wrap=("file", "condition")
    )
    for file in store.artifacts(run.id):
        size = f"{file.bytes / 1e6:.2f} MB"
        table.add_row(escape(str(file.path)), file.kind, escape(file.condition), size, file.sha256[:12])
    return table if table.row_count else None
