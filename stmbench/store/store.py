"""`Store`: every write to, and every read from, the results database.

Each write is its own transaction, committed when the method returns: a run that dies leaves every number
it had. All methods may be called from several threads and processes at once.
"""

import dataclasses
import hashlib
import itertools
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from sqlalchemy import (
    URL,
    ColumnElement,
    Connection,
    Engine,
    Row,
    delete,
    func,
    insert,
    select,
    update,
)

from stmbench.record import Artifact, Measurement
from stmbench.store import database, process, statements, tables
from stmbench.store.records import ArtifactRecord, NewRun, RunRecord, StageRecord, State, Summary


def open_store(url: str, *, create: bool = True) -> "Store":
    """Open the results at a path (an SQLite file) or any SQLAlchemy URL; an older schema is upgraded.

    With `create`, a database without results is given its tables, and an SQLite file its folder.

    Raises:
        ValueError: not a results database, one of a newer stmbench, or, without `create`, none yet.
        OSError: the database cannot be reached, read or written.
    """
    parsed = database.parse_url(url)
    file = database.sqlite_file(parsed)
    where = database.label(parsed)
    missing = f"No results at {where} yet. `stmbench run --mixer halo --stage all` makes some."
    if file is not None and not file.exists():
        if not create:
            raise ValueError(missing)
        _make_folder(file.parent)
    engine = database.connect(parsed)
    renew = False
    try:
        with database.clear_errors(parsed):
            schema = database.schema_of(engine)
            if schema is None and not create:
                raise ValueError(missing)
            if schema is None or schema < tables.SCHEMA:
                database.upgrade(engine)
                renew = schema is not None
            elif schema > tables.SCHEMA:
                raise database.newer(where, schema)
    except BaseException:
        engine.dispose()
        raise
    store = Store(engine, parsed, database.run_folder(parsed))
    if renew:
        store.refresh_summaries()
    return store


