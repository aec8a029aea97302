"""README stays true: its commands parse, every command is in it, and CI runs the test command it names."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer

from stmbench.cli import app

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
MEASUREMENT = (ROOT / "docs/measurement.md").read_text(encoding="utf-8")
GROUP: Any = typer.main.get_command(app)


def commands(text: str) -> list[str]:
    """Every stmbench command line in a text's shell blocks, continued lines joined."""
    found = []
    for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            for part in re.split(r"&&|;", line.partition("#")[0]):
                if match := re.search(rf"\bstmbench ((?:{'|'.join(GROUP.commands)})\b.*)", part):
                    found.append(match[1].strip())
    return found


@pytest.mark.parametrize("line", commands(README) + commands(MEASUREMENT))
def test_every_command_we_show_parses(line: str) -> None:
    name, *arguments = shlex.split(line)
    command = GROUP.commands[name]
    command.make_context(name, arguments)


def test_every_command_is_in_readme() -> None:
    named = {line.split()[0] for line in commands(README)}
    assert named == set(GROUP.commands)


def test_ci_runs_the_readmes_own_test_command() -> None:
    pattern = re.search(r"grep -m 1 -E '(.*)' README\.md", (ROOT / ".ci/run").read_text())
    assert pattern
    lines = [line for line in README.splitlines() if re.search(pattern[1], line)]
    assert len(lines) == 1
