"""The page as a whole: which runs are on it, its sections in their order, and what is inlined into it."""

import base64
import hashlib
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from html import escape
from importlib import resources
from string import Template
from typing import Any, TypedDict, Unpack

from stmbench import __version__
from stmbench.pictures.networks import place
from stmbench.reading import leaderboard, selection
from stmbench.report import board, charts, fields, matrix, runs
from stmbench.report.looks import Looks
from stmbench.report.markup import Pool
from stmbench.store import RunRecord, Store

_SCRIPTS = ("tables.js", "drawing.js", "charts.js", "run.js", "page.js")
_FILTERED = {"mixer": "mixer", "scale": "scale", "recipe_name": "recipe"}  # columns, as they are filtered by


class Filters(TypedDict, total=False):
    """Which runs are on the page: names, or several with commas between."""

    mixer: str | None
    scale: str | None
    recipe_name: str | None
    data: str | None
    device: str | None


def make(store: Store, *, every: float | None = None, **filters: Unpack[Filters]) -> str:
    """The whole page, of the runs that pass the filters.

    With `every` it loads itself again after so many seconds.

    Raises:
        ValueError: no such runs, or an unknown filter value.
    """
    groups = leaderboard.rank(store, **filters)
    chosen = _chosen(store, filters)  # after it: a run that has just finished is in both, or here alone
    if not chosen:
        raise ValueError("There are no such runs to report. `stmbench runs` lists every run.")
    finished = [run for run in chosen if run.state == "done"]
    looks, histories = Looks(chosen), Pool()
    receptive, lost = fields.read(store, finished)
    costs, costs_drawn = charts.costs(store, groups, looks)
    training, training_drawn = charts.training(store, finished, looks, histories)
    invariance, sweeps_drawn = charts.sweeps(store, finished, looks)
    sections = [
        board.leaderboard(groups, looks, {run.id: run for run in chosen}),
        costs,
        training,
        fields.receptive(receptive, lost, looks, finished),
        invariance,
        matrix.comparison(matrix.read(store, finished), looks),
        runs.listing(chosen, looks),
    ]
    pages = runs.Pages(store, looks, histories)
    data = {
        "every": every,
        "looks": looks.record(),
        "charts": {"costs": costs_drawn, "training": training_drawn, "sweeps": sweeps_drawn},
        "curves": charts.CURVES,
        "runs": [pages.page(run) for run in chosen],
        "pools": {name: pool.values for name, pool in pages.pools.items()},
    }
    return _filled(chosen, "".join(sections), looks, data)


def _chosen(store: Store, filters: Filters) -> list[RunRecord]:
    """Runs in any state that pass the filters, newest first."""
    runs, names = store.runs(), [filters.get(name) for name in Filters.__annotations__]
    wanted = selection.values(runs, *names)
    return [run for run in runs if selection.passes(run, wanted)]


def _filled(chosen: Sequence[RunRecord], sections: str, looks: Looks, data: dict[str, Any]) -> str:
    """The template with everything in it.

    The browser runs the one script whose digest the page names, and loads nothing.
    """
    script = "\n".join(map(_text, _SCRIPTS))
    script = f'"use strict";\n(() => {{\n{script}\n}})();\n'
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    inlined = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return Template(_text("page.html")).substitute(
        digest=digest,
        style=f"{_text('page.css')}\n{looks.style()}",
        script=script,
        data=inlined.replace("<", "\\u003c"),  # "</script>" in a run's reason would end the element
        sections=sections,
        selects=_selects(chosen),
        summary=escape(_summary(chosen)),
        made=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        version=escape(__version__),
    )


def _text(name: str) -> str:
    return resources.files("stmbench.report").joinpath(name).read_text(encoding="utf-8")


def _selects(chosen: Sequence[RunRecord]) -> str:
    """A choice for each of what the reader may filter by, where there is one."""
    ordered = sorted(chosen, key=place)
    found = []
    for column, name in _FILTERED.items():
        values = list(dict.fromkeys(getattr(run, column) for run in ordered))
        if len(values) > 1:
            options = "".join(f'<option value="{escape(v)}">{escape(v) or "none"}</option>' for v in values)
            options = f'<option value="">all {name}s</option>{options}'
            found.append(f'<label>{name} <select name="{name}">{options}</select></label>')
    return "".join(found)


def _summary(chosen: Sequence[RunRecord]) -> str:
    """What is on the page, in a line."""
    counts = {
        "run": len(chosen),
        "mixer": len({run.mixer for run in chosen}),
        "recipe": len({run.recipe_digest for run in chosen}),
        "data set": len({run.data_fingerprint for run in chosen}),
    }
    return ", ".join(f"{count:,} {name}{'s' * (count != 1)}" for name, count in counts.items())
