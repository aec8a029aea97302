"""How passes are timed: warmed up until their time settles, then one by one, each waited for.

The clock is the wall's; on CUDA every pass is timed by the device's own events as well: from the start of its
first kernel to the end of its last, with whatever the device waits for the host in between.
"""

import gc
import statistics
import time
from collections.abc import Callable

import torch

from stmbench.measure.ceilings import waiter

WINDOW_PASSES, WINDOW_S = 5, 0.25  # a window of the warm-up has at least both
SETTLED = 0.02  # of the running median, from one window to the next
LONGEST_S = 10.0  # of a warm-up, but never fewer passes than
FEWEST = 3


def warm_up(once: Callable[[], object], device: str) -> tuple[list[float], bool]:
    """Seconds of each pass until the running median settles, and whether it did within ten seconds.

    After every window of at least 5 passes and 0.25 s the median of all passes so far is taken; it has
    settled when it is within 2 % of the one before.
    """
    wait = waiter(device)
    seconds: list[float] = []
    medians: list[float] = []
    started = opened = time.perf_counter()
    first = 0  # pass of the present window
    while True:
        before = time.perf_counter()
        once()
        wait()
        now = time.perf_counter()
        seconds.append(now - before)
        if len(seconds) - first >= WINDOW_PASSES and now - opened >= WINDOW_S:
            medians.append(statistics.median(seconds))
            if len(medians) > 1 and abs(medians[-1] / medians[-2] - 1) <= SETTLED:
                return seconds, True
            first, opened = len(seconds), now
        if now - started >= LONGEST_S and len(seconds) >= FEWEST:
            return seconds, False


def time_passes(
    once: Callable[[], object], count: int, device: str, least_s: float = 0.0
) -> tuple[list[float], list[float]]:
    """Seconds of each of `count` passes, or more until `least_s` seconds are over.

    Returns:
        The wall clock's, and on CUDA the events' (else an empty list).
    """
    seconds: list[float] = []
    events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
    call = _between_events(once, events) if device.startswith("cuda") else once
    wait, clock = waiter(device), time.perf_counter
    gc.collect()
    gc.disable()  # it would stop some pass for the garbage of all
    try:
        wait()
        end = clock() + least_s
        while len(seconds) < count or clock() < end:
            started = clock()
            call()
            wait()
            seconds.append(clock() - started)
    finally:
        gc.enable()
    return seconds, [first.elapsed_time(last) / 1e3 for first, last in events]


def _between_events(
    once: Callable[[], object], events: list[tuple[torch.cuda.Event, torch.cuda.Event]]
) -> Callable[[], object]:
    def call() -> None:
        first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        first.record()
        once()
        last.record()
        events.append((first, last))

    return call
