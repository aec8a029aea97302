"""A fresh process that holds one network under one setting and times it when told.

with Worker(functools.partial(network.make, job, classes), Setting(batch=1, shape=(3, 224, 224))) as worker:
    worker.prepare()
    worker.sample(100).seconds
"""

import functools
from collections.abc import Callable
from typing import Self

import torch
from torch import nn

from stmbench.measure.process import Child, WorkerError
from stmbench.measure.setting import Memory, Prepared, Rates, Round, Setting, check
from stmbench.measure.subject import MakeOptimizer, Subject, adamw

__all__ = ["Memory", "Prepared", "Rates", "Round", "Setting", "Worker", "WorkerError", "check"]


class Worker:
    """The process. Leaving the context ends it; so does the end of this process.

    Every method raises `WorkerError` when the measuring process could not do it, was killed, or crashed; the
    worker is of no further use then.

    Args:
        make: makes the network in the new process; a function of a module, or a partial of one.
        setting: how it is run.
        make_optimizer: for mode "train"; by default a fused AdamW.
    """

    def __init__(
        self,
        make: Callable[[], nn.Module],
        setting: Setting,
        make_optimizer: MakeOptimizer = adamw,
    ) -> None:
        self.setting = setting
        threads = torch.get_num_threads()
        self._child = Child(functools.partial(Subject, make, setting, make_optimizer, threads))

    def wait(self) -> None:
        """Wait until the process has started and imported what it needs; it is idle then."""
        self._child.call("wait")

    def prepare(self) -> Prepared:
        """Wait until the network is made, compiled and warmed up."""
        return self._child.call("prepare")

    def sample(self, count: int, least_s: float = 0.0, *, calibrate: bool = True) -> Round:
        """Time `count` passes, or more until `least_s` seconds are over, between two calibrations."""
        return self._child.call("sample", count, least_s, calibrate)

    def memory(self) -> Memory:
        """The memory that `prepare` needed; timing needs no more, since it repeats the warm-up's passes."""
        return self._child.call("memory")

    def close(self) -> None:
        """End the process and whatever it started."""
        self._child.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
