"""What loaders take of a machine: its cores and its free memory, shared by those who run on it."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from stmbench.data import resources


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """16 cores and 8,000 free bytes, without control groups."""
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    monkeypatch.setattr(resources.os, "sched_getaffinity", lambda pid: range(16))
    monkeypatch.setattr(resources.psutil, "virtual_memory", lambda: SimpleNamespace(available=8000))
    monkeypatch.setattr(resources, "_CGROUPS", tmp_path)
    return monkeypatch


@pytest.mark.parametrize(
    ("workers", "device", "ranks", "expected"),
    [
        (-1, "cuda", 1, 15),
        (-1, "cuda:1", 4, 3),
        (-1, "cuda", 16, 1),
        (-1, "cpu", 1, 4),
        (-1, "cpu", 8, 1),
        (0, "cuda", 1, 0),
        (7, "cpu", 4, 7),
    ],
)
def test_processes(machine: pytest.MonkeyPatch, workers: int, device: str, ranks: int, expected: int) -> None:
    machine.setenv("LOCAL_WORLD_SIZE", str(ranks))
    assert resources.loader_processes(workers, device) == expected


def test_a_large_machine_is_not_filled_with_processes(machine: pytest.MonkeyPatch) -> None:
    machine.setattr(resources.os, "sched_getaffinity", lambda pid: range(256))
    assert resources.loader_processes(-1, "cuda") == resources.MOST_PROCESSES


def test_batches_are_made_ahead_by_their_size() -> None:
    batch = 128 * 3 * 224 * 224
    assert resources.batches_ahead(0, batch) is None
    assert resources.batches_ahead(4, batch // 128) == 4
    assert resources.batches_ahead(18, batch) == 3
    assert resources.batches_ahead(64, batch) == 2


def test_memory_is_half_of_what_is_free_shared_by_ranks(machine: pytest.MonkeyPatch) -> None:
    assert resources.memory_budget() == 4000
    machine.setenv("LOCAL_WORLD_SIZE", "4")
    assert resources.memory_budget() == 1000


@pytest.mark.parametrize("most", ["2000", "900", "max"])
def test_the_limits_of_control_groups_count(machine: pytest.MonkeyPatch, tmp_path: Path, most: str) -> None:
    """What the groups' files take of them can be dropped, and the narrowest limit holds."""
    job = tmp_path / "slurm" / "job"
    job.mkdir(parents=True)
    for folder, limit in ((job, most), (tmp_path / "slurm", "4000")):
        (folder / "memory.max").write_text(f"{limit}\n")
        (folder / "memory.current").write_text("1000\n")
        (folder / "memory.stat").write_text("anon 600\ninactive_file 400\n")
    own = tmp_path / "own"
    own.write_text("0::/slurm/job\n")
    machine.setattr(resources, "_OWN_GROUP", own)
    assert resources.memory_budget() == {"2000": 700, "900": 150, "max": 1700}[most]