class Store:
    """An open results database; a context manager. `folder` is where its runs keep their files."""

    def __init__(self, engine: Engine, url: URL, folder: Path) -> None:
        self.folder = folder
        self._url = url
        self._engine = engine
        self._watch = process.Watch(self._now)
        self._writer = engine.execution_options(writes=True)

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close every connection."""
        self._engine.dispose()

    # Writing

    def create_run(self, new: NewRun) -> RunRecord:
        """Open a run that belongs to this process, `running`, with a short unique id and its folder's name.

        The folder itself is not made.
        """
        with self._write() as connection:
            run_id = statements.create(connection, new)
        return self.run(run_id)

    def reopen(self, run_id: str) -> RunRecord:
        """Take over a failed or interrupted run: `running`, and this process's.

        Raises:
            ValueError: it is done, or still running.
        """
        with self._write() as connection:
            row = connection.execute(select(tables.run).where(tables.run.c.id == run_id)).one()
            run = self._run_record(row)
            if run.state == "done":
                raise ValueError(f"Run {run_id} is done: nothing to resume.")
            if run.state == "running":
                raise ValueError(f"Run {run_id} is still running, as process {run.pid} on {run.host}.")
            statements.take_over(connection, run)
        return self.run(run_id)

    def beat(self, run_id: str) -> None:
        """Say that the run is alive; expected at least every few minutes while it is running."""
        with self._write() as connection:
            statements.update_run(connection, run_id, heartbeat=database.now(connection))
            statements.take_back(connection, run_id)

    def end_run(self, run_id: str, state: State, reason: str = "") -> None:
        """Close a run, and with it any stage it left open."""
        with self._write() as connection:
            now = database.now(connection)
            statements.close_stages(connection, run_id, state, reason, now)
            statements.update_run(connection, run_id, state=state, reason=reason, updated=now, heartbeat=now)
            self._summarise(connection, run_id)

    def refresh_summaries(self, run_ids: Sequence[str] | None = None) -> None:
        """Make the rows that leaderboards read again from the measurements, of these runs or of all."""
        if run_ids is None:
            run_ids = [row.id for row in self._fetch(select(tables.run.c.id))]
        for some in statements.batches(run_ids):
            with self._write() as connection:
                for run_id in some:
                    self._summarise(connection, run_id)

    def _summarise(self, connection: Connection, run_id: str) -> None:
        rows = tables.summary
        connection.execute(delete(rows).where(rows.c.run == run_id))
        run = self._run_record(connection.execute(select(tables.run).where(tables.run.c.id == run_id)).one())
        for way, summary in enumerate(statements.summaries_of(connection, run)):
            values = {**summary._asdict(), "way": way, "created": run.created}
            connection.execute(insert(rows).values(values))

    def start_stage(self, run_id: str, stage: str) -> None:
        """Open a stage, or open it again: its curves go on, its other numbers are taken anew."""
        rows = tables.measurement.c
        with self._write() as connection:
            now = database.now(connection)
            old = delete(tables.measurement).where(rows.run == run_id, rows.stage == stage, rows.step == 0)
            connection.execute(old)
            values = {"state": "running", "started": now, "ended": None, "reason": ""}
            statements.put(connection, tables.stage, {"run": run_id, "name": stage}, values)
            statements.update_run(connection, run_id, updated=now, heartbeat=now)

    def end_stage(self, run_id: str, stage: str, state: State = "done", reason: str = "") -> None:
        """Close a stage."""
        rows = tables.stage.c
        with self._write() as connection:
            now = database.now(connection)
            connection.execute(
                update(tables.stage)
                .where(rows.run == run_id, rows.name == stage)
                .values(state=state, ended=now, reason=reason)
            )
            statements.update_run(connection, run_id, updated=now, heartbeat=now)

    def record(self, run_id: str, measurement: Measurement) -> None:
        """Commit one number. The same stage, name, condition and step again replaces it."""
        m = measurement
        key = {"run": run_id, "stage": m.stage, "name": m.name, "condition": m.condition, "step": m.step}
        value = None if math.isnan(m.value) else float(m.value)
        with self._write() as connection:
            statements.put(
                connection, tables.measurement, key, {"value": value, "unit": m.unit, "reason": m.reason}
            )

    def attach(self, run_id: str, artifact: Artifact, folder: Path) -> ArtifactRecord:
        """Commit a file in the run's `folder`, with its size and SHA-256. The same path again replaces it.

        Raises:
            OSError: it cannot be read.
        """
        with artifact.path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            size = file.tell()
        path = artifact.path.relative_to(folder)
        record = ArtifactRecord(artifact.stage, artifact.kind, artifact.condition, path, size, digest)
        values = dataclasses.asdict(record)
        del values["path"]
        with self._write() as connection:
            statements.put(connection, tables.artifact, {"run": run_id, "path": path.as_posix()}, values)
        return record

    def reap(self) -> list[RunRecord]:
        """Write down as interrupted every run whose process is gone, and return those."""
        query = select(tables.run).where(tables.run.c.state == "running")
        reaped = []
        with self._write() as connection:
            for row in connection.execute(query).all():
                run = self._run_record(row)
                now = database.now(connection)
                if self._watch.is_from_the_future(run):  # counted from now on, or it would never be dead
                    statements.update_run(connection, run.id, heartbeat=now)
                elif run.state == "interrupted":
                    statements.close_stages(connection, run.id, run.state, run.reason, run.heartbeat)
                    statements.update_run(connection, run.id, state=run.state, reason=run.reason, updated=now)
                    reaped.append(run)
        return reaped

    # Reading

    def run(self, name: str) -> RunRecord:
        """The run with this id, or whose id alone begins so; ValueError names the nearest or the several."""
        rows = tables.run
        with self._read() as connection:
            row = connection.execute(select(rows).where(rows.c.id == name)).one_or_none()
            if row is None:
                row = statements.by_prefix(connection, name)
        return self._run_record(row)

    def runs(
        self, *, limit: int | None = None, where: ColumnElement[bool] | None = None, **equal: str
    ) -> list[RunRecord]:
        """Runs, newest first, whose columns equal what is given: ``runs(mixer="halo")``.

        `state` is the state as it reads, so that "interrupted" finds dead runs too. `where` is one more
        condition on the table of runs.
        """
        rows = tables.run
        wanted = equal.pop("state", None)
        query = select(rows).order_by(rows.c.created.desc(), rows.c.id)
        query = query.where(*(rows.c[column] == value for column, value in equal.items()))
        if where is not None:
            query = query.where(where)
        if wanted:  # dead runs still say that they are running
            query = query.where(
                rows.c.state.in_({wanted, "running"} if wanted == "interrupted" else {wanted})
            )
        with self._read() as connection:
            runs = (self._run_record(row) for row in connection.execute(query))
            return list(itertools.islice((run for run in runs if wanted in (None, run.state)), limit))

    def count(self) -> int:
        """How many runs there are, in whatever state."""
        with self._read() as connection:
            return connection.execute(select(func.count()).select_from(tables.run)).scalar_one()

    def named(self, run_ids: Sequence[str]) -> dict[str, RunRecord]:
        """These runs by their ids; one that is not there is left out."""
        rows = tables.run
        found = (self._fetch(select(rows).where(rows.c.id.in_(some))) for some in statements.batches(run_ids))
        return {row.id: self._run_record(row) for batch in found for row in batch}

    def summaries(self, run_ids: Sequence[str] | None = None) -> list[Summary]:
        """What leaderboards read of the finished runs, of these or of all, oldest first."""
        rows = tables.summary.c
        query = select(*(rows[name] for name in Summary._fields)).order_by(rows.created, rows.run, rows.way)
        if run_ids is not None:
            query = query.where(rows.run.in_(run_ids))
        return [Summary._make(row) for row in self._fetch(query)]

    def stages(self, run_id: str) -> list[StageRecord]:
        """The stages a run has begun, in the order in which it did."""
        rows = tables.stage.c
        run = self.run(run_id)
        query = select(rows.name, rows.state, rows.started, rows.ended, rows.reason)
        query = query.where(rows.run == run_id).order_by(rows.started, rows.name)
        stages = [StageRecord(*row) for row in self._fetch(query)]
        if run.state == "running":
            return stages
        closed = {"state": run.state, "reason": run.reason}
        return [dataclasses.replace(s, **closed) if s.state == "running" else s for s in stages]

    def measurements(self, run_id: str) -> list[Measurement]:
        """Every number of a run, in the order of its stages, then by name, condition and step."""
        order = {stage.name: i for i, stage in enumerate(self.stages(run_id))}
        with self._read() as connection:
            found = statements.measurements(connection, tables.measurement.c.run == run_id)[run_id]
        return sorted(
            found, key=lambda m: (order.get(m.stage, len(order)), m.stage, m.name, m.condition, m.step)
        )

    def artifacts(self, run_id: str) -> list[ArtifactRecord]:
        """The files of a run, by path."""
        return self._artifacts(tables.artifact.c.run == run_id)[run_id]

    def files(self, stage: str, kind: str) -> dict[str, list[ArtifactRecord]]:
        """The files of this kind that a stage of any run left, by run id and path; one query."""
        rows = tables.artifact.c
        return self._artifacts(rows.stage == stage, rows.kind == kind)

    def headline(self, stages: Sequence[str], names: Sequence[str]) -> dict[str, list[Measurement]]:
        """The final numbers (step 0) with these names that these stages took, by run id; one query."""
        with self._read() as connection:
            return statements.measurements(connection, *statements.final(stages, names))

    def ceilings(self, host: str, hardware: str) -> dict[tuple[str, str], float]:
        """The most that any run on this machine has measured its device to reach, by name and condition."""
        rows, runs = tables.measurement.c, tables.run.c
        query = select(rows.name, rows.condition, func.max(rows.value)).join(tables.run, runs.id == rows.run)
        query = query.where(runs.host == host, runs.hardware == hardware, rows.stage == "profile")
        query = query.where(rows.name.in_(("ceiling.matmul", "ceiling.copy")), rows.value.is_not(None))
        return {
            (name, at): value for name, at, value in self._fetch(query.group_by(rows.name, rows.condition))
        }

    def _artifacts(self, *conditions: Any) -> defaultdict[str, list[ArtifactRecord]]:
        rows = tables.artifact.c
        query = select(rows.run, rows.stage, rows.kind, rows.condition, rows.path, rows.bytes, rows.sha256)
        found: defaultdict[str, list[ArtifactRecord]] = defaultdict(list)
        for run_id, stage, kind, at, path, *rest in self._fetch(query.where(*conditions).order_by(rows.path)):
            found[run_id].append(ArtifactRecord(stage, kind, at, Path(path), *rest))
        return found

    def _fetch(self, query: Any) -> Sequence[Any]:
        with self._read() as connection:
            return connection.execute(query).all()

    @contextmanager
    def _read(self) -> Iterator[Connection]:
        with database.clear_errors(self._url), self._engine.connect() as connection:
            yield connection

    @contextmanager
    def _write(self) -> Iterator[Connection]:
        with database.clear_errors(self._url), self._writer.begin() as connection:
            yield connection

    def _now(self) -> datetime:
        with self._read() as connection:
            return database.now(connection)

    def _run_record(self, row: Row[Any]) -> RunRecord:
        values = dict(row._mapping)
        values["folder"] = self.folder / values["folder"]
        run = RunRecord(**values)
        if run.state == "running" and (reason := self._watch.why_dead(run)):
            return dataclasses.replace(run, state="interrupted", reason=reason)
        return run


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"Cannot make the folder {folder} for results: {error.strerror}.") from error
