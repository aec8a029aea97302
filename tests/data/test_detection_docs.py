"""docs/detection.md stays true: its commands parse, and it names every number that is measured."""

import shlex
from pathlib import Path

import pytest
from test_readme import GROUP, commands

from stmbench.measure import ap

TEXT = (Path(__file__).parents[2] / "docs/detection.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("line", commands(TEXT))
def test_every_command_parses(line: str) -> None:
    name, *arguments = shlex.split(line)
    GROUP.commands[name].make_context(name, arguments)


def test_every_number_is_named() -> None:
    assert [name for name in ap.NUMBERS if f"`box_{name}`" not in TEXT] == []
