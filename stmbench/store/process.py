"""Which process a run belongs to, and whether that process still lives.

On its own machine a process is looked up: by its number, and by when it started, counted from the machine's
own start, which no setting of a clock moves. Of another machine there are only heartbeats, which the database
times by its own clock if it has one. Who watches for longer than a moment goes by what it sees: a heartbeat
that moves is a life, whatever time it says.

A machine is known by the boot id of its kernel, and by the namespace of process numbers within it: containers
may share a kernel, or a host name, and yet not see each other's processes.
"""

import os
import platform
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

import psutil

from stmbench.store.records import RunRecord

SILENCE = timedelta(minutes=5)  # a run on another machine that has not been heard of for so long is dead
_CLOCK_STEP_S = 2.0  # a start reckoned from the wall clock moves when that is set
_EPOCH = 1e9  # starts before this are counted from the machine's, others from 1970


def identity() -> dict[str, str | int | float]:
    """The columns of `run` that name this process beyond the reuse of its number."""
    process = psutil.Process()
    since_boot = _since_boot(process.pid)
    return {
        "host": platform.node(),
        "pid": process.pid,
        "boot_id": _boot_id(),
        "process_started": process.create_time() if since_boot is None else since_boot,
    }


class Watch:
    """Tells dead runs from living ones, and remembers which heartbeats it has seen to move."""

    def __init__(self, now: Callable[[], datetime], steady: Callable[[], float] = time.monotonic) -> None:
        self._now = now  # the time by the database's clock
        self._steady = steady  # seconds that never go backwards
        self._seen: dict[str, tuple[datetime, float, bool]] = {}

    def why_dead(self, run: RunRecord) -> str:
        """Why a run that says it is running cannot be; "" if it may be alive."""
        if _is_here(run):
            return "" if _is_running(run.pid, run.process_started) else f"its process {run.pid} is gone"
        now = self._now()
        if run.host == platform.node() and _kernel(run.boot_id) != _kernel(_boot_id()):
            uptime = _uptime()
            if uptime is not None and run.heartbeat < now - uptime:
                return f"{run.host} was restarted"
        heard = run.heartbeat.strftime("%Y-%m-%d %H:%M UTC")
        return f"not heard of from {run.host} since {heard}" if self._silence(run, now) > SILENCE else ""

    def is_from_the_future(self, run: RunRecord) -> bool:
        """Whether its heartbeat is of a time that is yet to come, of which silence cannot be counted."""
        return not _is_here(run) and run.heartbeat > self._now()

    def _silence(self, run: RunRecord, now: datetime) -> timedelta:
        beat, since, moved = self._seen.get(run.id, (None, 0.0, False))
        if beat != run.heartbeat:
            moved, since = beat is not None, self._steady()
            self._seen[run.id] = (run.heartbeat, since, moved)
        watched = timedelta(seconds=self._steady() - since)
        return watched if moved else max(watched, now - run.heartbeat)


def _boot_id() -> str:
    """Differs between two starts of this machine, and between namespaces of processes; empty if unknown."""
    path = Path("/proc/sys/kernel/random/boot_id")
    if not path.is_file():
        return ""
    try:
        return f"{path.read_text().strip()}/{Path('/proc/self/ns/pid').stat().st_ino}"
    except OSError:
        return path.read_text().strip()


def _kernel(boot_id: str) -> str:
    return boot_id.partition("/")[0]


def _is_here(run: RunRecord) -> bool:
    """Whether this process could see that one."""
    ours = _boot_id()
    if "/" in run.boot_id and "/" in ours:
        return run.boot_id == ours
    return run.host == platform.node() and _kernel(run.boot_id) == _kernel(ours)  # older rows, other systems


def _is_running(pid: int, started: float) -> bool:
    try:
        process = psutil.Process(pid)
        if started < _EPOCH:
            same = _since_boot(pid) == started
        else:
            same = abs(process.create_time() - started) < _CLOCK_STEP_S
        return same and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _since_boot(pid: int) -> float | None:
    """Seconds between the start of the machine and that of a process; None where Linux does not tell."""
    try:
        after_name = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return int(after_name[19]) / os.sysconf("SC_CLK_TCK")  # the 22nd field of all, the 20th after the name


def _uptime() -> timedelta | None:
    clock = getattr(time, "CLOCK_BOOTTIME", None)
    return None if clock is None else timedelta(seconds=time.clock_gettime(clock))
