"""One clear line for an error, and its exit code: 2 for the user's mistakes, 1 for failures."""

from rich.console import Console
from rich.markup import escape


def show(error: Exception, where: str = "") -> None:
    """Print the error to stderr as one line."""
    line = " ".join(str(error).split()) or type(error).__name__
    if not isinstance(error, ValueError | RuntimeError | OSError):
        line = f"{type(error).__name__}: {line}"
    Console(stderr=True, soft_wrap=True).print(f"[red]Error:[/] {escape(where + line)}", highlight=False)


def exit_code(error: Exception) -> int:
    """2 for a ValueError, else 1."""
    return 2 if isinstance(error, ValueError) else 1
