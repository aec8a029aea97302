"""The command line as tests call it."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from stmbench import cli

Invoke = Callable[..., tuple[int, str, str]]


@pytest.fixture
def invoke(
    tmp_path: Path,
    tiny_data: Path,
    tiny_recipe_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Invoke:
    """Call `stmbench ...` in an empty folder; ``invoke("run", ...)`` gets the tiny recipe and data.

    Returns the exit code and what went to stdout and stderr.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("STMBENCH_DB", raising=False)

    def call(command: str, *arguments: str) -> tuple[int, str, str]:
        if command == "run":
            arguments = ("--recipe", str(tiny_recipe_file), "--data", str(tiny_data), *arguments)
        monkeypatch.setattr(sys, "argv", ["stmbench", command, *arguments])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        out, err = capsys.readouterr()
        return int(stop.value.code or 0), out, err

    return call
