"""How much of the machine the loaders take: processes, batches made ahead, and memory.

What torchrun starts on one machine shares it evenly.
"""

import math
import os
from pathlib import Path

import psutil

MOST_PROCESSES = 32  # of one loader: more have not been seen to help one GPU
AHEAD = 2**30  # bytes of batches that are made ahead, above two per process
MEMORY = 0.5  # share of the free memory that decoded images may take
_CGROUPS, _OWN_GROUP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def loader_processes(workers: int, device: str) -> int:
    """`data.workers`, or for -1 what this machine has cores for.

    Beside a GPU that is all cores but one; on a CPU, where the network needs them itself, a fourth.
    """
    if workers >= 0:
        return workers
    cores = _cores() // _ranks()
    return max(1, min(MOST_PROCESSES, cores // 4 if device.startswith("cpu") else cores - 1))


def batches_ahead(processes: int, batch_bytes: int) -> int | None:
    """How many batches each process makes ahead: from 2 to 4, by their size; None without processes."""
    return min(4, max(2, AHEAD // (processes * batch_bytes))) if processes else None


def memory_budget() -> int:
    """Bytes that this process may hold in decoded images: half of what is free, shared by the ranks."""
    return int(MEMORY * min(psutil.virtual_memory().available, _group_memory()) / _ranks())


def _ranks() -> int:
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _group_memory() -> float:
    """Bytes that this process's control groups, version 2, still allow; what files take can be dropped."""
    lines = _OWN_GROUP.read_text().splitlines() if _OWN_GROUP.is_file() else ()
    own = next((line.removeprefix("0::/") for line in lines if line.startswith("0::")), "")
    left = math.inf
    for group in (_CGROUPS / own, *(_CGROUPS / own).parents):
        if not (limit := group / "memory.max").is_file() or limit.read_text().strip() == "max":
            continue
        used = int((group / "memory.current").read_text())
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        left = min(left, int(limit.read_text()) - used + int(stat["inactive_file"]))
    return max(left, 0)
