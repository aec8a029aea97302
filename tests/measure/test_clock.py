"""Warm-up, sampling, ceilings, and the verdict on a round."""

import gc
from dataclasses import replace
from typing import Any

import pytest
import torch

from stmbench.measure import ceilings, clock, protocol
from stmbench.measure.protocol import Attempt
from stmbench.measure.setting import Rates, Round, Setting

SETTING = Setting(batch=1, shape=(1, 8, 8))


class Watch:
    """A clock whose passes last what they are told to."""

    def __init__(self, seconds: list[float]) -> None:
        self.now, self.passes, self._seconds = 0.0, 0, seconds

    def __call__(self) -> float:
        return self.now

    def once(self) -> None:
        self.now += self._seconds[min(self.passes, len(self._seconds) - 1)]
        self.passes += 1


@pytest.mark.parametrize(
    ("seconds", "settled", "passes"),
    [
        ([0.125], True, 10),  # two windows of five passes
        ([0.0078125], True, 64),  # two windows of a quarter of a second
        ([4.0], False, 3),  # never fewer than three
        ([1.0] * 5 + [0.5], False, 15),  # the first windows' medians are apart, and then ten seconds are over
        ([2.0, *[0.125] * 30], True, 10),  # one slow pass moves no median
    ],
)
def test_warm_up_ends_when_the_running_median_settles(
    monkeypatch: pytest.MonkeyPatch, seconds: list[float], settled: bool, passes: int
) -> None:
    watch = Watch(seconds)
    monkeypatch.setattr(clock.time, "perf_counter", watch)
    found, has_settled = clock.warm_up(watch.once, "cpu")
    assert (has_settled, len(found)) == (settled, passes)
    assert found == [seconds[min(i, len(seconds) - 1)] for i in range(passes)]


def test_each_pass_is_waited_for_and_no_garbage_is_collected(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    monkeypatch.setattr(clock, "waiter", lambda _: lambda: calls.append("wait"))
    seconds, device_seconds = clock.time_passes(lambda: calls.append(f"pass {gc.isenabled()}"), 3, "cpu")
    assert calls == ["wait", *["pass False", "wait"] * 3]
    assert len(seconds) == 3
    assert device_seconds == []
    assert gc.isenabled()


def test_on_cuda_events_are_recorded_around_each_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    class Event:
        def __init__(self, *, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            calls.append("event")

        def elapsed_time(self, _: "Event") -> float:
            return 2.0  # ms

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(clock, "waiter", lambda _: lambda: calls.append("wait"))
    seconds, device_seconds = clock.time_passes(lambda: calls.append("pass"), 2, "cuda")
    assert calls == ["wait", *["event", "pass", "event", "wait"] * 2]
    assert len(seconds) == 2
    assert device_seconds == [0.002, 0.002]


def test_a_ceiling_is_the_best_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ceilings, "SIZE", {"cpu": 64})
    monkeypatch.setattr(ceilings, "COPY", {"cpu": 1 << 16})
    rates = ceilings.Yardstick("cpu", "bf16").rates(0.0)
    assert rates.matmul
    assert 64**3 / 1e-1 < rates.matmul < 1e15
    assert rates.copy
    assert ceilings.best([Rates(None, 2.0), Rates(3.0, 1.0)]) == Rates(3.0, 2.0)
    assert ceilings.best([Rates(None, None)]) == Rates(None, None)


CALM = Round(
    seconds=(1.0,) * 6,
    before={},
    after={},
    others=0.02,
    steal=0.0,
    rates=(Rates(100, 100), Rates(90, 81)),
)
DISTURBED: list[tuple[dict[str, Any], str]] = [
    ({"others": 0.11}, "other processes used 11% of the CPU"),
    ({"steal": 0.06}, "the hypervisor took 6% of the CPU"),
    ({"after": {"gpu_throttled": ["power cap"]}}, "the GPU was throttled after it: power cap"),
    (
        {"before": {"gpu_held_back": {"power": 7.0}}, "after": {"gpu_held_back": {"power": 7.6}}},
        "the GPU was held back by its power for 10% of it",
    ),
    ({"rates": (Rates(79, 100), Rates(90, 90))}, "the matrix product before it reached 79% of the ceiling"),
    ({"rates": (Rates(99, 100), Rates(90, 50))}, "the copy after it reached 50% of the ceiling"),
    ({"seconds": (1.0, 1.0, 1.0, 1.2, 1.2, 1.2)}, "its second half was 20% slower than its first"),
    ({"seconds": (1.0, 1.0, 1.0, 0.8, 0.8, 0.8)}, "its second half was 20% faster than its first"),
]


@pytest.mark.parametrize(("change", "reason"), DISTURBED)
def test_a_disturbed_round_says_by_what(change: dict[str, Any], reason: str) -> None:
    ceiling = Rates(100, 100)
    assert protocol.disturbances(SETTING, CALM, ceiling) == ()
    assert protocol.disturbances(SETTING, replace(CALM, **change), ceiling) == (reason,)


def test_what_is_not_known_disturbs_nothing() -> None:
    taken = replace(CALM, rates=(Rates(None, None), Rates(1, 1)), seconds=(1.0,))
    assert protocol.disturbances(SETTING, taken, Rates(None, None)) == ()
    busy = replace(CALM, others=0.5)  # a GPU's time is not the CPU's
    assert protocol.disturbances(replace(SETTING, device="cuda"), busy, Rates(None, None)) == ()


def test_fewer_samples_are_another_protocol() -> None:
    assert protocol.name(100) == "latency/1"
    assert protocol.name(99) == "latency/1-short"


def test_the_undisturbed_round_is_kept_else_the_fastest() -> None:
    slow, fast, calm = (
        Attempt(setting=SETTING, round=replace(CALM, seconds=(s,)), disturbed=d)
        for s, d in ((3.0, ("x",)), (1.0, ("x",)), (2.0, ()))
    )
    failed = Attempt(setting=SETTING, error="out")
    assert protocol.kept([slow, fast, calm]) is calm
    assert protocol.kept([slow, fast]) is fast
    assert protocol.kept([slow, failed]) is slow
    assert protocol.kept([failed]) is failed
