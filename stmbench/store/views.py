"""The views, read row by row: the SQL interface (docs/database.md) that `stmbench export` hands out.

Rows come in the order of their runs' ids, a few thousand in memory at once, however many there are.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any

from sqlalchemy import JSON, ColumnElement, Select, Table, column, select
from sqlalchemy.sql.expression import TableClause
from sqlalchemy.sql.expression import table as view

from stmbench.reading import where
from stmbench.store import tables
from stmbench.store.store import Store

_BATCH = 5000  # rows in memory at once
_CALLED = {
    "run": "id",
    "stage": "name",
    "recipe": "recipe_name",
    "data": "data_name",
}  # otherwise in the tables


def _view(name: str, of: Table, columns: str) -> TableClause:
    types = {key: of.c[key if key in of.c else _CALLED[key]].type for key in columns.split()}
    return view(name, *(column(key, kind) for key, kind in types.items()))


_RUNS = _view(
    "runs_v1",
    tables.run,
    "run state reason created updated mixer scale design seed recipe recipe_digest data data_fingerprint "
    "weights weights_sha256 backend device hardware precision threads host git_commit git_dirty fingerprint "
    "folder overrides recipe_values versions",
)
_VIEWS = {
    "measurements": _view(
        "measurements_v1", tables.measurement, "run stage name condition step value unit reason"
    ),
    "runs": _RUNS,
    "stages": _view("stages_v1", tables.stage, "run stage state started ended reason"),
    "files": _view("files_v1", tables.artifact, "run stage kind condition path bytes sha256"),
}
_ORDER = {"measurements": "stage name condition step", "runs": "", "stages": "stage", "files": "path"}
_BESIDE = ("mixer", "scale", "design", "seed", "weights", "recipe", "data", "device", "hardware", "precision")
TABLES = tuple(_VIEWS)


def columns(name: str) -> dict[str, type]:
    """The columns that `rows` gives of a table, in their order, and the types of their values."""
    return {column.name: _python(column) for column in _select(name).selected_columns}


def fields(name: str) -> dict[str, type]:
    """What a filter of a table may name: its own columns, and those of its rows' runs."""
    every = {column.name: column for view in (_RUNS, _VIEWS[name]) for column in view.c}
    kinds = {key: _python(column) for key, column in every.items() if not isinstance(column.type, JSON)}
    return {key: float if kind is int else kind for key, kind in kinds.items()}


def of_runs(text: str | None) -> ColumnElement[bool] | None:
    """The condition on the table of runs that a filter means.

    Not by their state, which is more than what is written there: a dead run still says that it is running.

    Raises:
        ValueError: it cannot be read, names an unknown field, or their state.
    """
    if text is None:
        return None
    found, columns = where.parse(text, fields("runs")), tables.run.c
    if found.fields & {"state", "reason"}:
        raise ValueError("Runs are not filtered by their state: `stmbench runs` has --state for it.")
    return found.clause(lambda key: columns[key if key in columns else _CALLED[key]])


@contextmanager
def rows(
    store: Store, name: str, condition: where.Expression | None = None
) -> Iterator[Iterator[Sequence[Sequence[Any]]]]:
    """Batches of a table's rows, of those for which the condition on its `fields` holds."""
    query = _select(name)
    if condition is not None:
        own = _VIEWS[name].c
        query = query.where(condition.clause(lambda key: own[key] if key in own else _RUNS.c[key]))
    with store._read() as connection:
        yield connection.execution_options(yield_per=_BATCH).execute(query).partitions()


def _select(name: str) -> Select[Any]:
    """The rows of a view, each with the facts of its run that it is read by."""
    own = _VIEWS[name]
    order = [own.c[key] for key in ("run", *_ORDER[name].split())]
    if own is _RUNS:
        return select(_RUNS).order_by(*order)
    beside = [_RUNS.c[key] for key in _BESIDE]
    query = select(own.c.run, *beside, *(each for each in own.c if each.name != "run"))
    return query.join_from(own, _RUNS, _RUNS.c.run == own.c.run).order_by(*order)


def _python(of: ColumnElement[Any]) -> Any:
    return datetime if isinstance(of.type, tables.UTCDateTime) else of.type.python_type
