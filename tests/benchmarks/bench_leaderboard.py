"""How long reading takes over many runs, as whole processes: `leaderboard` and `show`.

The promise: over 100,000 runs of 50 measurements each, 1.5 s and 0.5 s, below 500 MB. Up to 1,000 runs have
their predictions of 2,000 images, by which networks are found that cannot be told apart; of more, a
leaderboard reads none (see `reading.ties`).

python tests/benchmarks/bench_leaderboard.py [RUNS [SQLITE_FILE]]

With a file, the runs are kept there, and are not made again if it is there already.
"""

import hashlib
import io
import json
import re
import resource
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from stmbench import catalog, recipe
from stmbench.reading.ties import MOST_READ
from stmbench.record import Measurement
from stmbench.store import open_store

NETWORKS = [(mixer, scale) for mixer in catalog.mixers() for scale in ("micro", "tiny", "small", "base")]
RECIPES = 10
EPOCHS = 8
IMAGES = 2000
MAIN = "from stmbench.cli import main; main()"
PROFILE = "batch={},device=cpu,precision=fp32,size=28,threads=2"


def numbers(i: int) -> list[Measurement]:
    """Fifty measurements of run `i`."""
    found = [
        Measurement("build", "parameters", 4.3e6 + i % len(NETWORKS)),
        Measurement("build", "macs", 13.5e6 + i % len(NETWORKS), "MACs", "height=28,width=28"),
        Measurement("profile", "latency", 10 + i % 7, "ms", PROFILE.format(1)),
        Measurement("profile", "best_throughput", 800 + i % 50, "images/s", PROFILE.format(64)),
        Measurement("profile", "peak_memory", 5e8, "bytes", PROFILE.format(1)),
        Measurement("profile", "peak_memory", 6e8, "bytes", PROFILE.format(64)),
    ]
    for name, value in {"top1": 85 + i % 41 / 10, "top5": 99.0, "loss": 0.4, "images": IMAGES}.items():
        found.append(Measurement("eval", name, value, "%", "weights=plain"))
    curves = ("loss", "lr", "images_per_second", "top1", "seconds")
    found += [Measurement("train", name, 1 / e, step=e) for e in range(1, EPOCHS + 1) for name in curves]
    return found


def predictions(i: int) -> bytes:
    """The file of run `i`, as the stage `eval` writes it; one in seven answers is wrong."""
    rng = np.random.default_rng(i)
    labels = (np.arange(IMAGES) % 10).astype(np.int8)
    top5 = (labels[:, None] + np.arange(5) + (rng.random((IMAGES, 1)) < 1 / 7)) % 10
    content = io.BytesIO()
    losses = rng.random(IMAGES, np.float32)
    np.savez_compressed(content, labels=labels, top5=top5.astype(np.int8), losses=losses)
    return content.getvalue()


def fill(path: Path, count: int) -> None:
    """Write `count` finished runs, in bulk and around the store's own methods, for speed."""
    open_store(str(path)).close()
    with sqlite3.connect(path) as connection:
        for table, rows in (
            ("run", _runs(count)),
            ("measurement", _measurements(count)),
            ("artifact", _files(path, count)),
        ):
            first = next(rows)
            statement = f"INSERT INTO {table} ({', '.join(first)}) VALUES ({', '.join('?' * len(first))})"
            connection.execute(statement, tuple(first.values()))
            connection.executemany(statement, (tuple(row.values()) for row in rows))
    connection.close()
    with open_store(str(path)) as store:
        store.refresh_summaries()


def _id(i: int) -> str:
    return f"{'-'.join(NETWORKS[i % len(NETWORKS)])}-{i:08x}"


