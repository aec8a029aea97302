"""The processes that train one network together: torchrun's, or this one alone.

Rank 0 opens the database, prints and writes files; the others only compute. Everything here means what it
says in a single process too, where it costs nothing. What is told between processes goes over the CPU (gloo),
and waits as long as it takes: whoever dies is torchrun's business, which then ends all the others.
"""

import contextlib
import json
import logging
import os
import signal
import sys
import uuid
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

_COMMAND = "STMBENCH_COMMAND"  # from the launcher to the processes it starts
_PATIENCE = timedelta(days=14)  # rank 0 may profile for a while
_LOST = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "NCCL")  # in what torch says


class LostError(RuntimeError):
    """Another process is gone, so that this one cannot go on."""


_talk: Any = None  # the process group that words go over


def launched() -> bool:
    """Whether torchrun started this process."""
    return dist.is_available() and dist.is_torchelastic_launched()


def command() -> Sequence[str]:
    """The command that was typed, also where `launch` has typed another one since."""
    return json.loads(os.environ[_COMMAND]) if _COMMAND in os.environ else sys.argv


def processes() -> int:
    """How many processes torchrun started, here and elsewhere; 1 without it."""
    return int(os.environ["WORLD_SIZE"]) if launched() else 1


def follows() -> bool:
    """Whether torchrun started this process to follow the first one."""
    return launched() and os.environ["RANK"] != "0"


def launch(processes: int, arguments: Sequence[str]) -> int:
    """Start ``stmbench ARGUMENTS`` in so many processes on this machine, as torchrun would; its exit code.

    Raises:
        RuntimeError: a process other than the first one failed, and did not say so itself.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # the first process speaks
    threads = max(1, torch.get_num_threads() // processes)
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    os.environ[_COMMAND] = json.dumps(sys.argv)
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
    )
    if hasattr(signal, "SIGUSR1"):  # Slurm's warning, which the launcher does not hand on
        signal.signal(signal.SIGUSR1, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    try:
        elastic_launch(config, sys.executable)("-m", "stmbench", *arguments)
    except SignalException as error:
        return 128 + error.sigval
    except ChildFailedError as error:
        return _exit_code({rank: failure.exitcode for rank, failure in error.failures.items()})
    return 0


def _exit_code(codes: dict[int, int]) -> int:
    for rank, code in sorted(codes.items()):
        if code > 0:
            return code  # and it has said why
        if code != -signal.SIGTERM:  # which torchrun sends to the others
            raise RuntimeError(
                f"Process {rank} was killed ({signal.Signals(-code).name}); "
                "`stmbench resume RUN`, with --gpus again, goes on from its checkpoint."
            )
    return 1


def rank() -> int:
    return dist.get_rank() if _talk else 0


def size() -> int:
    return dist.get_world_size() if _talk else 1


def is_main() -> bool:
    return rank() == 0


def place(device: str) -> str:
    """This process's own device of a kind: of several GPUs, the one with its local rank."""
    kind, _, index = device.partition(":")
    return f"{kind}:{os.environ['LOCAL_RANK']}" if kind == "cuda" and not index and launched() else device


@contextlib.contextmanager
def joined(device: str) -> Iterator[None]:
    """Be one of torchrun's processes, if torchrun started this one."""
    global _talk
    if not launched():
        yield
        return
    if device.startswith("cuda"):
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    _talk = dist.new_group(backend="gloo", timeout=_PATIENCE)
    yield
    _talk = None
    dist.destroy_process_group()  # after an error it might wait for the others


def tell(words: Any = None) -> Any:
    """What rank 0 says, on every rank; what the others say is not heard."""
    said = [words]
    if _talk:
        dist.broadcast_object_list(said, src=0, group=_talk)
    return said[0]


def gather(words: Any) -> list[Any]:
    """What each rank says, by rank, on every rank."""
    said = [words] * size()
    if _talk:
        dist.all_gather_object(said, words, group=_talk)
    return said


def any_of(flag: bool) -> bool:
    """Whether it is true on any rank."""
    if not _talk:
        return flag
    votes = torch.tensor(int(flag))
    dist.all_reduce(votes, group=_talk)
    return bool(votes)


def total(numbers: Tensor) -> Tensor:
    """The sum over ranks, element by element; on every rank, wherever `numbers` lie."""
    if _talk:
        numbers = numbers.detach().clone()
        dist.all_reduce(numbers)
    return numbers


@contextlib.contextmanager
def noticing_losses() -> Iterator[None]:
    """Turn what torch says when another process is gone into a `LostError`."""
    try:
        yield
    except RuntimeError as error:
        if _talk and any(words in str(error) for words in _LOST):
            advice = "`stmbench resume RUN`, with --gpus again, goes on from its checkpoint"
            raise LostError(f"another process of this run is gone; {advice}.") from error
        raise


def barrier() -> None:
    """Wait for all."""
    if _talk:
        dist.barrier(group=_talk)
