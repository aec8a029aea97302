"""Databases with runs in them, for tests of what handles whole databases."""

import dataclasses
import math
from pathlib import Path

from sqlalchemy import func, select

from stmbench.record import Artifact, Measurement
from stmbench.store import NewRun, Store, merge, tables
from stmbench.store.rows import WholeRun


def fill(store: Store, new: NewRun, count: int = 3, epochs: int = 3) -> list[str]:
    """So many finished runs with two stages, curves, odd numbers and a file each; returns their ids."""
    made = []
    for seed in range(count):
        run = store.create_run(dataclasses.replace(new, seed=seed, stages=("train", "eval"), threads=2))
        store.start_stage(run.id, "train")
        for step in range(1, epochs + 1):
            store.record(run.id, Measurement("train", "loss", 2.0 / step + seed / 3, step=step))
            store.record(run.id, Measurement("train", "lr", 0.1 * step, step=step))
        store.record(run.id, Measurement("train", "norm", math.nan, reason="no ünit\n"))
        store.record(run.id, Measurement("train", "peak", math.inf, "B"))
        store.end_stage(run.id, "train")
        store.start_stage(run.id, "eval")
        store.record(run.id, Measurement("eval", "top1", 80 + seed / 7, "%", "weights=plain"))
        run.folder.mkdir(parents=True, exist_ok=True)
        (run.folder / "answers.npz").write_bytes(f"answers {seed}".encode())
        store.attach(run.id, Artifact("eval", "answers", run.folder / "answers.npz"), run.folder)
        store.end_stage(run.id, "eval")
        store.end_run(run.id, "done")
        made.append(run.id)
    return made


def counts(store: Store) -> dict[str, int]:
    """How many rows each table has."""
    with store._read() as connection:
        return {
            name: connection.execute(select(func.count()).select_from(table)).scalar_one()
            for name, table in tables.metadata.tables.items()
        }


def content(store: Store) -> dict[str, WholeRun]:
    """Every run, to be compared wherever its files are."""
    return {run.id: dataclasses.replace(run, folder=Path()) for run in merge.runs_of(store)}
