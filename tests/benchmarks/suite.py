"""What the benchmark suites share: the head of their files, and a new file held against an old one."""

import json
import statistics
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

import stmbench
from stmbench import evidence

Case = dict[str, Any]
RATIOS = ("linears", "ratio", "swin", "convnext")  # to what was timed in turns with the case
WORSE = 1.1  # times as much as before: marked


def words(text: str) -> list[str]:
    """``a,b`` as a list."""
    return [word.strip() for word in text.split(",") if word.strip()]


def head(suite: str, device: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """What a reader of the file must know of how it was made."""
    commit, dirty = evidence.git()
    return {
        "suite": suite,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "stmbench": stmbench.__version__,
        "commit": commit + "+" * dirty,
        "hardware": evidence.hardware(device),
        "device": torch.device(device).type,
        "threads": torch.get_num_threads(),
        "versions": evidence.versions(),
        "options": dict(options),
    }


def write(path: Path, head: Mapping[str, Any], cases: Sequence[Case]) -> None:
    """One JSON object, a case a line: such files are kept, and compared."""
    lines = ",\n".join(json.dumps(case) for case in cases)
    text = json.dumps({**head, "cases": []}, indent=1).removesuffix("[]\n}")
    path.write_text(f"{text}[\n{lines}\n]}}\n", encoding="utf-8")


def compare(old: Path, cases: Sequence[Case], keys: Sequence[str]) -> None:
    """Print new over old for the cases that both have: of times, and of ratios to what was timed beside them.

    Times of two days differ by whatever else the machine does; ratios were taken in turns, and hardly do.
    """
    before = {_key(case, keys): case for case in json.loads(old.read_text(encoding="utf-8"))["cases"]}
    both = [(case, before[key]) for case in cases if (key := _key(case, keys)) in before]
    both = [(new, then) for new, then in both if new["ms"] and then["ms"]]  # which failed in neither
    columns = [name for name in ("ms", *RATIOS) if both and name in both[0][0]]
    print(f"\n{f'new / old, {len(both)} cases of {old.name}':<56}" + "".join(f"{c:>9}" for c in columns))
    changes = [[new[column] / then[column] for column in columns] for new, then in both]
    for (new, _), values in zip(both, changes, strict=True):
        name = " ".join(str(new[key]) for key in keys)
        mark = "  slower" if max(values[1:], default=0.0) > WORSE else ""
        print(f"{name:<56}" + "".join(f"{value:9.3f}" for value in values) + mark)
    if both:
        means = map(statistics.geometric_mean, zip(*changes, strict=True))
        print(f"{'geometric mean':<56}" + "".join(f"{mean:9.3f}" for mean in means))


def _key(case: Case, keys: Sequence[str]) -> tuple[Any, ...]:
    return tuple(case.get(key) for key in keys)
