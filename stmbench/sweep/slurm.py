"""Runs as Slurm jobs, through submitit: one job a run, each against the shared database.

Jobs outlive whoever submitted them. Which job a run has is kept in a file beside the results, so that the
sweep, started again, watches what is queued instead of submitting it twice; should that file be lost, the
second job finds the run claimed and ends.
"""

import pickle
import tempfile
import time
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stmbench.store import Store
from stmbench.sweep import cluster
from stmbench.sweep.file import Sweep
from stmbench.sweep.planning import Item
from stmbench.sweep.work import Ended, Outcome, Task, Told, work

if TYPE_CHECKING:
    import submitit

_SHARED = {
    "time": "timeout_min",
    "gpus": "gpus_per_node",
    "cpus": "cpus_per_task",
    "memory_gb": "mem_gb",
    "nodes": "nodes",
    "tasks_per_node": "tasks_per_node",
}
Job = Any  # submitit.Job[Outcome]


class Work:
    """`work` as submitit calls it: a job that is preempted or out of time is queued again, and goes on."""

    def __call__(self, task: Task) -> Outcome:
        return work(task)

    def checkpoint(self, task: Task) -> "submitit.helpers.DelayedSubmission":
        """What the job is to be queued again with; the run was closed as interrupted by then."""
        import submitit

        return submitit.helpers.DelayedSubmission(self, task)


def follow(
    items: Sequence[Item], sweep: Sweep, store: Store, db: str, *, retry: bool, jobs: int | None
) -> Generator[Told | Ended, None, None]:
    """Submit what is not queued yet, and tell of all; whoever stops listening leaves the jobs queued."""
    folder = store.folder / "sweeps" / sweep.name
    executor = _executor(folder, sweep, jobs)
    queued = {i: job for i, item in enumerate(items) if (job := _queued(_file(folder, item)))}
    waiting = [i for i in range(len(items)) if i not in queued]
    tasks = [items[i].task(db, retry=retry) for i in waiting]
    submitted = executor.map_array(Work(), tasks) if tasks else []
    for i, job in zip(waiting, submitted, strict=True):
        _file(folder, items[i]).write_bytes(pickle.dumps(job))
        queued[i] = job
    for event in cluster.watch(items, {i: _asking(job) for i, job in queued.items()}, store, time.sleep):
        if isinstance(event, Ended):
            _file(folder, items[event.task]).unlink(missing_ok=True)
        yield event


def check(sweep: Sweep, jobs: int | None) -> None:
    """ValueError for what a job cannot be given; RuntimeError where there is no Slurm."""
    with tempfile.TemporaryDirectory() as folder:
        _executor(Path(folder), sweep, jobs)


def _executor(folder: Path, sweep: Sweep, jobs: int | None) -> "submitit.AutoExecutor":
    options = dict(sweep.slurm)
    if "time" not in options:
        raise ValueError("[slurm] needs time = MINUTES: how long the job of one run may take.")
    if jobs:
        options["array_parallelism"] = jobs
    return cluster_executor(folder / "%j", f"stmbench-{sweep.name}", options)


def cluster_executor(
    folder: Path, name: str, options: Mapping[str, Any], *, ends: int = 3
) -> "submitit.AutoExecutor":
    """What submits jobs that are given `options`, in the words of a sweep's [slurm] section.

    A job whose time runs out is queued again up to `ends` times.

    Raises:
        ValueError: submitit is missing, or a job cannot have such an option.
        RuntimeError: there is no Slurm here.
    """
    submitit = _submitit()
    limits = {f"{cluster}_max_num_timeout": ends for cluster in ("slurm", "local")}
    try:
        made = submitit.AutoExecutor(folder, cluster=options.get("cluster", "slurm"), **limits)
    except RuntimeError:
        raise RuntimeError("There is no Slurm here (no `srun`): submit from a machine that has it.") from None
    _update(made, {"name": name, **_named(options)})
    return made


def script(folder: Path, name: str, options: Mapping[str, Any]) -> str:
    """The sbatch script that would be submitted, whether there is Slurm here or not.

    Raises:
        ValueError: as `cluster_executor`.
    """

    class Shown(_submitit().SlurmExecutor):
        @classmethod
        def affinity(cls) -> int:  # it looks for Slurm here, which nothing is asked of
            return 1

    with tempfile.TemporaryDirectory() as scratch:
        made = Shown(scratch)
        named = {key.removeprefix("slurm_"): value for key, value in _named(options).items()}
        _update(made, made._convert_parameters({"name": name, **named}))
        made.folder = folder
        return made._make_submission_file_text(made._submitit_command_str, "")


def _submitit() -> Any:
    try:
        import submitit
    except ModuleNotFoundError:
        raise ValueError("Slurm jobs need submitit: pip install 'stmbench[slurm]'.") from None
    return submitit


def _named(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options under submitit's names."""
    return {_SHARED.get(key, f"slurm_{key}"): value for key, value in options.items() if key != "cluster"}


def _update(made: Any, named: Mapping[str, Any]) -> None:
    try:
        made.update_parameters(**named)
    except (NameError, AssertionError, TypeError, ValueError) as error:
        raise ValueError(f"What Slurm is asked for: {str(error).splitlines()[0]}") from None


def _file(folder: Path, item: Item) -> Path:
    return folder / f"{item.fingerprint[:16]}.job"


def _queued(file: Path) -> Job | None:
    """The job that was submitted for a run and has not ended yet."""
    if not file.is_file():
        return None
    try:
        job: Job = pickle.loads(file.read_bytes())
    except (EOFError, pickle.UnpicklingError, AttributeError, ImportError):
        return None  # half written, or by another version of submitit
    return None if job.done(force_check=True) else job


def _asking(job: Job) -> cluster.Ask:
    def ask() -> Outcome | None:
        if not job.done():
            return None
        try:
            return job.result()
        except Exception as error:  # whatever the cluster did to it
            return Outcome("failed", reason=f"job {job.job_id}: {' '.join(str(error).split())}")

    return ask
