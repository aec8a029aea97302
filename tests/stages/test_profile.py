"""Profiling measures in a process of its own and says under which conditions."""

import os

import pytest
import torch

from stmbench.record import Job, Measurement
from stmbench.stages import profile


def test_each_number_says_what_it_was_measured_under(tiny_job: Job) -> None:
    found = {(e.name, e.condition): e for e in profile.run(tiny_job) if isinstance(e, Measurement)}
    machine = f"size=28,threads={torch.get_num_threads()},torch={torch.__version__.partition('+')[0]}"
    small, large = (f"batch={batch},device=cpu,precision=fp32,{machine}" for batch in (1, 4))
    assert found["latency", small].unit == "ms"
    assert found["throughput", large].unit == "images/s"
    assert ("latency", large) not in found
    assert found["samples", small].value == 5
    memory = found["peak_memory", small].value
    assert 50e6 < memory < 20e9


def test_samples_are_synchronised_calls_after_a_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    monkeypatch.setattr(profile, "WARM_UP_S", 0)
    monkeypatch.setattr(profile.network, "synchronize", lambda _: calls.append("sync"))
    seconds = profile.sample(lambda: calls.append("call"), "cpu", 7)
    assert len(seconds) == 7
    assert calls == ["sync", "call", "sync"] * (3 + 7)


def die(*_: object) -> None:
    os._exit(9)


def test_a_killed_measuring_process_is_out_of_memory(tiny_job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profile, "measure", die)
    with pytest.raises(profile.network.OutOfMemoryError, match=r"killed at batch 1.*profile\.batch_size"):
        list(profile.run(tiny_job))
