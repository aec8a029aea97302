"""A worker measures in a process of its own, and every way of failing is one clear line."""

import contextlib
import copy
import functools
import gc
import os
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import psutil
import pytest
import torch
from networks import Greedy, Hungry, Spy, Tiny, crashed, killed, refused
from torch import nn

from stmbench.measure.ceilings import Limits
from stmbench.measure.process import Child, failure
from stmbench.measure.setting import MemoryFormat, Precision
from stmbench.measure.subject import Subject, adamw, training_step
from stmbench.measure.worker import Setting, Worker, WorkerError, check
from stmbench.recipe import Profile

SETTING = Setting(batch=2, shape=(2, 8, 8))


def test_a_worker_times_passes_and_says_what_the_machine_did() -> None:
    with Worker(Hungry, SETTING) as worker:
        prepared = worker.prepare()
        taken = worker.sample(7)
        again = worker.sample(2, 0.2)
        memory = worker.memory()
    assert prepared.compile_s is None
    assert len(prepared.warm_up) >= 3
    assert len(taken.seconds) == 7
    assert min(taken.seconds) > 0
    assert len(again.seconds) >= 2
    assert sum(again.seconds) > 0.15
    assert taken.device_seconds == ()
    assert taken.before["threads"] == torch.get_num_threads()
    assert taken.before["matmul_tf32"] is False
    assert all(rates.matmul and rates.copy for rates in taken.rates)
    assert 0 <= taken.others <= 1
    assert 200e6 < memory.peak - memory.base < 400e6  # without the calibration's buffers
    assert memory.reserved is None


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_training_step_leaves_the_weights_where_they_are(precision: Precision) -> None:
    model = Tiny()
    before = copy.deepcopy(model.state_dict())
    setting = replace(SETTING, mode="train", precision=precision)
    step = training_step(model, torch.randn(2, 2, 8, 8), setting, adamw)
    step()
    gradients = [parameter.grad for parameter in model.parameters()]
    step()
    assert model.training
    assert all(gradient is not None and gradient.any() for gradient in gradients)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


class Graph:
    """A CUDA graph as far as the host can tell: it replays what it was shown, and owns nothing of it."""

    def replay(self) -> None:
        pass


def _fake_graphs(monkeypatch: pytest.MonkeyPatch, capture: Callable[[object], Any]) -> None:
    class Stream:
        def wait_stream(self, _: object) -> None:
            pass

    for name, fake in {
        "CUDAGraph": Graph,
        "Stream": Stream,
        "current_stream": Stream,
        "stream": lambda _: contextlib.nullcontext(),
        "graph": capture,
    }.items():
        monkeypatch.setattr(torch.cuda, name, fake)


@pytest.mark.parametrize("mode", ["inference", "train"])
def test_what_a_graph_replays_over_is_kept(monkeypatch: pytest.MonkeyPatch, mode: Any) -> None:
    _fake_graphs(monkeypatch, lambda _: contextlib.nullcontext())
    made: list[weakref.ref[nn.Module]] = []

    def make() -> nn.Module:
        model = Tiny()
        made.append(weakref.ref(model))
        return model

    subject = Subject(
        make, replace(SETTING, mode=mode, execution="cudagraph"), adamw, torch.get_num_threads()
    )
    assert subject.prepare().compile_s is not None
    gc.unfreeze()
    gc.collect()
    assert made[0]() is not None


def test_a_failed_capture_tells_its_first_error(monkeypatch: pytest.MonkeyPatch) -> None:
    @contextlib.contextmanager
    def capture(_: object) -> Iterator[None]:
        try:
            yield
        finally:
            raise RuntimeError("CUDA error: operation failed due to a previous error during capture")

    def fail_when_captured(*_: object) -> None:
        calls.append(1)
        if len(calls) > 3:  # the passes before
            refused()

    def make() -> nn.Module:
        model = Tiny()
        model.register_forward_hook(fail_when_captured)
        return model

    calls: list[int] = []
    _fake_graphs(monkeypatch, capture)
    with pytest.raises(WorkerError, match="no such network"):
        Subject(make, replace(SETTING, execution="cudagraph"), adamw, torch.get_num_threads()).prepare()


