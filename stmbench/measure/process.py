"""A fresh process that holds one object and calls its methods for us.

Started by hand, since multiprocessing would import the parent's main module in it again: what a measuring
process imports costs seconds and is resident in its memory. Commands go in through its standard input and
answers come back through its standard output, both pickled; what it prints is kept aside.
"""

import contextlib
import os
import pickle
import queue
import re
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, Literal, Self

Kind = Literal["memory", "compile", "device", "crash"]
_SERVE = "from stmbench.measure.process import serve; serve()"
_MEMORY = re.compile(r"allocate memory|out of memory|not enough memory|ALLOC_FAILED", re.IGNORECASE)
_DEVICE = re.compile(r"CUDA error|cuDNN error|CUBLAS|device-side", re.IGNORECASE)


class WorkerError(RuntimeError):
    """The measuring process could not do it: `kind`, and one line that says why."""

    def __init__(self, kind: Kind, line: str) -> None:
        super().__init__(line)
        self.kind: Kind = kind


def failure(error: BaseException, otherwise: Kind = "crash") -> WorkerError:
    """Any exception as a `WorkerError`: its kind as far as its text tells, and one line of it."""
    if isinstance(error, WorkerError):
        return error
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    line = " ".join(lines[:2] if lines[:1] and lines[0].endswith(":") else lines[:1])  # "raised:" what?
    text = f"{type(error).__name__}: {line}" if line else type(error).__name__
    if isinstance(error, MemoryError) or _MEMORY.search(str(error)):
        return WorkerError("memory", f"Out of memory ({text})")
    return WorkerError("device" if _DEVICE.search(str(error)) else otherwise, text)


class Child:
    """A process that makes an object and answers for it. Leaving the context ends it, and its children.

    Args:
        make: makes the object in the child; picklable, so a function of a module or a partial of one.
    """

    def __init__(self, make: Callable[[], object]) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="stmbench-", ignore_cleanup_errors=True)
        self._log = Path(self._folder.name) / "log"
        caches = {"TORCHINDUCTOR_CACHE_DIR": self._folder.name}  # nothing compiled before shortens compiling
        path = os.pathsep.join(os.path.abspath(entry) for entry in sys.path)  # noqa: PTH100
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", _SERVE],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=os.environ | caches | {"PYTHONPATH": path},
                start_new_session=True,  # Ctrl-C is the parent's, and what the child starts dies with it
            )
        assert self._process.stdin
        assert self._process.stdout
        self._inbox, self._outbox = self._process.stdout, self._process.stdin
        self._send("", make)

    def call(self, method: str, *arguments: Any) -> Any:
        """What the object's method returns; `WorkerError` for whatever it raises, or if the process died."""
        self._send(method, arguments)
        try:
            fine, *answer = pickle.load(self._inbox)
        except (EOFError, pickle.UnpicklingError):
            raise self._died() from None
        if not fine:
            raise WorkerError(*answer)
        return answer[0]

    def close(self) -> None:
        """End the process and whatever it started, and wait for its end."""
        if os.name == "posix":
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
        self._process.kill()
        self._process.wait()
        self._inbox.close()
        with contextlib.suppress(BrokenPipeError):
            self._outbox.close()
        self._folder.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _send(self, method: str, content: object) -> None:
        with contextlib.suppress(BrokenPipeError):  # the answer that does not come says so
            pickle.dump((method, pickle.dumps(content)), self._outbox)
            self._outbox.flush()

    def _died(self) -> WorkerError:
        code = self._process.wait()
        if code == -signal.SIGKILL:
            return WorkerError("memory", "The measuring process was killed, most likely for its memory")
        lines = self._log.read_text(errors="replace").split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")
        how = signal.Signals(-code).name if code < 0 else f"code {code}"
        return WorkerError("crash", f"The measuring process ended with {how}: {last}")


def serve() -> None:
    """The child's main: obey until the parent is gone."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print must not get among the answers
    commands: queue.SimpleQueue[tuple[str, bytes]] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(sys.stdin.buffer, commands), daemon=True).start()
    target: Any = None
    while True:
        method, content = commands.get()
        try:
            decoded = pickle.loads(content)
            if method:
                answer = (True, getattr(target, method)(*decoded))
            else:
                target = decoded()
                continue
        except Exception as error:
            wrong = failure(error)
            answer = (False, wrong.kind, str(wrong))
        pickle.dump(answer, answers)
        answers.flush()


def _listen(inbox: IO[bytes], commands: "queue.SimpleQueue[tuple[str, bytes]]") -> None:
    with contextlib.suppress(Exception):  # the end of the stream, or of half a command
        while True:
            commands.put(pickle.load(inbox))
    os._exit(1)  # the parent is gone; a pass may take minutes, so nobody waits for its end
