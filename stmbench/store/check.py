"""What is wrong with a database, by rules that no database checks for us.

Each finding is of one run, or of none, and says in a line what is wrong. A finding that is only worth knowing
(a run whose process is gone) is a note. What SQLite itself finds broken is `store.salvage`'s.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from sqlalchemy import select

from stmbench.store import rows, tables
from stmbench.store.records import RunRecord, Summary
from stmbench.store.statements import batches, summaries_of
from stmbench.store.store import Store

_LATER = timedelta(minutes=1)  # by which two machines' clocks may differ without a word


@dataclass(frozen=True, slots=True)
class Finding:
    run: str
    text: str
    note: bool = False


def check(store: Store, *, digests: bool = False) -> Iterator[Finding]:
    """Everything that is wrong; with `digests` every file is read and compared with its SHA-256."""
    with store._read() as connection:
        ids = rows.ids(connection)
    yield from _orphans(store, set(ids))
    for some in batches(ids):
        runs = store.named(some)
        yield from _states(store, runs)
        yield from _summaries(store, runs)
        for run in runs.values():
            yield from _files(store, run, digests)


def _orphans(store: Store, runs: set[str]) -> Iterator[Finding]:
    for table in (*rows.PARTS.values(), tables.summary):
        with store._read() as connection:
            found = connection.scalars(select(table.c.run).distinct()).all()
        for run_id in sorted(set(found) - runs):
            yield Finding(run_id, f"rows of the table {table.name} belong to a run that is not there")


def _states(store: Store, runs: dict[str, RunRecord]) -> Iterator[Finding]:
    now, rows = store._now(), tables.run.c
    said = dict(store._fetch(select(rows.id, rows.state).where(rows.id.in_(runs))))
    for run in runs.values():
        if said.get(run.id) != run.state:
            text = f"says that it is {said.get(run.id)}, but {run.reason}: `stmbench run` will note it"
            yield Finding(run.id, text, note=True)
        if run.created > now + _LATER:
            text = f"started in the future, at {run.created:%Y-%m-%d %H:%M} UTC: a clock was wrong"
            yield Finding(run.id, text, note=True)


def _summaries(store: Store, runs: dict[str, RunRecord]) -> Iterator[Finding]:
    kept: defaultdict[str, list[Summary]] = defaultdict(list)
    for row in store.summaries(list(runs)):
        kept[row.run].append(row)
    for run in runs.values():
        with store._read() as connection:
            made = list(summaries_of(connection, run))
        if made != kept[run.id]:
            text = (
                "what leaderboards read of it is not what was measured: `stmbench db upgrade` makes it anew"
            )
            yield Finding(run.id, text)


def _files(store: Store, run: RunRecord, digests: bool) -> Iterator[Finding]:
    gone = []
    for file in store.artifacts(run.id):
        path = run.folder / file.path
        if not path.is_file():
            gone.append(str(file.path))
        elif path.stat().st_size != file.bytes:
            yield Finding(run.id, f"{file.path} has {path.stat().st_size:,} bytes, and had {file.bytes:,}")
        elif digests and _sha256(path) != file.sha256:
            yield Finding(run.id, f"{file.path} has changed since it was written")
    if gone:
        some = ", ".join(gone[:3]) + (", …" if len(gone) > 3 else "")
        yield Finding(run.id, f"{len(gone)} of its files are not in {run.folder}: {some}")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
