"""`stmbench submit`: options of the run and of Slurm, and mistakes found before anything is queued."""

from collections.abc import Callable
from pathlib import Path

import pytest

Invoke = Callable[..., tuple[int, str, str]]
pytest.importorskip("submitit")


@pytest.fixture
def given(tiny_recipe_file: Path, tiny_data: Path) -> list[str]:
    """A run, as options."""
    return ["--recipe", str(tiny_recipe_file), "--data", str(tiny_data), "--mixer", "pool"]


def test_options_of_the_run_may_stand_anywhere(invoke: Invoke, given: list[str], tmp_path: Path) -> None:
    words = " ".join([*given, "--set", "optimizer.lr=0.5"])
    starts = (
        f"starts on each node: python -m stmbench run {words} --device cpu --db runs/stmbench.db --resume"
    )
    slurm = ["--gpus", "0", "--time", "30", "--slurm", "qos=low", "--dry-run"]
    for arguments in ([*given, *slurm, "--set", "optimizer.lr=0.5"], [*slurm, "--", *words.split()]):
        code, out, err = invoke("submit", *arguments)
        assert (code, err) == (0, "")
        assert "#SBATCH --qos=low\n" in out
        assert "#SBATCH --time=30\n" in out
        assert starts in out
    assert not (tmp_path / "runs").exists()


def test_a_node_with_gpus_trains_on_cuda(invoke: Invoke, given: list[str]) -> None:
    options = ["--time", "30", "--gpus", "2", "--dry-run"]
    code, out, _ = invoke("submit", *given, *options)
    assert code == 0
    assert "--nproc-per-node 2 -m stmbench run" in out
    assert "--device cuda" in out


@pytest.mark.parametrize(
    ("arguments", "code", "line"),
    [
        (["--time", "30", "--gpus", "0", "--scale", "tinny"], 2, "Did you mean 'tiny'?"),
        (["--time", "30", "--nodes", "3"], 2, "16 images cannot be dealt out to 3 processes"),
        (["--time", "30", "--gpus", "0", "--slurm", "qos"], 2, "--slurm takes KEY=VALUE, not 'qos'."),
        (["--time", "30", "--gpus", "0", "--slurm", "qoss=low", "--dry-run"], 2, "'qoss'"),
        (["--time", "30", "--gpus", "0", "--seeds", "a"], 2, "--seeds takes whole numbers"),
        (["--time", "30", "--gpus", "0"], 1, "There is no Slurm here"),
    ],
)
def test_a_mistake_is_one_line(
    invoke: Invoke,
    given: list[str],
    arguments: list[str],
    code: int,
    line: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PATH", "")
    found, _, err = invoke("submit", *given, *arguments)
    assert found == code
    assert line in err
    assert len(err.strip().splitlines()) == 1


def test_a_job_that_is_queued_says_where_its_log_is(
    invoke: Invoke, given: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from stmbench import submit

    class Queued:
        job_id = "42"

        class paths:  # noqa: N801
            stdout = "runs/jobs/42/42_0_log.out"

    monkeypatch.setattr(submit, "submit", lambda job, asked, db: Queued)
    code, out, _ = invoke("submit", *given, "--time", "30", "--gpus", "0")
    assert code == 0
    assert "Job 42 is queued; its log: runs/jobs/42/42_0_log.out" in out
