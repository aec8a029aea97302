"""Stage `profile`: latency at batch 1, throughput at the recipe's batch, and peak memory, for inference.

Measured in a fresh process, so that nothing training left behind (threads, caches, memory) has a part in
it. Every sample is a forward pass between two synchronisations of the device, after a warm-up; the median
and the interquartile range are reported.
"""

import multiprocessing
import signal
import statistics
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import psutil
import torch

import stmbench.data
from stmbench.record import Event, Job, Measurement, Progress, condition
from stmbench.stages import network

WARM_UP_S = 0.5  # at least, and at least three passes
LIMIT_S = 10.0  # of sampling per batch size; at least five samples are taken however long they last
_SPAWN = multiprocessing.get_context("spawn")


def run(job: Job) -> Iterator[Event]:
    """Yield `latency` (ms), `throughput` (images/s) and `peak_memory` (bytes) of the job's network."""
    num_classes = stmbench.data.find(job.data).num_classes
    batches = sorted({1, job.recipe.profile.batch_size})
    for done, batch in enumerate(batches):
        yield Progress("profile", f"profile batch {batch}", done, len(batches))
        with ProcessPoolExecutor(1, _SPAWN, _leave_ctrl_c_to_the_parent) as pool:
            try:
                measurements = pool.submit(measure, job, num_classes, batch).result()
            except BrokenProcessPool:
                raise network.OutOfMemoryError(
                    f"The measuring process was killed at batch {batch}, most likely for its memory; "
                    f"try --set profile.batch_size={max(1, batch // 2)}."
                ) from None
        yield from measurements
    yield Progress("profile", "profile", len(batches), len(batches))


def _leave_ctrl_c_to_the_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def measure(job: Job, num_classes: int, batch: int) -> list[Measurement]:
    """Measure one batch size in this process."""
    data, device = job.recipe.data, job.device
    with network.memory_advice("profile.batch_size", batch):
        model = network.make(job, num_classes).eval()
        images = torch.randn(batch, data.channels, data.image_size, data.image_size, device=device)
        images = images.contiguous(memory_format=torch.channels_last)
        with torch.inference_mode(), network.autocast(job.recipe, device):
            seconds = sample(lambda: model(images), device, job.recipe.profile.samples)
    at = condition(
        batch=batch,
        device=torch.device(device).type,
        precision=network.precision(job.recipe, device),
        size=data.image_size,
        threads=torch.get_num_threads(),
        torch=torch.__version__.partition("+")[0],
    )
    low, median, high = statistics.quantiles(seconds, n=4)
    found = [Measurement("profile", "peak_memory", peak_memory(device), "bytes", at)]
    if batch == 1:
        found += [
            Measurement("profile", "latency", 1e3 * median, "ms", at),
            Measurement("profile", "latency_iqr", 1e3 * (high - low), "ms", at),
        ]
    if batch == job.recipe.profile.batch_size:
        found.append(Measurement("profile", "throughput", batch / median, "images/s", at))
    return [*found, Measurement("profile", "samples", len(seconds), "", at)]


def sample(call, device: str, count: int) -> list[float]:
    """Seconds of each of up to `count` calls, after a warm-up."""

    def once() -> float:
        network.synchronize(device)
        started = time.perf_counter()
        call()
        network.synchronize(device)
        return time.perf_counter() - started

    started, passes = time.perf_counter(), 0
    while passes < 3 or time.perf_counter() - started < WARM_UP_S:
        once()
        passes += 1
    seconds, started = [], time.perf_counter()
    while len(seconds) < 5 or (len(seconds) < count and time.perf_counter() - started < LIMIT_S):
        seconds.append(once())
    return seconds


def peak_memory(device: str) -> int:
    """Bytes: allocated by torch on a GPU, else resident in this process at its peak."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.is_file():  # not ru_maxrss, which a child inherits from its parent
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return 1024 * int(line.split()[1])
    memory = psutil.Process().memory_info()
    return memory.peak_wset if sys.platform == "win32" else memory.rss
