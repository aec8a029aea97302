"""Many processes writing into one results database: is anything lost or refused, and how fast is it?

Each process opens the database, waits for the others, and commits its measurements one by one, as a run does.

python tests/benchmarks/bench_writers.py [--writers 8] [--measurements 1000] [--postgres] [URL ...]

Without a URL, an SQLite file in a temporary folder. The run that it makes stays in the database of a URL.
"""

import argparse
import contextlib
import multiprocessing
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from multiprocessing.synchronize import Barrier
from pathlib import Path
from queue import SimpleQueue

from sqlalchemy import func, select

from stmbench.record import Measurement
from stmbench.store import NewRun, Store, open_store, tables
from stmbench.store.database import parse_url

sys.path.append(str(Path(__file__).parents[1]))
import postgres_server

PATIENCE_S = 120
NEW = NewRun(
    mixer="halo",
    scale="micro",
    stages=("train",),
    seed=0,
    recipe_name="bench_writers",
    recipe_digest="",
    recipe_values={},
    data_source="none",
    data_name="none",
    data_fingerprint="",
    device="cpu",
    hardware="",
    precision="fp32",
    threads=1,
    versions={},
)


@dataclass(frozen=True)
class Result:
    writers: int
    each: int
    kept: int  # measurements that are there afterwards, with the value that was written
    refused: list[str]  # errors
    seconds: float
    waits: list[float]  # of every write, in seconds

    def __str__(self) -> str:
        lost, took = self.writers * self.each - self.kept, [wait * 1e3 for wait in self.waits]
        return (
            f"{self.writers} writers of {self.each:,} measurements: {lost} lost, "
            f"{len(self.refused)} refused, "
            f"{self.kept / self.seconds:,.0f} a second; a write took {statistics.median(took):.1f} ms "
            f"(median), at most {max(took):,.0f} ms"
        )


def write(url: str, run: str, writer: int, each: int, start: Barrier, answers: "SimpleQueue") -> None:
    """One process: its measurements, one transaction each."""
    refused, waits = [], []
    try:
        with open_store(url) as store:
            start.wait(PATIENCE_S)
            for step in range(each):
                before = time.perf_counter()
                store.record(run, Measurement("train", f"loss{writer}", step + writer / 8, step=step))
                waits.append(time.perf_counter() - before)
    except Exception as error:
        refused.append(f"{type(error).__name__}: {error}")
    answers.put((refused, waits))


def measure(url: str, writers: int = 8, each: int = 1000) -> Result:
    """Let so many processes write into a new run of this database, and count what is there."""
    context = multiprocessing.get_context("spawn")
    start, answers = context.Barrier(writers + 1), context.SimpleQueue()
    with open_store(url) as store:
        run = store.create_run(NEW).id
        arguments = [(url, run, writer, each, start, answers) for writer in range(writers)]
        processes = [context.Process(target=write, args=args) for args in arguments]
        for process in processes:
            process.start()
        start.wait(PATIENCE_S)
        began = time.perf_counter()
        found = [answers.get() for _ in processes]
        seconds = time.perf_counter() - began
        for process in processes:
            process.join()
        refused = [line for lines, _ in found for line in lines]
        waits = [wait for _, more in found for wait in more]
        kept = _kept(store, run, writers, each)
        store.end_run(run, "done")
    return Result(writers, each, kept, refused, seconds, waits)


def _kept(store: Store, run: str, writers: int, each: int) -> int:
    """How many of the measurements are there as they were written, each once."""
    wanted = {(f"loss{w}", step, step + w / 8) for w in range(writers) for step in range(each)}
    found = [(m.name, m.step, m.value) for m in store.measurements(run)]
    with store._read() as connection:
        rows = connection.scalar(select(func.count()).where(tables.measurement.c.run == run))
    assert rows == len(found) == len(set(found))
    return len(wanted & set(found))


def main() -> None:
    parser = argparse.ArgumentParser(description="Let many processes write at once.")
    parser.add_argument("--writers", type=int, default=8)
    parser.add_argument("--measurements", type=int, default=1000)
    parser.add_argument(
        "--postgres", action="store_true", help="also on a PostgreSQL server of the tests' own"
    )
    parser.add_argument("urls", nargs="*", metavar="URL")
    asked = parser.parse_args()
    with contextlib.ExitStack() as stack:
        urls = asked.urls or [str(Path(stack.enter_context(tempfile.TemporaryDirectory())) / "results.db")]
        if asked.postgres:
            urls.append(stack.enter_context(postgres_server.running()))
        for url in urls:
            result = measure(url, asked.writers, asked.measurements)
            print(f"{parse_url(url).get_backend_name()}: {result}")
            print(*result.refused, sep="\n", end="")


if __name__ == "__main__":
    main()
