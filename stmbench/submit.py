"""One `stmbench run` as a Slurm job, through submitit: on one node or several, queued again until it is done.

On each node the job starts the run as a child process, through torchrun where there is more than one process.
The signal that Slurm sends before the job's time is over, or before it is preempted, is passed on as SIGTERM:
the run writes a checkpoint and ends, and the job is queued again, to go on from there by ``run --resume``.
"""

import math
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stmbench.store import database

if TYPE_CHECKING:
    import submitit

POLL_S = 0.5
WARNED_S = 120  # how long before its end Slurm is asked to warn a job
PATIENCE_S = 90.0  # for a run that was told to end; torchrun gives its processes 30 s
SETTLED_S = 600.0  # after which nobody meant anything by SIGTERM; Slurm kills a job long before
ENDS = 100  # how often a job's time may run out before it is not queued again


@dataclass(frozen=True, kw_only=True)
class Training:
    """The run as submitit calls it, once on every node.

    `words` are what Python is started with (``-m stmbench run ...``), and `folder` is where; `processes` are
    those of each node.
    """

    words: Sequence[str]
    folder: str
    nodes: int = 1
    processes: int = 1

    def __call__(self) -> None:
        """Wait for the run's end, or for a signal; RuntimeError if it fails."""
        import submitit

        heard: list[int] = []
        warning = submitit.JobEnvironment._usr_sig()
        requeue = signal.getsignal(warning)  # submitit's
        for number in (warning, signal.SIGTERM):
            signal.signal(number, lambda number, _: heard.append(number))
        child = subprocess.Popen(self.command(), cwd=self.folder, preexec_fn=_deaf)
        code = _wait(child, heard)
        if code == 0:
            return
        if heard and warning not in heard:
            # SIGTERM comes before a job is preempted, and also when somebody cancels it, which must not come
            # back: what follows tells.
            _until(SETTLED_S, lambda: warning in heard)
        if warning in heard:
            assert callable(requeue)
            requeue(warning, None)  # on the first node the job is queued again, and this process ends
        else:
            raise RuntimeError(f"`stmbench run` ended with exit code {code}; its log says why.")

    def checkpoint(self) -> "submitit.helpers.DelayedSubmission":
        """What the job is to be queued again with: the same, for the run knows how far it is."""
        import submitit

        return submitit.helpers.DelayedSubmission(self)

    def command(self) -> list[str]:
        """What is started on this node, inside the job."""
        return [sys.executable, *self.launcher(_rendezvous() if self.nodes > 1 else []), *self.words]

    def launcher(self, rendezvous: Sequence[str]) -> list[str]:
        """torchrun and what it is told, where there is more than one process."""
        if self.nodes * self.processes == 1:
            return []
        places = ["--nnodes", str(self.nodes), *rendezvous] if self.nodes > 1 else ["--standalone"]
        return ["-m", "torch.distributed.run", *places, "--nproc-per-node", str(self.processes)]


def _rendezvous() -> list[str]:
    """Where all nodes of the job meet: each finds the same place by itself."""
    import submitit

    job = submitit.JobEnvironment()
    port = 20_000 + int(job.raw_job_id) % 20_000  # two jobs on one node meet at different ports
    place = f"{job.hostnames[0]}:{port}"
    return ["--rdzv-backend", "c10d", "--rdzv-endpoint", place, "--rdzv-id", job.raw_job_id]


def _deaf() -> None:
    """Slurm warns every process of a job; the run hears it from us alone, and torchrun would die of it."""
    import submitit

    signal.signal(submitit.JobEnvironment._usr_sig(), signal.SIG_IGN)


def _wait(child: "subprocess.Popen[bytes]", heard: Sequence[int]) -> int:
    """The exit code of the child, which is told to end once anything was heard."""
    _until(math.inf, lambda: heard or child.poll() is not None)
    if child.poll() is None:
        child.terminate()
        _until(PATIENCE_S, lambda: child.poll() is not None)
        child.kill()
    return child.wait()


def _until(seconds: float, happened: Callable[[], object]) -> None:
    """Look now and then whether it has happened, for so long at most; signals are heard between looks."""
    end = time.monotonic() + seconds
    while not happened() and time.monotonic() < end:
        time.sleep(POLL_S)


def training(run: Sequence[str], *, nodes: int, gpus: int) -> Training:
    """The job of ``stmbench run RUN...``, started where we are: a process for each GPU, or one without."""
    words = ("-m", "stmbench", "run", *run, "--resume")
    return Training(words=words, folder=str(Path.cwd()), nodes=nodes, processes=max(gpus, 1))


def options(given: Mapping[str, Any], *, nodes: int, gpus: int) -> dict[str, Any]:
    """What Slurm is asked for, in the words of a sweep's [slurm] section; `given` wins."""
    asked: dict[str, Any] = {"nodes": nodes, "tasks_per_node": 1, "signal_delay_s": WARNED_S}
    asked["additional_parameters"] = {"requeue": True}  # by Slurm itself, where it preempts without a warning
    return asked | ({"gpus": gpus} if gpus else {}) | dict(given)


def submit(job: Training, asked: Mapping[str, Any], db: str) -> "submitit.Job[None]":
    """Queue the job; what it prints goes to files beside the results.

    Raises:
        ValueError: submitit is missing, or an option that a job cannot have.
        RuntimeError: there is no Slurm here.
    """
    from stmbench.sweep import slurm  # and torch with it, which the process that waits needs not

    return slurm.cluster_executor(folder(db), "stmbench", asked, ends=ENDS).submit(job)


def script(job: Training, asked: Mapping[str, Any], db: str) -> str:
    """The sbatch script that `submit` would submit, and what it comes to start on each node.

    Raises:
        ValueError: as `submit`.
    """
    from stmbench.sweep import slurm

    text = slurm.script(folder(db), "stmbench", asked)
    return f"{text}\n# starts on each node: {shlex.join(['python', *job.launcher(['...']), *job.words])}"


def folder(db: str) -> Path:
    """Where jobs keep their logs."""
    return database.run_folder(database.parse_url(db)).resolve() / "jobs" / "%j"
