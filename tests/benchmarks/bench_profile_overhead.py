"""What the measured loop of `measure/clock.py` adds to a bare loop of the same calls: under 1 %, it says.

python tests/benchmarks/bench_profile_overhead.py [PAIRS]

Both loops run the micro dwconv at 28x28 in turns, the order changing from pair to pair. Run it on a calm
machine; the spread tells whether it was one.
"""

import functools
import gc
import statistics
import sys
import time
from collections.abc import Callable

import torch

from stmbench import create_model
from stmbench.measure.clock import time_passes, warm_up
from stmbench.measure.setting import Setting
from stmbench.measure.subject import Subject, adamw

PASSES = {1: 100, 64: 20}  # in a loop, by batch size


def bare(once: Callable[[], object], count: int) -> float:
    """Seconds of a pass."""
    started = time.perf_counter()
    for _ in range(count):
        once()
    return (time.perf_counter() - started) / count


def measured(once: Callable[[], object], count: int) -> float:
    """Seconds of a pass, all that the loop does beside it included."""
    started = time.perf_counter()
    time_passes(once, count, "cpu")
    return (time.perf_counter() - started) / count


def main() -> None:
    pairs = int(sys.argv[1]) if len(sys.argv) > 1 else 30
    make = functools.partial(create_model, "dwconv", "micro", num_classes=10, in_channels=1, image_size=28)
    for batch, count in PASSES.items():
        subject = Subject(make, Setting(batch=batch, shape=(1, 28, 28)), adamw, torch.get_num_threads())
        once = subject._passes(make())
        warm_up(once, "cpu")
        gc.freeze()  # else what the loop collects before it starts is counted
        gc.disable()
        ratios = []
        for i in range(pairs):
            loops = (bare, measured) if i % 2 else (measured, bare)
            seconds = {loop: loop(once, count) for loop in loops}
            ratios.append(seconds[measured] / seconds[bare])
        low, median, high = statistics.quantiles(ratios, n=4)
        print(
            f"batch {batch}: measured / bare {median:.4f}, quartiles {low:.4f} to {high:.4f}, {pairs} pairs"
        )


if __name__ == "__main__":
    main()
