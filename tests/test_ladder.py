"""The ladder: which runs it takes, and what each of its steps is said to have brought."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import evaluated
import numpy as np
import pytest

from stmbench import ladder
from stmbench.reading import leaderboard, tables
from stmbench.record import Measurement
from stmbench.store import NewRun, Store, open_store

IMAGES = 1000
SCORES = {"original": (800, 805), "stem": (802, 807), "unified": (880, 885)}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with open_store(str(tmp_path / "results.db")) as store:
        yield store


@pytest.fixture
def rungs(store: Store, new_run: NewRun) -> list[tuple[str, list[str]]]:
    """Finished runs of three rungs, two seeds each, of which only the last step makes a difference."""
    found = []
    for design, scores in SCORES.items():
        runs = []
        for seed, right in enumerate(scores):
            new = dataclasses.replace(new_run, mixer="swin", design=design, seed=seed)
            runs.append(evaluated.add(store, new, np.arange(IMAGES) < right))
            macs = 7e8 if design == "unified" else 6e8
            store.record(runs[-1], Measurement("build", "macs", macs, "MACs", "height=28,width=28"))
        store.refresh_summaries(runs)
        found.append((design, runs))
    return found


def test_each_step_is_held_against_the_rung_before(store: Store, rungs: Any) -> None:
    first, stem, last = ladder.steps(store, rungs)
    assert (first.name, first.test, first.verdict, first.runs) == ("original", None, None, tuple(rungs[0][1]))
    assert stem.test
    assert stem.test.value == pytest.approx(0.2)
    assert (stem.verdict, last.verdict) == ("inconclusive", "better")
    assert last.test
    assert last.test.value == pytest.approx(7.8)
    assert [step.costs["MACs"].value for step in (first, stem, last)] == [6e8, 6e8, 7e8]
    assert [step.costs["MACs"].ratio for step in (first, stem, last)] == [None, 1.0, pytest.approx(7 / 6)]
    assert [step.top1 for step in (first, last)] == [(80.0, 80.5), (88.0, 88.5)]


def test_the_p_values_are_corrected_for_their_number(store: Store, rungs: Any) -> None:
    _, stem, last = ladder.steps(store, rungs)
    assert last.test
    assert last.corrected
    assert last.corrected.p == pytest.approx(2 * last.test.p)
    assert stem.corrected
    assert stem.corrected.level == 0.05


def test_another_recipe_is_a_step_of_its_own_and_no_part_of_another(store: Store, new_run: NewRun) -> None:
    def rung(recipe: str, right: int, data: str = new_run.data_fingerprint) -> list[str]:
        new = dataclasses.replace(new_run, mixer="swin", recipe_digest=recipe, data_fingerprint=data)
        return [evaluated.add(store, new, np.arange(IMAGES) < right)]

    own, fair, elsewhere = rung("a" * 12, 800), rung("b" * 12, 850), rung("b" * 12, 850, "f" * 16)
    _, step = ladder.steps(store, [("unified", own), (ladder.RECIPE, fair)])
    assert step.test
    assert (step.test.value, step.verdict) == (pytest.approx(5), "better")
    with pytest.raises(ValueError, match="followed another recipe"):
        ladder.steps(store, [("block", own), ("unified", fair)])
    with pytest.raises(ValueError, match="is of other data"):
        ladder.steps(store, [("unified", own), (ladder.RECIPE, elsewhere)])


def test_designs_are_networks_of_their_own(store: Store, rungs: Any) -> None:
    [group] = leaderboard.rank(store)
    assert {(tables.network(row), row.seeds) for row in group.rows} == {
        ("swin", 2),
        ("swin@original", 2),
        ("swin@stem", 2),
    }
    assert all(run.startswith("swin-original-micro-") for run in rungs[0][1])


def _options(tiny_recipe_file: Path, tiny_data: Path) -> dict[str, Any]:
    return {
        "scale": None,
        "recipe_name": str(tiny_recipe_file),
        "overrides": [],
        "stage": "build,train,eval",
        "data": str(tiny_data),
        "device": "cpu",
    }


def test_every_rung_is_asked_for_with_every_seed(tiny_recipe_file: Path, tiny_data: Path) -> None:
    asked = ladder.requests("pvt", "0,3,0", **_options(tiny_recipe_file, tiny_data))
    designs = ("original", "depths", "stem", "downsampling", "block", "head", "unified")
    assert [(each.mixers, each.design, each.seed) for _, each in asked] == [
        (("sra",), design, seed) for design in designs for seed in (0, 3)
    ]
    assert [name for name, _ in asked[::2]] == [*designs[:-1], "unified (position)"]
    assert len({each.recipe.digest for _, each in asked}) == 1
    swin = ladder.requests("swin", "0", **_options(tiny_recipe_file, tiny_data))
    assert swin[-1][0] == "unified (head)"


def test_the_recipe_is_the_last_step(tiny_recipe_file: Path, tiny_data: Path) -> None:
    own = tiny_recipe_file.with_name("own.toml")
    own.write_text(tiny_recipe_file.read_text().replace("lr = 0.002", "lr = 0.001"))
    options = _options(tiny_recipe_file, tiny_data) | {"overrides": ["train.batch_size=8"]}
    asked = ladder.requests("swin", "0,1", original_recipe=str(own), **options)
    *rungs, (name, last), (_, second) = asked
    assert [(each.recipe.name, each.recipe.optimizer.lr) for _, each in rungs] == [("own", 1e-3)] * len(rungs)
    assert (name, last.design, last.recipe.name, last.recipe.optimizer.lr) == (
        ladder.RECIPE, "unified", "tiny", 2e-3,
    )  # fmt: skip
    assert (last.seed, second.seed, rungs[-1][1].design) == (0, 1, "unified")
    assert {each.recipe.train.batch_size for _, each in asked} == {8}
    assert {(each.info.source, each.scale, each.stages) for _, each in asked} == {
        (last.info.source, last.scale, last.stages)
    }


def test_one_recipe_is_no_step(tiny_recipe_file: Path, tiny_data: Path) -> None:
    copy = tiny_recipe_file.with_name("copy.toml")
    copy.write_text(tiny_recipe_file.read_text())
    with pytest.raises(ValueError, match=r"copy\.toml and --recipe tiny are one protocol"):
        ladder.requests("swin", "0", original_recipe=str(copy), **_options(tiny_recipe_file, tiny_data))


@pytest.mark.parametrize(
    ("mixer", "seeds", "message"),
    [
        ("pool", "0", "pool has no original network"),
        ("swin,sra", "0", "one mixer's"),
        ("timm:resnet18", "0", "one mixer's"),
        ("swin", "0,x", "--seeds takes whole numbers"),
    ],
)
def test_what_is_no_ladder_is_told(
    mixer: str, seeds: str, message: str, tiny_recipe_file: Path, tiny_data: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        ladder.requests(mixer, seeds, **_options(tiny_recipe_file, tiny_data))
