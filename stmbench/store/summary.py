"""The few numbers of a finished run that leaderboards read, put together once, when it ends.

A leaderboard over 100,000 runs cannot read their five million measurements; it reads one row of `summary` for
each way in which a run was timed (fp32 and bf16, eager and compiled), or a single one if it was not timed.
The rows hold nothing that is not in the other tables: `Store.refresh_summaries` makes them again.

Top-1 is that of the EMA weights wherever a run keeps them: the recipe decides it, never the result.
Throughput is that of the best batch of the sweep. Whichever backend was the fastest keeps no times apart.
"""

import hashlib
import json
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

from stmbench.record import Measurement, without
from stmbench.store.records import RunRecord, Summary

NUMBERS = {
    ("build", "parameters"): "parameters",
    ("build", "macs"): "macs",
    ("profile", "latency"): "latency",
    ("profile", "best_throughput"): "throughput",
    ("profile", "disturbed"): "disturbed",
    ("eval", "top1"): "top1",
    ("eval", "images"): "images",
}
ALONE = (("probe", "top1"), ("detect", "box_ap"))  # no numbers of a row, but a run that has one is a row
NETWORK = ("mixer", "scale", "design", "weights", "weights_sha256", "preprocessing", "backend")
"""Columns of a run that name its network: weights that are fed otherwise answer otherwise."""
PROTOCOL = (
    "recipe_name",
    "recipe_digest",
    "data_name",
    "data_fingerprint",
    "device",
    "hardware",
    "precision",
)
"""Columns that runs must share before any of their numbers are compared."""


def summaries(run: RunRecord, measurements: Sequence[Measurement]) -> Iterator[Summary]:
    """One row for each way the run was timed in, in the order of the measurements; one if it was not."""
    kinds = {m.condition for m in measurements if m.stage == "eval"}
    headline = "weights=ema" if "weights=ema" in kinds else "weights=plain"
    fixed: dict[str, float] = {}
    timed: defaultdict[str, dict[str, float]] = defaultdict(dict)
    conditions: defaultdict[str, dict[str, str]] = defaultdict(dict)
    for m in measurements:
        name = NUMBERS.get((m.stage, m.name))
        if name is None or m.step or math.isnan(m.value) or (m.stage == "eval" and m.condition != headline):
            continue
        if m.stage != "profile":
            fixed[name] = m.value
            continue
        way = without(m.condition, "backend", "batch", "batches")
        timed[way][name] = max(m.value, timed[way].get(name, 0.0))  # disturbed at any batch is disturbed
        if name in ("latency", "throughput"):
            conditions[way][name] = without(m.condition, "backend")
    for way, found in conditions.items():
        yield _summary(run, found, fixed | timed[way])
    if not conditions and (fixed or any((m.stage, m.name) in ALONE for m in measurements)):
        yield _summary(run, {}, fixed)


def _summary(run: RunRecord, conditions: dict[str, str], values: dict[str, float]) -> Summary:
    return Summary(
        run=run.id,
        network=digest(run, NETWORK),
        protocol=digest(run, PROTOCOL),
        seed=run.seed,
        latency_condition=conditions.get("latency", ""),
        throughput_condition=conditions.get("throughput", ""),
        **{name: values.get(name) for name in NUMBERS.values()},
    )


def digest(run: RunRecord, columns: Sequence[str]) -> str:
    """Sixteen hexadecimal digits that tell runs apart by these of their columns."""
    values: list[Any] = [getattr(run, column) for column in columns]
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]
