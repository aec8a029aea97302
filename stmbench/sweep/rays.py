"""Runs as Ray tasks: each in a fresh worker of a Ray cluster, against the shared database.

Tasks are the driver's, and end with it; their runs are then interrupted, and the sweep started again takes
them up. Ray's dashboard and its usage statistics are off.
"""

import logging
import os
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any

from stmbench.recipe import build
from stmbench.store import Store
from stmbench.sweep import cluster
from stmbench.sweep.file import Sweep
from stmbench.sweep.planning import Item
from stmbench.sweep.work import Ended, Outcome, Told, work


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The section [ray] of a sweep file: the cluster, and what one run takes of it."""

    address: str = ""  # "auto" or HOST:PORT; "": RAY_ADDRESS, else a cluster of this machine
    cpus: float = 1.0
    gpus: float = 0.0
    memory_gb: float = 0.0  # 0: not asked for


def follow(
    items: Sequence[Item], sweep: Sweep, store: Store, db: str, *, retry: bool
) -> Generator[Told | Ended, None, None]:
    """Hand every run to Ray, and tell of them until all have ended."""
    options = check(sweep)
    import ray

    ray.init(
        address=options.address or None,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    try:
        task: Any = ray.remote(**_demands(options))(work)
        jobs = {i: task.remote(item.task(db, retry=retry)) for i, item in enumerate(items)}

        def wait(seconds: float) -> None:
            unfinished = [job for job in jobs.values() if not ray.wait([job], timeout=0)[0]]
            ray.wait(unfinished, timeout=seconds)

        yield from cluster.watch(items, {i: _asking(job) for i, job in jobs.items()}, store, wait)
    finally:
        ray.shutdown()


def check(sweep: Sweep) -> Options:
    """What the section says; ValueError for what it cannot, and where Ray is not installed."""
    options: Options = build(Options, sweep.ray, "[ray]: ")
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    try:
        import ray  # noqa: F401
    except ModuleNotFoundError:
        raise ValueError("--executor ray needs ray: pip install 'stmbench[ray]'.") from None
    return options


def _demands(options: Options) -> dict[str, Any]:
    """What Ray is to reserve for a run. `max_calls`: the worker ends with it, and its memory is free."""
    memory = {"memory": options.memory_gb * 2**30} if options.memory_gb else {}
    return {"num_cpus": options.cpus, "num_gpus": options.gpus, "max_calls": 1, "max_retries": 0} | memory


def _asking(job: Any) -> cluster.Ask:
    import ray
    from ray.exceptions import RayError

    def ask() -> Outcome | None:
        if not ray.wait([job], timeout=0)[0]:
            return None
        try:
            return ray.get(job)
        except RayError as error:  # its worker died
            return Outcome("failed", reason=" ".join(str(error).split()))

    return ask
