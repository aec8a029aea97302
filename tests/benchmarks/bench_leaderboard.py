"""How long `stmbench leaderboard` takes over many runs, as a whole process: the promise is 1 s for 1,000.

Every run has its predictions of 2,000 images, by which networks are found that cannot be told apart.

python tests/benchmarks/bench_leaderboard.py [RUNS]
"""

import hashlib
import io
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from sqlalchemy import insert

from stmbench import recipe
from stmbench.record import Measurement
from stmbench.store import open_store, tables

MIXERS = ("halo", "swin", "sra", "dwconv", "dcnv3")
EPOCHS = 8
IMAGES = 2000
MAIN = "from stmbench.cli import main; main()"
PROFILE = "batch={},device=cpu,precision=fp32,size=28,threads=2"


def numbers(i: int) -> list[Measurement]:
    """Fifty measurements of run `i`."""
    found = [
        Measurement("build", "parameters", 4.3e6 + i),
        Measurement("build", "macs", 13.5e6 + i, "MACs", "height=28,width=28"),
        Measurement("profile", "latency", 10 + i % 7, "ms", PROFILE.format(1)),
        Measurement("profile", "throughput", 800 + i % 50, "images/s", PROFILE.format(64)),
        Measurement("profile", "peak_memory", 5e8, "bytes", PROFILE.format(1)),
        Measurement("profile", "peak_memory", 6e8, "bytes", PROFILE.format(64)),
    ]
    for name, value in {"top1": 85 + i % 40 / 10, "top5": 99.0, "loss": 0.4, "images": 2000}.items():
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
    values = recipe.Recipe().values()
    now = datetime.now(UTC)
    with open_store(str(path)) as store, store._writer.begin() as connection:
        for i in range(count):
            run = {column.name: "" for column in tables.run.columns} | {
                "id": f"{MIXERS[i % 5]}-micro-{i:06x}",
                "folder": f"{MIXERS[i % 5]}-micro-{i:06x}",
                "state": "done",
                "mixer": MIXERS[i % 5],
                "scale": "micro",
                "seed": i // 5 % 10,
                "recipe_name": f"recipe{i // 50 % 4}",
                "recipe_digest": f"{i // 50 % 4:012x}",
                "recipe_values": values,
                "data_name": "fashion_mini",
                "device": "cpu",
                "hardware": "Some CPU",
                "precision": "fp32",
                "stages": ["build", "train", "eval", "profile"],
                "overrides": [],
                "argv": ["stmbench", "run", "--mixer", MIXERS[i % 5]],
                "versions": {"torch": "2.6.0", "timm": "1.0.16"},
            }
            run |= dict.fromkeys(("created", "updated", "heartbeat"), now)
            run |= {"git_dirty": False, "threads": 2, "pid": 1, "process_started": 0.0}
            connection.execute(insert(tables.run).values(run))
            rows = [
                {"run": run["id"], **{f: getattr(m, f) for f in Measurement.__dataclass_fields__}}
                for m in numbers(i)
            ]
            connection.execute(insert(tables.measurement), rows)
            content, folder = predictions(i), path.parent / run["id"]
            folder.mkdir()
            (folder / "predictions_plain.npz").write_bytes(content)
            file = {"run": run["id"], "path": "predictions_plain.npz", "stage": "eval", "kind": "predictions"}
            file |= {"condition": "weights=plain", "bytes": len(content)}
            file |= {"sha256": hashlib.sha256(content).hexdigest()}
            connection.execute(insert(tables.artifact).values(file))


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "stmbench.db"
        fill(path, count)
        command = [sys.executable, "-c", MAIN, "leaderboard", "--db", str(path)]
        seconds = []
        for _ in range(10):
            started = time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            seconds.append(time.perf_counter() - started)
    median, most = statistics.median(seconds), max(seconds)
    print(f"{count} runs of {len(numbers(0))} measurements: median {median:.2f} s, at most {most:.2f} s")


if __name__ == "__main__":
    main()
