"""Being asked to stop while training: by SIGTERM, or by SIGUSR1, as Slurm warns a job of its end.

The first asks: training ends after the step it is in, with a checkpoint. The second does not ask.
"""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator

SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name)]


@contextlib.contextmanager
def listening() -> Iterator[Callable[[], bool]]:
    """Give a function that tells whether this process was asked to stop."""
    heard = False

    def hear(*_: object) -> None:
        nonlocal heard
        if heard:
            raise KeyboardInterrupt
        heard = True

    if threading.current_thread() is not threading.main_thread():  # signals are the main thread's
        yield lambda: False
        return
    before = [signal.signal(number, hear) for number in SIGNALS]
    try:
        yield lambda: heard
    finally:
        for number, handler in zip(SIGNALS, before, strict=True):
            signal.signal(number, handler)
