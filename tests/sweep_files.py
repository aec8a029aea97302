"""Sweeps of the tiny recipe on the tiny data, as files and as plans."""

import json
from pathlib import Path
from typing import Any

from stmbench import evidence, plan
from stmbench.store import NewRun
from stmbench.sweep import Item


def write_sweep(folder: Path, recipe: Path, data: Path, /, **values: Any) -> Path:
    """A sweep of dwconv and pool, trained, evaluated and not timed, but for what `values` say."""
    values = {
        "mixers": ["dwconv", "pool"],
        "recipes": [str(recipe)],
        "data": str(data),
        "device": "cpu",
        "stages": ["build", "train", "eval"],
    } | values
    sections = {key: value for key, value in values.items() if isinstance(value, dict)}
    lines = [f"{key} = {json.dumps(value)}" for key, value in values.items() if key not in sections]
    for name, section in sections.items():
        lines += [
            f"[{name}]",
            *(f"{json.dumps(key)} = {json.dumps(value)}" for key, value in section.items()),
        ]
    path = folder / "sweep.toml"
    path.write_text("\n".join(lines))
    return path


def new_run_of(item: Item) -> NewRun:
    """What a worker puts into the database when it starts this run."""
    return evidence.gather(plan.request(**item.asked), item.network)
