"""Which process a run belongs to, and whether that process still lives."""

import platform
from datetime import datetime, timedelta
from pathlib import Path

import psutil

from stmbench.store.records import RunRecord

SILENCE = timedelta(minutes=5)  # a run on another host that has not been heard of for so long is dead
_CLOCK_STEP_S = 2.0  # the start of a process is reckoned from a clock that may be set in the meantime


def identity() -> dict[str, str | int | float]:
    """The columns of `run` that name this process beyond the reuse of its number."""
    process = psutil.Process()
    return {
        "host": platform.node(),
        "pid": process.pid,
        "boot_id": _boot_id(),
        "process_started": process.create_time(),
    }


def why_dead(run: RunRecord, now: datetime) -> str:
    """Why a run that says it is running cannot be; "" if it may be alive."""
    if run.host != platform.node():
        silence = now - run.heartbeat
        heard = run.heartbeat.strftime("%Y-%m-%d %H:%M UTC")
        return f"not heard of from {run.host} since {heard}" if silence > SILENCE else ""
    if run.boot_id != _boot_id():
        return f"{run.host} was restarted"
    return "" if _is_running(run.pid, run.process_started) else f"its process {run.pid} is gone"


def _boot_id() -> str:
    """Differs between two starts of this machine, where the system tells; else empty."""
    path = Path("/proc/sys/kernel/random/boot_id")
    return path.read_text().strip() if path.is_file() else ""


def _is_running(pid: int, started: float) -> bool:
    try:
        process = psutil.Process(pid)
        same = abs(process.create_time() - started) < _CLOCK_STEP_S
        return same and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
