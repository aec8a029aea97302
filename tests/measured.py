"""Finished runs with chosen numbers, for tests of what is read out of many."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from stmbench.record import Measurement
from stmbench.store import NewRun, Store

TOP1 = "eval.top1@weights=plain"
IMAGES = "eval.images@weights=plain"


def add(
    store: Store,
    new: NewRun,
    numbers: Mapping[str, float],
    units: Mapping[str, str] | None = None,
    state: Any = "done",
    **fields: Any,
) -> str:
    """A run that measured ``{"stage.name@condition": value}``, in `units` by name; returns its id."""
    run = store.create_run(dataclasses.replace(new, **fields))
    for text, value in numbers.items():
        name, _, condition = text.partition("@")
        stage, _, name = name.partition(".")
        store.record(run.id, Measurement(stage, name, value, (units or {}).get(name, ""), condition))
    store.end_run(run.id, state)
    return run.id
