"""Which runs of a damaged SQLite file are safe, what the others have lost, and all that is left of them.

A run that lost a stage or numbers of one reads `interrupted`, and so does that stage: `stmbench resume` takes
it again. One whose own row is lost reads `failed`. Neither is ranked.

What cannot be found: a page that reads without an error, and whose rows are of the right kind, and yet is not
what was written last.
"""

import re
import sqlite3
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import JSON, Boolean, Double, Integer, String

from stmbench.store import backup, merge, pages, rows, tables
from stmbench.store.rows import Row, WholeRun
from stmbench.store.store import open_store

_KIND = {"stage": "stage", "artifact": "file"}
_AN_ID = re.compile(r"[\w.-]{1,80}")  # of a run whose own row is lost; else it is rubbish
_LISTS = ("stages", "overrides", "argv")


@dataclass(slots=True)
class Damage:
    """What a damaged database has kept."""

    safe: list[str] = field(default_factory=list)  # runs of which every row was read
    lost: dict[str, list[str]] = field(default_factory=dict)  # of the others, what is missing
    unnamed: list[str] = field(default_factory=list)  # tables that lost rows of which nobody knows whose


def salvage(file: Path, damage: Damage) -> Iterator[WholeRun]:
    """Every run of which anything can be read, as far as it can; `damage` is filled on the way.

    Raises:
        OSError: not even the list of tables can be read.
    """
    with pages.opened(file) as connection:
        wreck = _Wreck(connection)
        damage.unnamed += wreck.unnamed
        for run_id in wreck.ids:
            yield wreck.whole(run_id, file.absolute().parent)
            if lost := wreck.lost.get(run_id):
                damage.lost[run_id] = lost
            else:
                damage.safe.append(run_id)


def examine(file: Path, copy: Path | None = None) -> Damage:
    """What a damaged database has kept; with `copy`, copied to a new database there, run by run.

    Raises:
        ValueError: there is a file at `copy` already.
        OSError: not even the list of tables can be read, or the copy not be written.
    """
    damage = Damage()
    if copy is None:
        for _ in salvage(file, damage):
            pass
        return damage
    with backup.new_file(copy) as part, open_store(str(part)) as store:
        for _ in merge.merge(store, salvage(file, damage)):
            pass
    return damage


class _Wreck:
    """The file's runs, stages and files in memory; numbers are read run by run."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.connection = connection
        self.lost: defaultdict[str, list[str]] = defaultdict(list)
        self.unnamed: list[str] = []
        self._runs = {row["id"]: row for row in self._numbered("run")}
        self._parts: dict[str, defaultdict[str, list[Row]]] = {}
        for name in _KIND:
            self._parts[name] = defaultdict(list)
            for row in self._numbered(name):
                self._parts[name][row["run"]].append(row)
        measured, _ = pages.from_both_ends(connection, "SELECT DISTINCT run FROM measurement", ["run"])
        parts = [run for part in self._parts.values() for run in part]
        named = {*self.lost, *parts, *(row[0] for row in measured)} - self._runs.keys()
        self.ids = [*self._runs, *sorted(i for i in named if isinstance(i, str) and _AN_ID.fullmatch(i))]
        self._suspects = pages.suspects(connection, tables.measurement, self.ids)
        self._kinds = self._known_kinds()

    def whole(self, run_id: str, folder: Path) -> WholeRun:
        numbers, broken = self._numbers(run_id)
        lost = self.lost[run_id]
        lost += [f"numbers of stage {stage}" for stage in broken]
        lost += [f"stage {stage}" for stage in self._stages_gone(run_id)]
        run, stages = self._runs.get(run_id), self._parts["stage"][run_id]
        if run is None:
            lost.insert(0, "its own row (recipe, data, environment)")
            run = _placeholder(run_id, stages)
        elif lost:
            run = {**run, "state": "interrupted"}
        if lost:
            run = {**run, "reason": f"salvaged from a damaged database without {', '.join(lost)}"}
        again = {"state": "interrupted", "reason": "its numbers were damaged"}
        stages = [{**row, **again} if row["name"] in broken else row for row in stages]
        parts = {"stage": stages, "measurement": numbers, "artifact": self._parts["artifact"][run_id]}
        return rows.whole(folder, run, parts)

    def _numbered(self, name: str) -> list[Row]:
        found = pages.numbered(self.connection, tables.metadata.tables[name])
        for run_id, *rest in found.lost:
            self.lost[run_id] += [f"{_KIND[name]} {part}" for part in rest]
        if not found.all_named:
            self.unnamed.append(name)
        return found.rows

    def _stages_gone(self, run_id: str) -> list[str]:
        """The stages that a finished run must have had, where the index does not tell."""
        run = self._runs.get(run_id)
        if "stage" not in self.unnamed or run is None or run["state"] != "done":
            return []
        there = {row["name"] for row in self._parts["stage"][run_id]}
        return [
            name for name in run["stages"] if name not in there and f"stage {name}" not in self.lost[run_id]
        ]

    def _known_kinds(self) -> set[tuple[str, str]]:
        """Stages and names that any run has numbers of."""
        query, kinds = "SELECT DISTINCT stage, name FROM measurement WHERE run = ?", set()
        for run_id in self.ids:
            found, _ = pages.from_both_ends(self.connection, query, ["stage", "name"], [run_id])
            kinds.update(found)
        return kinds

    def _numbers(self, run_id: str) -> tuple[list[Row], list[str]]:
        """The measurements of a run that can be read, and the stages that lost some."""
        found, whole = pages.measured(self.connection, tables.measurement, run=run_id)
        if whole and run_id not in self._suspects:
            return found, []
        broken = set()
        for stage, name in sorted(self._kinds):
            kind = {"run": run_id, "stage": stage, "name": name}
            more, whole = pages.measured(self.connection, tables.measurement, **kind)
            found += more
            if not whole:
                broken.add(stage)
        own = {row["name"] for row in self._parts["stage"][run_id]}
        own |= set(self._runs.get(run_id, {}).get("stages", ()))
        key = ("stage", "name", "condition", "step")
        once = {tuple(row[part] for part in key): row for row in found}
        return list(once.values()), sorted(broken & own or broken or own)


def _placeholder(run_id: str, stages: list[Row]) -> Row:
    """A row in the place of the one that is lost: nothing but the id, and when its first stage began."""
    began = min((row["started"] for row in stages), default=datetime.fromtimestamp(0, UTC))
    empty: Row = {}
    for column in tables.run.columns:
        kind: Any = column.type
        values = {JSON: {}, Boolean: False, Integer: 0, Double: 0.0, String: ""}
        empty[column.name] = next(
            (value for type_, value in values.items() if isinstance(kind, type_)), began
        )
    empty |= {name: [] for name in _LISTS}
    return {
        **empty,
        "id": run_id,
        "folder": run_id,
        "state": "failed",
        "stages": [row["name"] for row in stages],
    }
