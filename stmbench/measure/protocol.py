"""The protocol latency/1: what a time of a network is, and when a round of timing does not count.

A fresh process per setting makes the network, compiles it, warms it up until the running median settles
(`stmbench.measure.clock`), and times at least 100 passes and a second of them. A round that the machine
disturbed is taken again in another fresh process, twice at most; when all are disturbed, the one with the
lowest median is kept, and marked.
"""

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from stmbench.measure.setting import Memory, Prepared, Rates, Round, Setting

LEAST_SAMPLES = 100
LEAST_S = 1.0  # of a round: CPU time and joules are counted in steps of some milliseconds
ATTEMPTS = 3

OTHERS = 0.10  # of the machine's CPU, of a round on the CPU
STEAL = 0.05
HELD_BACK = 0.05  # of a round, by the GPU's own counters of power and temperature
CALIBRATION = 0.80  # of the ceiling
DRIFT = 0.10  # between the medians of a round's halves


def name(samples: int) -> str:
    """The protocol's name; with fewer samples than it asks for, it is another."""
    return "latency/1" if samples >= LEAST_SAMPLES else "latency/1-short"


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One fresh process's try at a setting: a round, or the reason why there is none."""

    setting: Setting
    control: bool = False  # of the same backbone around the identity
    prepared: Prepared | None = None
    memory: Memory | None = None
    round: Round | None = None
    disturbed: tuple[str, ...] = ()
    error: str = ""

    @property
    def median(self) -> float:
        """Seconds of a pass."""
        assert self.round
        return statistics.median(self.round.seconds)


def kept(attempts: Sequence[Attempt]) -> Attempt:
    """The undisturbed round, else the fastest, else the failure."""
    rounds = [attempt for attempt in attempts if attempt.round]
    if not rounds:
        return attempts[-1]
    return min(rounds, key=lambda attempt: (bool(attempt.disturbed), attempt.median))


def disturbances(setting: Setting, taken: Round, ceiling: Rates) -> tuple[str, ...]:
    """What disturbed a round, a line each, given what the device is known to reach."""
    found = []
    if setting.device == "cpu" and taken.others > OTHERS:
        found.append(f"other processes used {taken.others:.0%} of the CPU")
    if taken.steal > STEAL:
        found.append(f"the hypervisor took {taken.steal:.0%} of the CPU")
    return (*found, *_throttled(taken), *_slow(taken, ceiling), *_drifted(taken.seconds))


def _throttled(taken: Round) -> Iterator[str]:
    first, last = (state.get("gpu_held_back", {}) for state in (taken.before, taken.after))
    for cause in first.keys() & last.keys():
        share = (last[cause] - first[cause]) / sum(taken.seconds)
        if share > HELD_BACK:
            yield f"the GPU was held back by its {cause} for {share:.0%} of it"
    for at, state in (("before", taken.before), ("after", taken.after)):
        if reasons := state.get("gpu_throttled"):
            yield f"the GPU was throttled {at} it: {', '.join(reasons)}"


def _slow(taken: Round, ceiling: Rates) -> Iterator[str]:
    for at, rates in zip(("before", "after"), taken.rates, strict=True):
        for what, rate, most in (("matrix product", rates.matmul, ceiling.matmul),
                                 ("copy", rates.copy, ceiling.copy)):  # fmt: skip
            if rate and most and rate < CALIBRATION * most:
                yield f"the {what} {at} it reached {rate / most:.0%} of the ceiling"


def _drifted(seconds: Sequence[float]) -> Iterator[str]:
    half = len(seconds) // 2
    if half:
        drift = statistics.median(seconds[half:]) / statistics.median(seconds[:half]) - 1
        if abs(drift) > DRIFT:
            yield f"its second half was {abs(drift):.0%} {'slower' if drift > 0 else 'faster'} than its first"
