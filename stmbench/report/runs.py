"""Every run, whatever became of it: a row in a table, and a page with the evidence of how it was made."""

import shlex
from collections.abc import Sequence
from datetime import UTC, datetime
from html import escape
from typing import Any

from stmbench import catalog
from stmbench.reading import tables
from stmbench.reading.differences import settings_of
from stmbench.reading.readable import duration
from stmbench.record import Measurement, condition
from stmbench.report.charts import CURVES, history
from stmbench.report.looks import Looks
from stmbench.report.markup import Pool, attributes, header, moment, rounded, section, table
from stmbench.store import RunRecord, Store
from stmbench.store.records import ArtifactRecord, StageRecord

_STARTED = "started (UTC)"
_COLUMNS = ("run", "state", "recipe", "data", "seed", "device", _STARTED, "took")
_NUMBERS = ("seed", "took")
_ENDS = (".low", ".high")  # of a number's interval


class Pages:
    """What the browser unfolds a run's page from, with what many runs share in pools."""

    def __init__(self, store: Store, looks: Looks, histories: Pool) -> None:
        self._store, self._looks, self._histories = store, looks, histories
        self.pools = {"recipes": Pool(), "versions": Pool(), "shapes": Pool(), "histories": histories}

    def page(self, run: RunRecord) -> dict[str, Any]:
        measurements = self._store.measurements(run.id)
        final = [m for m in measurements if m.step == 0]
        return {
            "id": run.id,
            "name": f"{tables.network(run)} {run.scale}".rstrip(),
            "look": self._looks.of(run),
            "state": run.state,
            "reason": run.reason,
            "recipe": self.pools["recipes"].place([list(each) for each in settings_of(run)]),
            "overrides": list(run.overrides),
            "facts": _facts(run),
            "environment": _environment(run),
            "versions": self.pools["versions"].place(dict(run.versions)),
            "commands": {
                "again, with the outcomes compared": f"stmbench reproduce {run.id}",
                "this run alone": command(run),
                "as it was called": shlex.join(run.argv),
            },
            "stages": [_stage(stage) for stage in self._store.stages(run.id)],
            "files": [_file(file) for file in self._store.artifacts(run.id)],
            "history": self._history(measurements),
            **self._numbers(final),
        }

    def _history(self, measurements: Sequence[Measurement]) -> int | None:
        """Of the EMA weights wherever there are some, as in `stmbench plot curves`."""
        ema = condition(weights="ema")
        points = [m for m in measurements if m.stage == "train" and m.step]
        at = ema if any(m.condition == ema for m in points) else condition(weights="plain")
        found: dict[str, dict[int, float]] = {name: {} for name in CURVES}
        for m in points:
            if m.name in CURVES and m.condition in ("", at):
                found[m.name][m.step] = m.value
        return self._histories.place(history(found)) if any(found.values()) else None

    def _numbers(self, final: Sequence[Measurement]) -> dict[str, Any]:
        """Value, low and high of each, with None where there is none; the shape says of what they are."""
        there = {(m.stage, m.name, m.condition): m for m in final}
        shape, values, reasons = [], [], {}
        for (stage, name, at), m in there.items():
            stem, dot, end = name.rpartition(".")
            if dot + end in _ENDS and (stage, stem, at) in there:
                continue
            if m.reason:
                reasons[str(len(shape))] = m.reason
            ends = (there.get((stage, name + end, at)) for end in _ENDS)
            shape.append([stage, name, m.unit, at])
            values.append([rounded(m.value), *(rounded(end and end.value) for end in ends)])
        short = [value if value[1] is not None else value[0] for value in values]  # most have no interval
        return {"shape": self.pools["shapes"].place(shape), "values": short, "reasons": reasons}


def _facts(run: RunRecord) -> list[tuple[str, str]]:
    facts = {
        "network": f"{run.mixer} {run.scale}".rstrip(),
        "design": run.design,
        "weights": f"{run.weights}, sha256 {run.weights_sha256}" if run.weights else "",
        "backend": f"{run.backend}, forced" if run.backend else "",
        "images": ", ".join(f"{key} {value}" for key, value in run.preprocessing.items()),
        "data": f"{run.data_name}, fingerprint {run.data_fingerprint}",
        "data source": run.data_source,
        "recipe": f"{run.recipe_name}, digest {run.recipe_digest}",
        "seed": str(run.seed),
        "precision": run.precision,
        "stages": ", ".join(run.stages),
        "fingerprint": run.fingerprint,
    }
    return [(name, value) for name, value in facts.items() if value]


