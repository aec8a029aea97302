"""One results database for all tests of the report."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
import synthetic
from report_page import HOSTILE, Read

from stmbench.record import Measurement
from stmbench.report import page
from stmbench.store import NewRun, Store, open_store

_TEXTS = ("recipe_name", "data_name", "data_source", "weights", "hardware", "git_commit")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with open_store(str(tmp_path / "results.db")) as store:
        yield store


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory, new_run: NewRun) -> Iterator[Store]:
    """Three mixers, of one two seeds and another scale; one run failed, and one is of another recipe."""
    new = dataclasses.replace(
        new_run,
        stages=("build", "train", "eval", "profile", "erf", "invariance"),
        recipe_values={},
        overrides=(),
        data_source="fashion-mini",
        data_name="fashion-mini",
        argv=("/somewhere/stmbench", "run", "--mixer", "halo,swin,dwconv"),
        git_commit="ab" * 20,
        git_dirty=True,
        versions={"python": "3.12", "torch": "2.6.0"},
    )
    with open_store(str(tmp_path_factory.mktemp("report") / "results.db")) as store:
        synthetic.add(store, new, "halo", level=0.6)
        synthetic.add(store, new, "halo", level=0.7, seed=1)
        synthetic.add(store, new, "swin", level=1.4, cost=2)
        synthetic.add(store, new, "dwconv", level=1.42, cost=1.5)
        synthetic.add(store, new, "halo", scale="tiny", level=2.0, cost=8)
        longer = {"recipe_name": "longer", "recipe_digest": "b" * 12, "overrides": ("schedule.epochs=9",)}
        synthetic.add(store, new, "halo", epochs=9, **longer)
        synthetic.add(store, new, "swin", epochs=9, **longer)
        failed = store.create_run(
            dataclasses.replace(new, mixer="swin", **dict.fromkeys(_TEXTS, HOSTILE), argv=(HOSTILE,))
        )
        store.start_stage(failed.id, "train")
        synthetic.put(store, failed.id, [Measurement("train", "loss", 2.0, step=1)])
        store.end_run(failed.id, "failed", HOSTILE)
        yield store


@pytest.fixture(scope="module")
def html(results: Store) -> str:
    return page.make(results)


@pytest.fixture(scope="module")
def read(html: str) -> Read:
    return Read(html)
