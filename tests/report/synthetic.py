"""Runs that were never made, with all that a real one leaves: answers, curves, times, fields, invariance."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import evaluated
import numpy as np
from sqlalchemy import insert

from stmbench.recipe import Recipe
from stmbench.record import Artifact, Measurement, condition
from stmbench.store import NewRun, RunRecord, Store, tables

IMAGES = 400
_TIMED = {"device": "cpu", "execution": "eager", "precision": "fp32", "protocol": "latency/1", "threads": 2}
_STRENGTHS = {
    "translation": (0, 1, 2, 4, 8),
    "scale": (0.5, 0.85, 1, 1.3, 2),
    "rotation_before": (0, 15, 30, 60),
    "rotation_after": (0, 15, 30, 60),
    "blur": (0, 0.5, 1, 2),
    "noise": (0, 0.1, 0.2),
    "jpeg": (50, 20, 10),
    "contrast": (1, 0.6, 0.2),
    "flip": (0, 1),
}


def add(
    store: Store,
    new: NewRun,
    mixer: str,
    *,
    level: float = 1.0,
    epochs: int = 4,
    side: int = 28,
    cost: float = 1.0,
    **fields: Any,
) -> RunRecord:
    """A finished run; the higher its `level`, the more of the images it gets right."""
    values = Recipe().values()
    values["data"] |= {"image_size": side}
    fields = {"recipe_values": values, "overrides": (), **fields}
    run = store.create_run(dataclasses.replace(new, mixer=mixer, **fields))
    run.folder.mkdir()
    rng = np.random.default_rng([run.seed, *f"{run.mixer} {run.scale}".encode()])
    ease = np.random.default_rng(99).normal(0, 1, IMAGES)  # the same images are easy for all
    for stage in ("build", "train", "eval", "profile", "erf", "invariance"):
        store.start_stage(run.id, stage)
    evaluated.answer(store, run.id, level + ease + rng.normal(0, 0.3, IMAGES) > 0)
    put(store, run.id, [*_built(cost), *_curves(epochs, rng), *_fields(side, rng), *_sweeps(side, rng)])
    maps = rng.random((4, side, side)).astype(np.float32)
    path = run.folder / f"erf_{side}_plain.npz"
    centres = np.full((4, 2), side // 2)
    np.savez(path, maps=maps / maps.sum((1, 2), keepdims=True), centres=centres)
    at = condition(protocol="erf/1", size=side, weights="plain")
    store.attach(run.id, Artifact("erf", "erf", path, at), run.folder)
    store.end_run(run.id, "done")
    return store.run(run.id)


def put(store: Store, run_id: str, measurements: list[Measurement]) -> None:
    """All numbers in one transaction, where a stage would take one for each."""
    rows = [dataclasses.asdict(m) | {"run": run_id} for m in measurements]
    with store._write() as connection:
        connection.execute(insert(tables.measurement), rows)


def _built(cost: float) -> Iterator[Measurement]:
    yield Measurement("build", "parameters", 4e6 * cost)
    yield Measurement("build", "macs", 14e6 * cost, "MACs", condition(height=28, width=28))
    for batch in (1, 64):
        at = condition(batch=batch, **_TIMED)
        yield Measurement("profile", "latency", 3.0 * cost * batch, "ms", at)
        yield Measurement("profile", "base_memory", 7e8, "bytes", at)
        yield Measurement("profile", "peak_memory", 7e8 + 4e7 * cost, "bytes", at)
    yield Measurement(
        "profile", "best_throughput", 4500 / cost, "images/s", condition(batches="1+64", **_TIMED)
    )


def _curves(epochs: int, rng: np.random.Generator) -> Iterator[Measurement]:
    for epoch in range(1, epochs + 1):
        loss = 2 / epoch**0.5 + rng.normal(0, 0.02)
        yield Measurement("train", "loss", loss, step=epoch)
        yield Measurement("train", "val_loss", 1.1 * loss, "", "weights=plain", epoch)
        yield Measurement("train", "top1", 90 - 20 * loss, "%", "weights=plain", epoch)


def _fields(side: int, rng: np.random.Generator) -> Iterator[Measurement]:
    under = {"precision": "fp32", "protocol": "erf/1", "size": side, "weights": "plain"}
    yield Measurement("erf", "images", 100, "images", condition(**under))
    for level in (1, 2, 3, 4):
        for share in (20, 30, 50, 99):
            at = condition(level=level, share=share, **under)
            value = float(level * share // 5 | 1)
            for name, unit in (("side", "px"), ("area", "%")):
                yield Measurement("erf", name, value, unit, at)
                yield Measurement("erf", f"{name}.low", value - 2, unit, at)
                yield Measurement("erf", f"{name}.high", value + rng.integers(3), unit, at)


def _sweeps(side: int, rng: np.random.Generator) -> Iterator[Measurement]:
    under = {"precision": "fp32", "size": side, "weights": "plain"}
    one = under | {"protocol": "invariance/1"}
    yield Measurement("invariance", "images", 500, "images", condition(**one))
    for transform, strengths in _STRENGTHS.items():
        for metric in ("consistency", "top1", "top5"):
            for place, strength in enumerate(strengths):
                at = condition(strength=f"{strength:g}", transform=transform, **one)
                value = 100 * 0.8**place - rng.random()
                for name, end in (("", 0.0), (".low", -3.0), (".high", 1.0)):
                    yield Measurement("invariance", metric + name, value + end, "%", at)
    two = under | {"protocol": "equivariance/1"}
    yield Measurement("invariance", "images", 200, "images", condition(**two))
    for level in (1, 2, 3, 4):
        for shift in (0, 1, 2):
            at = condition(level=level, shift=shift, **two)
            yield Measurement("invariance", "equivariance", 1 - 0.1 * shift * level, "", at)
