"""Eight processes that write at once: nothing is lost, nothing is refused."""

import importlib
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))  # for the processes it starts, too
bench_writers = importlib.import_module("bench_writers")


@pytest.mark.parametrize("each", [250, pytest.param(1000, marks=pytest.mark.slow)])
def test_eight_writers_lose_nothing(tmp_path: Path, each: int) -> None:
    result = bench_writers.measure(str(tmp_path / "results.db"), 8, each)
    assert (result.kept, result.refused) == (8 * each, [])


@pytest.mark.slow
def test_nor_do_they_on_postgres(new_postgres: Callable[[], str]) -> None:
    result = bench_writers.measure(new_postgres(), 8, 1000)
    assert (result.kept, result.refused) == (8000, [])
