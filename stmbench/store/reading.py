"""Chosen numbers of many runs: what columns of leaderboards are made of. Nothing else is loaded."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from sqlalchemy import select

from stmbench import catalog
from stmbench.store import tables
from stmbench.store.statements import batches
from stmbench.store.store import Store

_ROWS = tables.measurement.c


class Kind(NamedTuple):
    """What measurements of many runs have in common."""

    stage: str
    name: str
    condition: str
    unit: str


def kinds(store: Store, runs: Sequence[str], names: Sequence[str]) -> list[Kind]:
    """The final numbers (step 0) with these names that these runs have, but for their values."""
    query = select(_ROWS.stage, _ROWS.name, _ROWS.condition, _ROWS.unit).distinct()
    query = query.where(_ROWS.stage.in_(_stages(store)), _ROWS.name.in_(names), _ROWS.step == 0)
    query = query.where(_ROWS.value.is_not(None))
    return sorted({Kind._make(row) for row in _in_batches(store, query, runs)})


def values(store: Store, runs: Sequence[str], kind: Kind) -> Iterator[tuple[str, float]]:
    """The number of this kind of each of these runs that has it."""
    query = select(_ROWS.run, _ROWS.value).where(_ROWS.stage == kind.stage, _ROWS.name == kind.name)
    query = query.where(_ROWS.condition == kind.condition, _ROWS.step == 0, _ROWS.value.is_not(None))
    return ((run, value) for run, value in _in_batches(store, query, runs))


def names(store: Store, runs: Sequence[str]) -> set[tuple[str, str]]:
    """The stage and name of every final number of these runs."""
    query = select(_ROWS.stage, _ROWS.name).distinct().where(_ROWS.step == 0, _ROWS.value.is_not(None))
    return {(stage, name) for stage, name in _in_batches(store, query, runs)}


def _stages(store: Store) -> list[str]:
    """Every stage there is a number of: named, they let the primary key find the numbers' names."""
    with store._read() as connection:
        begun = connection.scalars(select(tables.stage.c.name).distinct())
        return sorted({*begun, *catalog.stages()})


def _in_batches(store: Store, query: Any, runs: Sequence[str]) -> Iterator[Any]:
    with store._read() as connection:
        for some in batches(runs):
            yield from connection.execute(query.where(_ROWS.run.in_(some))).all()
