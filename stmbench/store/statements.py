"""What happens within one transaction: statements over an open connection, for `Store` and its neighbours."""

import dataclasses
import difflib
import math
import re
import secrets
from collections import defaultdict
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, Table, insert, select, update

from stmbench.record import Measurement
from stmbench.store import database, process, tables
from stmbench.store.records import NewRun, RunRecord, State, Summary
from stmbench.store.summary import ALONE, NUMBERS, summaries


def create(connection: Connection, new: NewRun) -> str:
    now = database.now(connection)
    values = {f.name: getattr(new, f.name) for f in dataclasses.fields(NewRun)} | process.identity()
    for key, value in values.items():
        if isinstance(value, tuple):
            values[key] = list(value)
    run_id = _free_id(connection, _slug(new))
    connection.execute(
        insert(tables.run).values(
            id=run_id,
            folder=run_id,  # relative to ours, so that the results can be moved as a whole
            state="running",
            reason="",
            created=now,
            updated=now,
            heartbeat=now,
            **values,
        )
    )
    return run_id


def take_over(connection: Connection, run: RunRecord) -> None:
    now = database.now(connection)
    values = {"state": "running", "reason": "", "updated": now, "heartbeat": now}
    close_stages(connection, run.id, run.state, run.reason, run.heartbeat)
    update_run(connection, run.id, **values, **process.identity())


def take_back(connection: Connection, run_id: str) -> None:
    """A run that was taken for dead and yet beats is running, unless another process has taken it over."""
    rows, me = tables.run.c, process.identity()
    ours = [rows[column] == value for column, value in me.items()]
    query = update(tables.run).where(rows.id == run_id, rows.state == "interrupted", *ours)
    connection.execute(query.values(state="running", reason=""))


def _slug(new: NewRun) -> str:
    """The network's name, design and scale, of characters that are safe in the name of a folder anywhere."""
    design = "" if new.design == "unified" else new.design
    return re.sub(r"[^\w.]+", "-", "-".join(filter(None, (new.mixer, design, new.scale))))


def _free_id(connection: Connection, stem: str) -> str:
    taken = set(connection.scalars(select(tables.run.c.id).where(tables.run.c.id.startswith(stem))))
    while (run_id := f"{stem}-{secrets.token_hex(4)}") in taken:
        pass
    return run_id


def summaries_of(connection: Connection, run: RunRecord) -> Iterator[Summary]:
    if run.state != "done":
        return
    stages, names = ({key[i] for key in (*NUMBERS, *ALONE)} for i in (0, 1))
    of_run = tables.measurement.c.run == run.id
    found = measurements(connection, of_run, *final(sorted(stages), sorted(names)))[run.id]
    yield from summaries(run, sorted(found, key=lambda m: (m.stage, m.name, m.condition)))


def final(stages: Sequence[str], names: Sequence[str]) -> tuple[Any, ...]:
    rows = tables.measurement.c
    return rows.stage.in_(stages), rows.name.in_(names), rows.step == 0


def measurements(connection: Connection, *conditions: Any) -> defaultdict[str, list[Measurement]]:
    rows = tables.measurement.c
    query = select(
        rows.run, rows.stage, rows.name, rows.value, rows.unit, rows.condition, rows.step, rows.reason
    )
    found: defaultdict[str, list[Measurement]] = defaultdict(list)
    for run_id, stage, name, value, *rest in connection.execute(query.where(*conditions)):
        found[run_id].append(Measurement(stage, name, math.nan if value is None else value, *rest))
    return found


def batches(items: Sequence[str]) -> Iterator[Sequence[str]]:
    """A few hundred at a time: a statement takes only so many values, and a lock is to be short."""
    return (items[i : i + 500] for i in range(0, len(items), 500))


def by_prefix(connection: Connection, name: str) -> Row[Any]:
    ids = tables.run.c.id
    # Of the ids alone, which their index answers without reading the runs
    found = connection.scalars(select(ids).where(ids.startswith(name, autoescape=True)).order_by(ids)).all()
    if not found:
        near = difflib.get_close_matches(name, list(connection.scalars(select(ids))), n=1)
        hint = f"Did you mean '{near[0]}'?" if near else "`stmbench runs` lists them."
        raise ValueError(f"Unknown run '{name}'. {hint}")
    if len(found) > 1:
        several = ", ".join(found[:3]) + (", …" if len(found) > 3 else "")
        raise ValueError(f"'{name}' begins the ids of {len(found)} runs: {several}.")
    return connection.execute(select(tables.run).where(ids == found[0])).one()


def update_run(connection: Connection, run_id: str, **values: Any) -> None:
    done = connection.execute(update(tables.run).where(tables.run.c.id == run_id).values(values))
    assert done.rowcount == 1, f"no run {run_id}"


def close_stages(connection: Connection, run_id: str, state: State, reason: str, ended: datetime) -> None:
    rows = tables.stage.c
    connection.execute(
        update(tables.stage)
        .where(rows.run == run_id, rows.state == "running")
        .values(state=state, reason=reason, ended=ended)
    )


def put(connection: Connection, table: Table, key: dict[str, Any], values: dict[str, Any]) -> None:
    """Insert a row, or update the one with this key: in two steps, which every database understands."""
    same = [table.c[column] == value for column, value in key.items()]
    if connection.execute(update(table).where(*same).values(values)).rowcount == 0:
        connection.execute(insert(table).values(key | values))