def _environment(run: RunRecord) -> list[tuple[str, str]]:
    dirty = ", with uncommitted changes" if run.git_dirty else ""
    facts = {
        "hardware": f"{run.hardware} [{run.device}]",
        "threads": str(run.threads),
        "stmbench's commit": run.git_commit + dirty if run.git_commit else "not from a checkout",
        "machine": f"{run.host}, process {run.pid}",
        "started": f"{run.created:%Y-%m-%d %H:%M:%S} UTC",
        "last change": f"{run.updated:%Y-%m-%d %H:%M:%S} UTC",
        "folder": str(run.folder),
    }
    return list(facts.items())


def _stage(stage: StageRecord) -> list[str]:
    took = duration(stage.ended - stage.started) if stage.ended else ""
    return [stage.name, stage.state, f"{stage.started:%Y-%m-%d %H:%M:%S}", took, stage.reason]


def _file(file: ArtifactRecord) -> list[Any]:
    return [file.path.as_posix(), file.kind, file.condition, file.bytes, file.sha256]


def command(run: RunRecord) -> str:
    """The `stmbench run` that makes this run, and no other, again."""
    network = ["--mixer", run.mixer, "--scale", run.scale]
    if run.mixer.startswith(catalog.TIMM):
        network = ["--model", run.mixer]
    words = ["stmbench", "run", *network, "--stage", ",".join(run.stages), "--recipe", _recipe(run)]
    words += ["--seed", str(run.seed), "--data", run.data_source, "--device", run.device]
    words += ["--weights", run.weights] * bool(run.weights) + ["--backend", run.backend] * bool(run.backend)
    words += ["--design", run.design] * (run.design not in ("", "unified"))
    return shlex.join([*words, *(word for override in run.overrides for word in ("--set", override))])


def _recipe(run: RunRecord) -> str:
    """As it was given: a file's path is not its name."""
    given = dict(zip(run.argv, run.argv[1:], strict=False))
    given |= {name: value for name, _, value in (word.partition("=") for word in run.argv) if value}
    return given.get("--recipe", run.recipe_name)


# The section


def listing(runs: Sequence[RunRecord], looks: Looks) -> str:
    """The section: every run, newest first, and why it failed if it did."""
    reasons = any(run.reason for run in runs)
    heads = [
        header(
            name,
            numeric=name in _NUMBERS,
            first="descending" if name == _STARTED else "ascending",
            now="descending" if name == _STARTED else "none",
        )
        for name in _COLUMNS
    ]
    heads += ['<th scope="col">reason</th>'] * reasons
    counts = {
        state: sum(run.state == state for run in runs) for state in dict.fromkeys(r.state for r in runs)
    }
    caption = ", ".join(f"{count:,} {state}" for state, count in counts.items())
    rows = [_row(run, looks, reasons) for run in runs]
    lead = (
        "Every run, newest first. Its page has the evidence of how it was made, and the command to repeat it."
    )
    return section("runs", "Runs", lead, table(caption, heads, rows, id="listing", class_="listing"))


def _row(run: RunRecord, looks: Looks, reasons: bool) -> str:
    took = (datetime.now(UTC) if run.state == "running" else run.updated) - run.created
    cells = {
        "state": (None, f'<span class="state {run.state}">{run.state}</span>'),
        "recipe": (None, f"{escape(run.recipe_name)} <small>{escape(run.recipe_digest)}</small>"),
        "data": (None, escape(run.data_name)),
        "seed": (run.seed, str(run.seed)),
        "device": (None, escape(run.device)),
        _STARTED: (run.created.timestamp(), moment(run.created)),
        "took": (took.total_seconds(), duration(took)),
    }
    known = attributes(data_mixer=run.mixer, data_scale=run.scale, data_recipe=run.recipe_name)
    link = f'<a href="#run={escape(run.id)}">{escape(run.id)}</a>'
    parts = [f'<th scope="row">{looks.mark(run)}{link}</th>']
    for name, (value, text) in cells.items():
        kind = attributes(data_value=value, class_="number" if name in _NUMBERS else None)
        parts.append(f"<td{kind}>{text}</td>")
    parts += [f'<td class="reason">{escape(run.reason)}</td>'] * reasons
    return f"<tr{known}>{''.join(parts)}</tr>"
