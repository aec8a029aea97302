"""Writing the page: once, or again and again as the database changes."""

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Unpack

from stmbench.report import page
from stmbench.store import Store


def check(path: Path) -> None:
    """ValueError for a file that is no page, or in no folder."""
    if path.suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"A report is an .html file, not '{path.name}'.")
    if not path.parent.is_dir():
        raise ValueError(f"There is no folder {path.parent} for the report.")


def write(path: Path, text: str) -> int:
    """Put the page in its place, whole: nobody sees half of it. Returns its bytes."""
    content = text.encode("utf-8", "replace")  # a name of a file may hold what is no text
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        part.write_bytes(content)
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    return len(content)


def watch(
    store: Store,
    path: Path,
    every: float,
    *,
    wait: Callable[[float], object] = time.sleep,
    **filters: Unpack[page.Filters],
) -> Iterator[int]:
    """Write the page whenever the runs have changed, and yield its bytes, until Ctrl-C.

    It looks every so many seconds, and the page loads itself again as often. The last one, written after
    Ctrl-C, does not.
    """
    seen = None
    try:
        while True:
            now = _state(store)
            if now != seen:
                yield write(path, page.make(store, every=every, **filters))
                seen = now
            wait(every)
    except KeyboardInterrupt:
        yield write(path, page.make(store, **filters))


def _state(store: Store) -> object:
    """What changes when runs do: numbers are recorded between a run's signs of life, which it gives often."""
    return [(run.id, run.state, run.updated, run.heartbeat) for run in store.runs()]