def _runs(count: int) -> Iterator[dict[str, object]]:
    values = json.dumps(recipe.load("quick").values())
    texts = (
        "reason",
        "data_source",
        "data_fingerprint",
        "weights",
        "weights_sha256",
        "git_commit",
        "host",
        "boot_id",
    )
    lists = ("overrides", "argv", "stages")
    for i in range(count):
        mixer, scale = NETWORKS[i % len(NETWORKS)]
        number = i // len(NETWORKS) % RECIPES
        time = f"2026-01-{1 + i * 28 // count:02} 00:00:00.000000"
        yield {
            **dict.fromkeys(texts, ""),
            **dict.fromkeys(lists, "[]"),
            **dict.fromkeys(("created", "updated", "heartbeat"), time),
            **{"id": _id(i), "folder": _id(i), "state": "done", "mixer": mixer, "scale": scale},
            **{"seed": i // len(NETWORKS) // RECIPES, "recipe_name": f"recipe{number}"},
            **{"recipe_digest": f"{number:012x}", "recipe_values": values, "data_name": "fashion_mini"},
            **{"device": "cpu", "hardware": "Some CPU", "precision": "fp32", "threads": 2},
            **{"versions": '{"torch": "2.6.0"}', "git_dirty": 0, "pid": 1, "process_started": 0.0},
            "fingerprint": hashlib.sha256(_id(i).encode()).hexdigest(),
        }


def _measurements(count: int) -> Iterator[dict[str, object]]:
    for i in range(count):
        for m in numbers(i):
            yield {"run": _id(i), **{name: getattr(m, name) for name in Measurement.__dataclass_fields__}}


def _files(path: Path, count: int) -> Iterator[dict[str, object]]:
    for i in range(count):
        content = predictions(i) if count <= MOST_READ else b""
        if content:
            folder = path.parent / _id(i)
            folder.mkdir()
            (folder / "predictions_plain.npz").write_bytes(content)
        file = {"run": _id(i), "path": "predictions_plain.npz", "stage": "eval", "kind": "predictions"}
        yield {
            **file,
            "condition": "weights=plain",
            "bytes": len(content),
            "sha256": hashlib.sha256(content).hexdigest(),
        }


def measure(path: Path, *command: str, times: int = 10) -> None:
    """Print the time of whole processes of this command, and the most memory that one of them took."""
    argv = [sys.executable, "-c", MAIN, *command, "--db", str(path)]
    seconds = []
    for _ in range(times):
        started = time.perf_counter()
        subprocess.run(argv, check=True, stdout=subprocess.DEVNULL)
        seconds.append(time.perf_counter() - started)
    memory = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    median, most = statistics.median(seconds), max(seconds)
    print(f"{command[0]}: median {median:.2f} s, at most {most:.2f} s; so far at most {memory:.0f} MB")


def scans(path: Path) -> list[str]:
    """The steps in which SQLite would read every run or measurement to answer the two commands."""
    statements: list[tuple[str, tuple[object, ...]]] = []
    with open_store(str(path)) as store:
        from sqlalchemy import event

        event.listen(
            store._engine, "before_cursor_execute", lambda *given: statements.append((given[2], given[3]))
        )
        store.summaries()
        run = store.named([_id(0)])[_id(0)]
        store.run(run.id)
        store.measurements(run.id)
        store.artifacts(run.id)
        store.runs(limit=20)
        store.runs(fingerprint=run.fingerprint)
    connection = sqlite3.connect(path)
    steps = [
        row[-1]
        for statement, values in statements
        if statement.startswith("SELECT")
        for row in connection.execute(f"EXPLAIN QUERY PLAN {statement}", values)
    ]
    return [
        step
        for step in steps
        if re.match(r"SCAN (run|measurement|artifact)(?! USING INDEX run_created)", step)
    ]


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    with tempfile.TemporaryDirectory() as folder:
        path = Path(sys.argv[2]) if len(sys.argv) > 2 else Path(folder) / "stmbench.db"
        if not path.exists():
            fill(path, count)
        print(f"{count:,} runs of {len(numbers(0))} measurements, {path.stat().st_size / 1e6:,.0f} MB")
        measure(path, "show", _id(count // 2))
        measure(path, "runs")
        measure(path, "leaderboard")
        print(f"steps that read a whole table: {scans(path) or 'none'}")


if __name__ == "__main__":
    main()
