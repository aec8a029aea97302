"""The main of a process that makes one run and tells of it: its task comes in pickled, events go out pickled.

It ends when its standard input does, that is when whoever started it is gone, even if that was killed: nobody
would hear what it tells, and the next sweep takes the run up again.
"""

import contextlib
import os
import pickle
import signal
import sys
import threading
from pathlib import Path
from typing import IO

from stmbench.record import Event, Note
from stmbench.runner import StageDone
from stmbench.sweep.work import Outcome, Started, Task, work

LOG = "log.txt"  # in the run's folder: what its workers print


def main() -> None:
    """Make one run, then say how it ended."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print must not get among the events
    task: Task = pickle.load(sys.stdin.buffer)
    threading.Thread(target=_watch, args=(sys.stdin.buffer,), daemon=True).start()

    def tell(event: Started | Event | StageDone) -> None:
        _log(event)
        _send(event, out)

    try:
        outcome = work(task, tell)
    except KeyboardInterrupt:
        outcome = Outcome("interrupted", reason="stopped by the user")
    _send(outcome, out)


def _send(what: object, out: IO[bytes]) -> None:
    try:
        pickle.dump(what, out)
        out.flush()
    except BrokenPipeError:
        os._exit(1)  # not an error of the run: see `_watch`


def _watch(inbox: IO[bytes]) -> None:
    with contextlib.suppress(Exception):
        inbox.read()
    os._exit(1)  # the parent is gone; a pass may take minutes, so nobody waits for its end


def _log(event: Started | Event | StageDone) -> None:
    if isinstance(event, Started):
        _log_to(event.folder)
    elif isinstance(event, StageDone):
        sys.stderr.write(f"{event.stage}: done in {event.seconds:.1f} s\n")
    elif isinstance(event, Note):
        sys.stderr.write(f"{event.stage}: {event.text}\n")


def _log_to(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOG).open("ab") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
