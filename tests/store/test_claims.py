"""Claims: of all who want the same run one gets it, in any database, and what is there is not made again."""

import dataclasses
import threading

import pytest

from stmbench.store import NewRun, Store, open_store
from stmbench.store.claims import claim, stage_times
from stmbench.store.records import State


@pytest.fixture
def new(new_run: NewRun) -> NewRun:
    return dataclasses.replace(new_run, fingerprint="f" * 64)


def test_a_run_nobody_has_is_made(store: Store, new: NewRun) -> None:
    run, mine = claim(store, new)
    assert (mine, run.state, run.fingerprint) == (True, "running", new.fingerprint)
    other, mine = claim(store, dataclasses.replace(new, fingerprint="e" * 64))
    assert mine
    assert other.id != run.id


@pytest.mark.parametrize(
    ("state", "retry", "mine"),
    [
        ("running", True, False),
        ("done", True, False),
        ("interrupted", False, True),
        ("failed", False, False),
        ("failed", True, True),
    ],
)
def test_a_run_that_is_there_is_taken_over_only_where_it_goes_on(
    store: Store, new: NewRun, state: State, retry: bool, mine: bool
) -> None:
    first, _ = claim(store, new)
    if state != "running":
        store.end_run(first.id, state, "why")
    again = claim(store, new, retry=retry)
    assert (again[0].id, again[1]) == (first.id, mine)
    assert store.run(first.id).state == ("running" if mine else state)
    assert len(store.runs()) == 1


def test_a_run_with_fewer_stages_or_of_other_hardware_or_lost_is_not_gone_on_with(
    store: Store, new: NewRun
) -> None:
    first, _ = claim(store, new)
    store.end_run(first.id, "interrupted")
    lost = []
    for wanted in (
        dataclasses.replace(new, stages=[*new.stages, "erf"]),
        dataclasses.replace(new, hardware="Another CPU"),
    ):
        run, mine = claim(store, wanted)
        assert (mine, run.id == first.id) == (True, False)
        store.end_run(run.id, "interrupted")
        lost.append(run.id)
    fewer, mine = claim(store, dataclasses.replace(new, stages=["build"]), lost=lost)
    assert (fewer.id, mine) == (first.id, True)
    store.end_run(first.id, "interrupted")
    again, mine = claim(store, new, lost=[first.id, *lost])
    assert (mine, again.id in {first.id, *lost}) == (True, False)


def test_what_is_furthest_stands_for_all(store: Store, new: NewRun) -> None:
    states: list[State] = ["failed", "done", "interrupted"]
    runs = [store.create_run(new) for _ in states]
    for run, state in zip(runs, states, strict=True):
        store.end_run(run.id, state)
    assert claim(store, new)[0].id == runs[1].id


def test_times_of_stages_come_with_what_they_are_known_by(store: Store, new: NewRun) -> None:
    values = {"schedule": {"epochs": 7}}
    for name in ("quick", "other"):
        run = store.create_run(dataclasses.replace(new, recipe_name=name, recipe_values=values))
        for stage in ("build", "train", "eval"):
            store.start_stage(run.id, stage)
        store.end_stage(run.id, "build")
        store.end_stage(run.id, "train", "failed")
    (time,) = stage_times(store, ["quick"])
    assert (time.mixer, time.recipe_name, time.epochs, time.stage) == ("halo", "quick", 7, "build")
    assert 0 <= time.seconds < 60
    assert len(stage_times(store, ["quick", "other", "none"])) == 2


def test_of_many_who_claim_at_once_one_gets_it(url: str, new: NewRun) -> None:
    open_store(url).close()
    gate = threading.Barrier(8)
    got: list[bool] = []

    def claims() -> None:
        with open_store(url) as store:
            gate.wait(60)
            got.append(claim(store, new)[1])

    threads = [threading.Thread(target=claims) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(got) == [False] * 7 + [True]
    with open_store(url) as store:
        assert len(store.runs()) == 1
