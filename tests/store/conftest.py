"""Fixtures of the store: an empty database of each kind that is supported, fresh for each test."""

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import postgres_server
import pytest
from sqlalchemy import create_engine

from stmbench.store import Store, open_store

_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """The URL of a PostgreSQL server of this session's own (each worker of pytest-xdist has one)."""
    if reason := postgres_server.missing():
        pytest.skip(reason)
    with postgres_server.running() as url:
        yield url


@pytest.fixture
def new_postgres(postgres: str) -> Iterator[Callable[[], str]]:
    """Makes empty databases on that server: schemas, which come and go faster."""
    engine = create_engine(postgres, isolation_level="AUTOCOMMIT")
    made: list[str] = []

    def new() -> str:
        made.append(f"test{next(_numbers)}")
        with engine.connect() as connection:
            connection.exec_driver_sql(f"CREATE SCHEMA {made[-1]}")
        return f"{postgres}?options=-csearch_path%3D{made[-1]}"

    yield new
    with engine.connect() as connection:
        for name in made:
            connection.exec_driver_sql(f"DROP SCHEMA {name} CASCADE")
    engine.dispose()


@pytest.fixture(params=["sqlite", "postgres"])
def new_url(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], str]:
    """Makes URLs of empty databases, of each kind in turn."""
    if request.param == "postgres":
        return request.getfixturevalue("new_postgres")
    return lambda: str(tmp_path / f"database{next(_numbers)}" / "results.db")


@pytest.fixture
def url(new_url: Callable[[], str]) -> str:
    return new_url()


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    with open_store(url) as store:
        yield store
