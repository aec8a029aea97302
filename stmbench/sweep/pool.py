"""Runs in processes of this machine: a fresh one for each, so that what crashes takes one run alone.

Each process has its share of the CPU's threads, or a GPU of its own. What is timed is not timed beside
others: where several processes share a device, they put the stage `profile` off until all are through, and
it is then taken one run at a time, with all threads.
"""

import contextlib
import dataclasses
import os
import pickle
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass

from stmbench.record import Event
from stmbench.runner import StageDone
from stmbench.store import Store
from stmbench.sweep.planning import TIMED, Item
from stmbench.sweep.work import Ended, Outcome, Started, Task, Told
from stmbench.sweep.worker import LOG

GRACE_S = 20.0  # for workers that are asked to stop, before they are killed
LAST_LINES = 8  # of a crashed worker's log
_MAIN = "from stmbench.sweep.worker import main; main()"


@dataclass(frozen=True, slots=True)
class Slot:
    """A place for one process at a time."""

    device: str
    threads: int


def slots(device: str, gpus: Sequence[int], jobs: int | None, threads: int) -> list[Slot]:
    """A place for each job, spread over the GPUs, or over the CPU's threads where that computes.

    Beside a GPU the CPU has little to compute, and the number of its threads is part of what a time was
    measured under: there they are not divided.
    """
    devices = [f"cuda:{gpu}" for gpu in gpus] or [device]
    jobs = jobs or len(devices)
    share = max(1, threads // jobs) if device == "cpu" else threads
    return [Slot(devices[i % len(devices)], share) for i in range(jobs)]


def follow(
    items: Sequence[Item], places: Sequence[Slot], store: Store, db: str, *, retry: bool, threads: int
) -> Generator[Told | Ended, None, None]:
    """Make the runs and tell of them as they go; closing the iterator stops them."""
    devices = dict.fromkeys(place.device for place in places)
    later = TIMED if len(places) > len(devices) else ()
    tasks = {i: item.task(db, retry=retry, later=later) for i, item in enumerate(items)}
    put_off: dict[int, Task] = {}
    for event in _follow(tasks, places, store):
        if isinstance(event, Ended) and event.outcome.state == "later":
            put_off[event.task] = items[event.task].task(db, retry=retry)
        yield event
    yield from _follow(put_off, [Slot(device, threads) for device in devices], store)


def _follow(
    tasks: Mapping[int, Task], places: Sequence[Slot], store: Store
) -> Generator[Told | Ended, None, None]:
    waiting, free = deque(tasks.items()), deque(places)
    workers: dict[int, _Worker] = {}
    heard: queue.SimpleQueue[Told | int] = queue.SimpleQueue()
    try:
        while waiting or workers:
            while waiting and free:
                number, task = waiting.popleft()
                workers[number] = _Worker(number, task, free.popleft(), heard)
            event = heard.get()
            if isinstance(event, Told):
                yield event
                continue
            worker = workers.pop(event)
            free.append(worker.slot)
            outcome = worker.close(GRACE_S)
            with contextlib.suppress(OSError):  # a database that is busy is no reason to stop the others
                store.reap()  # it may have died with its run open
            yield Ended(event, outcome)
    finally:
        for worker in workers.values():
            worker.stop()
        end = time.monotonic() + GRACE_S
        for worker in workers.values():
            worker.close(end - time.monotonic())


class _Worker:
    """A process with one task. What it tells goes into `heard`, and its number at its end."""

    def __init__(self, number: int, task: Task, slot: Slot, heard: "queue.SimpleQueue[Told | int]") -> None:
        self.slot = slot
        self._run: Started | None = None
        self._outcome: Outcome | None = None
        self._early_log = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the worker); until it has a run
        path = os.pathsep.join(os.path.abspath(entry) for entry in sys.path)  # noqa: PTH100
        threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(slot.threads))
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", _MAIN],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._early_log,
            env=os.environ | threads | {"PYTHONPATH": path},
            start_new_session=True,  # Ctrl-C is the parent's, and what the worker starts dies with it
        )
        task = dataclasses.replace(task, asked={**task.asked, "device": slot.device})
        assert self._process.stdin
        with contextlib.suppress(BrokenPipeError):  # it died at once: its end says so
            pickle.dump(task, self._process.stdin)
            self._process.stdin.flush()
        self._ear = threading.Thread(target=self._listen, args=(number, heard), daemon=True)
        self._ear.start()

    def stop(self) -> None:
        """Ask it to end: its run is then written down as interrupted."""
        self._process.terminate()

    def close(self, patience: float) -> Outcome:
        """Wait for its end, or make one, and end whatever it has started."""
        try:
            self._process.wait(max(0, patience))
        except subprocess.TimeoutExpired:
            self._process.kill()
        finally:
            if os.name == "posix":
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(self._process.pid, signal.SIGKILL)
            code = self._process.wait()
            self._ear.join()
            assert self._process.stdin
            assert self._process.stdout
            self._process.stdout.close()
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
            last = self._last_lines()
        return self._outcome or Outcome("failed", self._run.run_id if self._run else "", _crash(code, last))

    def _last_lines(self) -> list[str]:
        with self._early_log as log:
            if self._run:
                text = (self._run.folder / LOG).read_bytes()
            else:
                log.seek(0)
                text = log.read()
        return text.decode(errors="replace").strip().splitlines()[-LAST_LINES:]

    def _listen(self, number: int, heard: "queue.SimpleQueue[Told | int]") -> None:
        assert self._process.stdout
        with contextlib.suppress(EOFError, pickle.UnpicklingError, OSError):
            while True:
                event: Started | Event | StageDone | Outcome = pickle.load(self._process.stdout)
                if isinstance(event, Outcome):
                    self._outcome = event
                    continue
                if isinstance(event, Started):
                    self._run = event
                heard.put(Told(number, event))
        heard.put(number)


def _crash(code: int, last: Sequence[str]) -> str:
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
    memory = ", most likely for its memory" if code == -signal.SIGKILL else ""
    return "\n".join([f"its process {how}{memory}", *last])