@pytest.mark.parametrize("memory_format", ["channels_last", "contiguous"])
def test_precision_and_format_reach_the_network(memory_format: MemoryFormat) -> None:
    subject = Subject(
        Spy, replace(SETTING, precision="bf16", memory_format=memory_format), adamw, torch.get_num_threads()
    )
    spy = Spy()
    subject._passes(spy)()
    assert spy.seen == (memory_format == "channels_last", torch.bfloat16, False, True)


FAILURES: list[tuple[Callable[[], nn.Module], str, str]] = [
    (Greedy, "memory", r"Out of memory \(.*allocate"),
    (killed, "memory", "was killed, most likely for its memory"),
    (crashed, "crash", r"ended with code 3: the last words$"),
    (refused, "crash", r"ValueError: no such network$"),
]


@pytest.mark.parametrize(("make", "kind", "line"), FAILURES)
def test_every_failure_is_one_line_of_its_kind(make: Callable[[], nn.Module], kind: str, line: str) -> None:
    with Worker(make, SETTING) as worker, pytest.raises(WorkerError, match=line) as caught:
        worker.prepare()
    assert caught.value.kind == kind
    assert "\n" not in str(caught.value)


def test_what_does_not_compile_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "/no/such/compiler")
    worker = Worker(Tiny, replace(SETTING, execution="compiled"))
    with worker, pytest.raises(WorkerError, match="compiler") as caught:
        worker.prepare()
    assert caught.value.kind == "compile"
    assert "\n" not in str(caught.value)


def test_leaving_a_worker_ends_it_whatever_it_does() -> None:
    with Child(functools.partial(Limits, "cpu", 1)) as child:
        pid = child._process.pid
        child.call("measure", "fp32")
        child._send("measure", ("fp32",))  # and nobody waits for the answer
        assert psutil.pid_exists(pid)
    assert not psutil.pid_exists(pid)


def test_a_child_ends_with_its_parent() -> None:
    """The pipe closes when the parent is killed; the child is in the middle of something then."""
    with Child(functools.partial(Limits, "cpu", 1)) as child:
        child.call("measure", "fp32")
        child._send("measure", ("fp32",))
        child._outbox.close()
        assert child._process.wait(60) == 1


def test_ctrl_c_reaches_the_parent_alone() -> None:
    with Child(functools.partial(Limits, "cpu", 1)) as child:
        assert os.getpgid(child._process.pid) != os.getpgid(0)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "memory"),
        (MemoryError(), "memory"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"), "memory"),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), "device"),
        (RuntimeError("something else"), "crash"),
        (RuntimeError(), "crash"),
    ],
)
def test_errors_are_told_apart(error: Exception, kind: str) -> None:
    assert failure(error).kind == kind


def test_a_line_that_only_announces_another_brings_it_along() -> None:
    error = RuntimeError("backend='inductor' raised:\nInvalidCxxCompiler: none found\nand much more")
    assert str(failure(error)) == "RuntimeError: backend='inductor' raised: InvalidCxxCompiler: none found"


@pytest.mark.parametrize(
    ("profile", "message"),
    [
        (Profile(precisions=("fp32", "tf32")), r"profile\.precisions: tf32 needs a CUDA device.* is cpu"),
        (Profile(executions=("cudagraph",)), r"profile\.executions: cudagraph needs a CUDA device.* is cpu"),
    ],
)
def test_what_a_device_does_not_have_is_refused(profile: Profile, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check("cpu", profile)
    check("cpu", Profile(precisions=("auto", "fp32", "bf16", "fp16"), executions=("eager", "compiled")))
