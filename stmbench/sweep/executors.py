"""Where the runs of a plan are made: here, by Slurm or by Ray."""

from collections.abc import Generator

import torch

from stmbench import devices
from stmbench.store import Store, database, open_store
from stmbench.sweep import pool, rays, slurm
from stmbench.sweep.file import Sweep
from stmbench.sweep.planning import Plan
from stmbench.sweep.work import Ended, Told


def follow(
    sweep: Sweep,
    plan: Plan,
    store: Store,
    db: str,
    *,
    executor: str,
    retry: bool,
    jobs: int | None,
    gpus: list[int],
) -> Generator[Told | Ended, None, None]:
    """Make what is left of the plan, and tell of it by the place in `plan.to_run`."""
    items = plan.to_run(retry=retry)
    if executor == "slurm":
        return slurm.follow(items, sweep, store, db, retry=retry, jobs=jobs)
    if executor == "ray":
        return rays.follow(items, sweep, store, db, retry=retry)
    threads = torch.get_num_threads()
    places = pool.slots(plan.device, gpus, jobs, threads)
    return pool.follow(items, places, store, db, retry=retry, threads=threads)


def check(sweep: Sweep, executor: str, *, jobs: int | None, gpus: str) -> list[int]:
    """The GPUs that ``--gpus`` names: ``8`` for so many, ``0,2`` or ``0,`` for these.

    Raises:
        ValueError: no such GPU, options that do not go with the executor, or what it cannot be given.
        RuntimeError: there is no such executor here.
    """
    if gpus and executor != "local":
        raise ValueError(f"--gpus is of this machine: with --executor {executor} the cluster chooses them.")
    if jobs and executor == "ray":
        raise ValueError("Ray runs as many at once as it has resources for: see cpus and gpus in [ray].")
    if executor == "slurm":
        slurm.check(sweep, jobs)
    if executor == "ray":
        rays.check(sweep)
    parts = [part.strip() for part in gpus.split(",") if part.strip()]
    if not all(part.isdigit() for part in parts):
        raise ValueError(f"--gpus takes how many (8) or which (0,2), not '{gpus}'.")
    numbers = list(range(int(gpus))) if parts and "," not in gpus else [int(part) for part in parts]
    if gpus and not numbers:
        raise ValueError("--gpus 0 is no GPU at all: `--gpus 0,` is the first alone.")
    for number in numbers:
        devices.find(f"cuda:{number}")
    return list(dict.fromkeys(numbers))


def existing(db: str) -> Store | None:
    """The results, if there are any yet."""
    url = database.parse_url(db)
    if (file := database.sqlite_file(url)) and not file.exists():
        return None
    engine = database.connect(url)
    try:
        with database.clear_errors(url):
            empty = database.schema_of(engine) is None
    finally:
        engine.dispose()
    return None if empty else open_store(db, create=False)


def warnings(executor: str, db: str) -> list[str]:
    """What may go wrong between the database and those who write into it."""
    if executor == "local" or database.sqlite_file(database.parse_url(db)) is None:
        return []
    return [
        "Every job writes into one SQLite file. That is safe on one machine; across several, "
        "give --db the URL of a PostgreSQL database."
    ]
