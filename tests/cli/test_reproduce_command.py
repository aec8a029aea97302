"""`stmbench reproduce`, with real training."""

import re
from collections.abc import Callable

from stmbench.store import open_store

Invoke = Callable[..., tuple[int, str, str]]


def test_a_run_done_again_on_a_cpu_has_identical_weights(invoke: Invoke) -> None:
    invoke("run", "--mixer", "dwconv", "--stage", "build,train,eval", "--seed", "3")
    with open_store("runs/stmbench.db") as store:
        [first] = store.runs()
    code, out, err = invoke("reproduce", first.id)
    assert (code, err) == (0, "")
    assert "Recipe, data, code, libraries and machine are as they were." in out
    assert "trained weights: the same, bit for bit" in out
    assert "test images judged alike, right or wrong: 20 of 20" in out
    assert re.search(r"build +(\d+) +\1 +0 +0\n", out)
    with open_store("runs/stmbench.db") as store:
        second = store.runs()[0]
        assert (second.seed, second.fingerprint, second.id) == (3, first.fingerprint, second.id)
        assert second.id != first.id
    assert out.rstrip().endswith(f"reproduced: {first.id} by {second.id}")
    assert invoke("reproduce", first.id, second.id)[0] == 0


def test_another_outcome_is_told_and_is_a_failure(invoke: Invoke) -> None:
    trains, does_not = ("optimizer.lr=0.004", "--set", "schedule.epochs=10"), ("optimizer.lr=0.0",)
    for overrides in (trains, does_not):
        invoke("run", "--mixer", "dwconv", "--stage", "build,train,eval", "--set", *overrides)
    with open_store("runs/stmbench.db") as store:
        untrained, trained = (run.id for run in store.runs())
    code, out, _ = invoke("reproduce", trained, untrained)
    assert code == 1
    assert "optimizer.lr" in out
    assert "trained weights: others" in out
    assert re.search(r"eval top1 +weights=plain", out)
    assert out.rstrip().endswith(f"not reproduced: {trained} by {untrained}")


def test_an_unknown_run_is_one_line(invoke: Invoke) -> None:
    invoke("run", "--mixer", "dwconv", "--stage", "build")
    code, _, err = invoke("reproduce", "nobody")
    assert (code, err.count("\n")) == (2, 1)
    assert "Unknown run 'nobody'" in err
