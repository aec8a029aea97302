"""Finished runs whose answers are known, for tests of what is said about them."""

import dataclasses
from typing import Any

import numpy as np

from stmbench.record import Artifact, Measurement
from stmbench.stages.evaluate import UNREADABLE, Predictions, save
from stmbench.store import NewRun, Store

CLASSES = 10


def labels_of(count: int) -> np.ndarray:
    return np.arange(count) % CLASSES


def add(
    store: Store,
    new: NewRun,
    hits: Any,
    *,
    labels: np.ndarray | None = None,
    kind: str = "plain",
    top1: float | None = None,
    **fields: Any,
) -> str:
    """A run that was right about these images and wrong about the others; returns its id."""
    run = store.create_run(dataclasses.replace(new, **fields))
    run.folder.mkdir()
    store.start_stage(run.id, "eval")
    answer(store, run.id, hits, labels=labels, kind=kind, top1=top1)
    store.end_run(run.id, "done")
    return run.id


def answer(
    store: Store,
    run_id: str,
    hits: Any,
    *,
    labels: np.ndarray | None = None,
    kind: str = "plain",
    top1: float | None = None,
) -> None:
    """The answers of one kind of weights, as the stage `eval` stores them."""
    run, hits = store.run(run_id), np.asarray(hits, bool)
    labels = labels_of(len(hits)) if labels is None else labels
    best = np.where(hits, labels, (labels + 1) % CLASSES)
    top5 = np.stack([best, *((labels + k) % CLASSES for k in (2, 3, 4, 5))], axis=1)  # (N, 5)
    path = run.folder / f"predictions_{kind}.npz"
    save(path, Predictions(labels, top5, np.zeros(len(hits), np.float32)), CLASSES)
    readable, at = labels != UNREADABLE, f"weights={kind}"
    score = 100 * float(hits[readable].mean()) if top1 is None else top1
    store.record(run_id, Measurement("eval", "top1", score, "%", at))
    store.record(run_id, Measurement("eval", "images", int(readable.sum()), "images", at))
    store.attach(run_id, Artifact("eval", "predictions", path, at), run.folder)


def two(both: int, only_first: int, only_second: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    """The hits of two networks, by how many images they share."""
    counts = (both, only_first, only_second, neither)
    return np.repeat([True, True, False, False], counts), np.repeat([True, False, True, False], counts)
