"""Checkpoints: the last one, the one before it, and what is done about a damaged one."""

from pathlib import Path

import pytest
import torch

from stmbench.training import checkpoints


def test_the_last_and_the_one_before_are_kept(tmp_path: Path) -> None:
    assert checkpoints.load(tmp_path, "cpu") == (None, "")
    for epoch in (1, 2, 3):
        checkpoints.save(tmp_path, {"epoch": epoch, "weight": torch.ones(3)})
    assert sorted(path.name for path in tmp_path.iterdir()) == [checkpoints.BEFORE, checkpoints.LAST]
    assert checkpoints.load(tmp_path, "cpu")[0]["epoch"] == 3
    (tmp_path / checkpoints.LAST).unlink()
    assert checkpoints.load(tmp_path, "cpu")[0]["epoch"] == 2


@pytest.mark.parametrize("left", [0, 10, 0.5, -1])
def test_a_truncated_one_is_recognised_and_the_one_before_is_used(tmp_path: Path, left: float) -> None:
    for epoch in (1, 2):
        checkpoints.save(tmp_path, {"epoch": epoch, "weight": torch.randn(1000)})
    path = tmp_path / checkpoints.LAST
    whole = path.read_bytes()
    path.write_bytes(whole[: int(left * len(whole)) if isinstance(left, float) else left])
    state, said = checkpoints.load(tmp_path, "cpu")
    assert state["epoch"] == 1
    assert str(path) in said
    assert "going on from the one before" in said


def test_without_one_before_it_a_damaged_one_ends_the_run(tmp_path: Path) -> None:
    (tmp_path / checkpoints.LAST).write_bytes(b"half of a checkpoi")
    with pytest.raises(RuntimeError, match=r"checkpoint\.pt cannot be read .*: start a new run"):
        checkpoints.load(tmp_path, "cpu")


def test_a_full_disk_leaves_both_as_they_were(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for epoch in (1, 2):
        checkpoints.save(tmp_path, {"epoch": epoch})
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints, "write_whole", full)
    with pytest.raises(OSError, match="No space"):
        checkpoints.save(tmp_path, {"epoch": 3})
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
