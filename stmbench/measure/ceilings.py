"""What a device reaches at most: one large matrix product and one large copy, the same everywhere.

They are the roofline of Williams, Waterman and Patterson (2009, doi:10.1145/1498765.1498785), measured
instead of read from a data sheet, and, taken before and after each round, they tell whether a process got
the machine it was promised. The best call counts: nothing makes a call faster than the device.
"""

import functools
import time
from collections.abc import Callable, Sequence

import torch

from stmbench.measure.process import Child, WorkerError
from stmbench.measure.setting import AUTOCAST, Rates

# Rows and columns of the matrices: large enough that a larger product is no faster.
SIZE = {"cpu": 1024, "cuda": 8192, "mps": 2048}
# Bytes of what is copied: larger than the caches of most, and twice of it fits in the memory of all.
COPY = {"cpu": 128 << 20, "cuda": 512 << 20, "mps": 256 << 20}
PROCESSES, ROUNDS, ROUND_S, LEAST_CALLS = 2, 3, 0.2, 3


class Yardstick:
    """The matrix product, in one precision, and the copy. Its buffers stay allocated."""

    def __init__(self, device: str, precision: str) -> None:
        kind = torch.device(device).type
        size, dtype = SIZE[kind], AUTOCAST.get(precision, torch.float32)
        self._wait = waiter(device)
        self._macs, self._bytes = size**3, 2 * COPY[kind]
        needed = 3 * size**2 * dtype.itemsize + self._bytes
        if kind == "cuda" and torch.cuda.mem_get_info(device)[0] < 2 * needed:
            raise MemoryError("too little memory is free")  # rather than take what the network has cached
        self._left, self._right, self._product = (
            torch.randn(size, size, device=device).to(dtype) for _ in range(3)
        )
        self._source = torch.ones(COPY[kind] // 4, device=device)
        self._target = torch.zeros_like(self._source)

    def rates(self, seconds: float) -> Rates:
        """The best of the calls that fit into `seconds` each, at least three."""
        matmul = self._best(lambda: torch.mm(self._left, self._right, out=self._product), seconds)
        copy = self._best(lambda: self._target.copy_(self._source), seconds)
        return Rates(self._macs / matmul, self._bytes / copy)

    def _best(self, call: Callable[[], object], seconds: float) -> float:
        best, calls, started = float("inf"), 0, time.perf_counter()
        while calls < LEAST_CALLS or time.perf_counter() - started < seconds:
            self._wait()
            before = time.perf_counter()
            call()
            self._wait()
            best = min(best, time.perf_counter() - before)
            calls += 1
        return best


def measure(device: str, precisions: Sequence[str], threads: int) -> dict[str, Rates]:
    """The ceilings by precision: the better of two fresh processes, since one may be slow throughout.

    Raises:
        WorkerError: a precision the device cannot multiply in, or too little memory.
    """
    found = []
    for _ in range(PROCESSES):
        with Child(functools.partial(Limits, device, threads)) as child:
            found += [{precision: _reached(child, precision)} for precision in precisions]
    return {
        precision: best([rates[precision] for rates in found if precision in rates])
        for precision in precisions
    }


def _reached(child: Child, precision: str) -> Rates:
    try:
        return child.call("measure", precision)
    except WorkerError as error:
        if error.kind == "crash":
            raise
        return Rates(None, None)  # the other precisions have theirs


def best(rates: Sequence[Rates]) -> Rates:
    """The highest of each."""
    matmul = max((each.matmul for each in rates if each.matmul), default=None)
    copy = max((each.copy for each in rates if each.copy), default=None)
    return Rates(matmul, copy)


def least(rates: Sequence[Rates]) -> Rates:
    """The lowest of each, if all are known: a single burst of speed is no ceiling."""

    def lowest(values: list[float | None]) -> float | None:
        known = [value for value in values if value]
        return min(known) if len(known) == len(values) else None

    return Rates(lowest([each.matmul for each in rates]), lowest([each.copy for each in rates]))


class Limits:
    """The object of the fresh process that measures the ceilings."""

    def __init__(self, device: str, threads: int) -> None:
        torch.set_num_threads(threads)
        self._device = device

    def measure(self, precision: str) -> Rates:
        """The best of three rounds."""
        set_tf32(precision == "tf32")
        with torch.inference_mode():
            yardstick = Yardstick(self._device, precision)
            return best([yardstick.rates(ROUND_S) for _ in range(ROUNDS)])


def set_tf32(allowed: bool) -> None:
    """Let matrix products and convolutions of fp32 on CUDA be rounded to TF32, or not."""
    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed


def waiter(device: str) -> Callable[[], None]:
    """A function that waits until everything queued on the device is done."""
    if device.startswith("cuda"):
        return lambda: torch.cuda.synchronize(device)
    return torch.mps.synchronize if device == "mps" else lambda: None
