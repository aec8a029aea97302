"""Which run stands for a fingerprint, who may make it, and how long runs like it took.

Two runs with the same fingerprint answer the same question, so that nobody needs the second. A run with
fewer stages than are wanted does not count, nor does an unfinished one of other hardware, which would
say of all its numbers that they are from there.
"""

from collections.abc import Collection, Iterable

from sqlalchemy import select, update

from stmbench.store import tables
from stmbench.store.records import NewRun, RunRecord, StageTime, State
from stmbench.store.statements import create, take_over
from stmbench.store.store import Store

NEWEST = 2000  # runs that times are looked up of
_ORDER: tuple[State, ...] = ("done", "running", "interrupted", "failed")


def standing(runs: Iterable[RunRecord], stages: Collection[str], hardware: str = "") -> RunRecord | None:
    """The run that is furthest, of equals the first; None if none counts. "" is any hardware."""
    wide = [run for run in runs if set(stages) <= set(run.stages)]
    here = [run for run in wide if run.state in ("done", "running") or hardware in ("", run.hardware)]
    return min(here, key=lambda run: _ORDER.index(run.state), default=None)


def claim(
    store: Store, new: NewRun, *, retry: bool = False, lost: Collection[str] = ()
) -> tuple[RunRecord, bool]:
    """The run that stands for this one, made if there is none, and whether it is now this process's.

    One that was interrupted is taken over, with `retry` one that failed too; those in `lost` do not count. Of
    several processes that claim the same run at once, one gets it.
    """
    runs = tables.run
    query = (
        select(runs).where(runs.c.fingerprint == new.fingerprint).order_by(runs.c.created.desc(), runs.c.id)
    )
    with store._write() as connection:
        # Whoever claims holds this row's lock until the end of the transaction, in any database.
        connection.execute(update(tables.version).values(version_num=tables.version.c.version_num))
        found = [store._run_record(row) for row in connection.execute(query).all() if row.id not in lost]
        run = standing(found, new.stages, new.hardware)
        if run and run.state != "interrupted" and not (retry and run.state == "failed"):
            return run, False
        if run:
            take_over(connection, run)
        run_id = run.id if run else create(connection, new)
    return store.run(run_id), True


def stage_times(store: Store, recipes: Collection[str]) -> list[StageTime]:
    """How long each finished stage took of the newest runs by recipes of these names."""
    runs, rows = tables.run.c, tables.stage.c
    some = select(runs.id).where(runs.recipe_name.in_(recipes)).order_by(runs.created.desc()).limit(NEWEST)
    like = (
        runs.mixer,
        runs.scale,
        runs.design,
        runs.recipe_name,
        runs.recipe_digest,
        runs.data_fingerprint,
        runs.hardware,
    )
    epochs = runs.recipe_values["schedule"]["epochs"].as_integer()
    query = select(*like, epochs, rows.name, rows.started, rows.ended).join(tables.run, runs.id == rows.run)
    query = query.where(rows.run.in_(some.subquery().select()), rows.state == "done")
    with store._read() as connection:
        return [
            StageTime._make((*like, (ended - started).total_seconds()))
            for *like, started, ended in connection.execute(query)
        ]
