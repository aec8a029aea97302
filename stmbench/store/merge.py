"""Taking runs from elsewhere into a results database, each once, by its id.

The same run twice is one.

Of two versions the more complete is kept: a finished one before any other, then what was changed last, then
what has more rows. Runs that were made at different moments are no versions of one another: if they have the
same id, by chance, the second gets one of its own. Each run is a transaction: an interruption leaves a valid
database, and merging again completes it.

A run's files stay where they are, and the run's row says where; or they are copied beside this database's.
"""

import dataclasses
import hashlib
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sqlalchemy import Connection, select, update

from stmbench.store import database, rows, tables
from stmbench.store.rows import WholeRun
from stmbench.store.store import Store


@dataclass(frozen=True, slots=True)
class Merged:
    """What became of one run."""

    run: str
    was: str  # its id where it comes from
    how: Literal["added", "same", "replaced", "kept"]  # the last two: theirs, or ours, of two versions
    without_files: bool  # the files that it lists are not where it says, so that they could not be copied


def runs_of(store: Store) -> Iterator[WholeRun]:
    """Every run of a database, the oldest first, each as it is when its turn comes."""
    with store._read() as connection:
        found = rows.ids(connection)
    for run_id in found:
        with store._read() as connection:
            run = rows.read(connection, run_id, store.folder)
        if run is not None:
            yield run


def refuse_itself(source: str, target: Store) -> None:
    """ValueError if the source is the very database that it is to be merged into."""
    url = database.parse_url(source)
    ours, theirs = database.sqlite_file(target._url), database.sqlite_file(url)
    same = ours and theirs and ours.exists() and theirs.exists() and ours.samefile(theirs)
    if same or url == target._url:
        raise ValueError(f"{database.label(url)} is the database to merge into: name another to merge from.")


def merge(store: Store, runs: Iterable[WholeRun], *, copy_files: bool = False) -> Iterator[Merged]:
    """Take these runs in, and say of each what became of it.

    Raises:
        ValueError: the database cannot hold a run; those before it are in.
        OSError: the database cannot be written, or a file not be copied.
    """
    for given in runs:
        new = _told_apart(store, given)
        place = _copy_files(store, new) if copy_files else new.folder
        try:
            with store._write() as connection:
                how = _put(store, connection, new, place, moved=copy_files)
        except ValueError as error:
            raise ValueError(f"Run {new.id} cannot be taken in, nor what follows it: {error}") from error
        listed = any(not (place / file["path"]).exists() for file in new.artifact)
        yield Merged(new.id, given.id, how, without_files=copy_files and how != "kept" and listed)


def _told_apart(store: Store, new: WholeRun) -> WholeRun:
    """The run, under an id of its own if another run has its id: the same one however often it comes."""
    with store._read() as connection:
        created = connection.scalar(select(tables.run.c.created).where(tables.run.c.id == new.id))
    if created in (None, new.run["created"]):
        return new
    origin = f"{new.run['created'].isoformat()} {new.run['host']}"
    own = f"{new.id}-{hashlib.sha256(origin.encode()).hexdigest()[:8]}"
    return dataclasses.replace(new, run={**new.run, "id": own})


def _outcome(old: WholeRun | None, new: WholeRun) -> Literal["added", "same", "replaced", "kept"]:
    if old is None:
        return "added"
    if old.same(new):
        return "same"
    return "replaced" if _completeness(new) > _completeness(old) else "kept"


def _completeness(run: WholeRun) -> tuple[Any, ...]:
    count = len(run.stage) + len(run.measurement) + len(run.artifact)
    return run.run["state"] == "done", run.run["updated"], run.run["heartbeat"], count


def _put(store: Store, connection: Connection, new: WholeRun, place: Path, *, moved: bool) -> Any:
    # Whoever merges holds this row's lock until the end of the transaction, in any database.
    connection.execute(update(tables.version).values(version_num=tables.version.c.version_num))
    how = _outcome(rows.read(connection, new.id, store.folder), new)
    folder = _folder_column(store, place)
    if how in ("added", "replaced"):
        rows.write(connection, new, folder, replace=how == "replaced")
    elif how == "same" and moved:
        connection.execute(update(tables.run).where(tables.run.c.id == new.id).values(folder=folder))
    if how != "kept":
        store._summarise(connection, new.id)
    return how


def _folder_column(store: Store, place: Path) -> str:
    """Relative to the database's folder if it is in it, so that they can be moved together; else absolute."""
    return str(place.relative_to(store.folder) if place.is_relative_to(store.folder) else place)


def _copy_files(store: Store, new: WholeRun) -> Path:
    """Copy a run's folder beside this database's, unless it is there; returns where its files then are."""
    with store._read() as connection:
        outcome = _outcome(rows.read(connection, new.id, store.folder), new)
    target, replaced = store.folder / new.id, outcome == "replaced"
    if outcome == "kept":
        return new.folder
    if new.folder.is_relative_to(store.folder):
        return new.folder
    if not new.folder.is_dir():  # gone, and perhaps copied before
        return target if target.is_dir() and not replaced else new.folder
    if replaced and target.exists():  # the files of the version that is given up may be wanted yet
        target.rename(_free(target))
    part = target.with_name(f"{target.name}.part")
    if part.exists():
        shutil.rmtree(part)
    missing = [file for file in new.artifact if not (target / file["path"]).is_file()]
    if not target.exists():
        shutil.copytree(new.folder, part)
        part.rename(target)
    elif missing:
        shutil.copytree(new.folder, target, dirs_exist_ok=True)
    return target


def _free(path: Path) -> Path:
    number = 1
    while (other := path.with_name(f"{path.name}.replaced-{number}")).exists():
        number += 1
    return other
