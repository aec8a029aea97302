"""One clear line for an error, and its exit code: 2 for the user's mistakes, 1 for failures.

A warning is one line too, and the command goes on.
"""

import contextlib
import errno
import logging
from collections.abc import Iterator

from rich.console import Console
from rich.markup import escape


def show(error: Exception, where: str = "") -> None:
    """Print the error to stderr as one line."""
    line = f"[red]Error:[/] {escape(where + _line(error))}"
    Console(stderr=True, soft_wrap=True).print(line, highlight=False)


def warn(text: str) -> None:
    """Print a warning to stderr as one line."""
    Console(stderr=True, soft_wrap=True).print(f"[yellow]Warning:[/] {escape(text)}", highlight=False)


def follow_log() -> None:
    """Print what our modules log, such as the copy that an upgrade of the database keeps, as warnings."""

    class Warnings(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            warn(record.getMessage())

    logging.getLogger("stmbench").handlers = [Warnings()]


@contextlib.contextmanager
def fallbacks() -> Iterator[None]:
    """Say in one line that a backend cannot run, where Python would tell the line of code as well."""
    from stmbench.mixers import backends

    with backends.fallbacks(warn):
        yield


def _line(error: Exception) -> str:
    line = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return "The disk is full. Free some space; `stmbench resume RUN` goes on from the last epoch."
    if isinstance(error, PermissionError):
        return f"{error.strerror}: {error.filename}. Give another place: --db for results, -o for a picture."
    if isinstance(error, ValueError | RuntimeError | OSError):
        return line
    return f"{type(error).__name__}: {line}"


def exit_code(error: Exception) -> int:
    """2 for a ValueError, else 1."""
    return 2 if isinstance(error, ValueError) else 1
