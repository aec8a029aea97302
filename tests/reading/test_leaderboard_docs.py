"""docs/leaderboard.md stays true: its commands parse, its filters read, and what it says of files is so."""

import shlex
from pathlib import Path

import pytest
from test_readme import GROUP, commands

from stmbench.reading import export, formats, where
from stmbench.store import views

TEXT = (Path(__file__).parents[2] / "docs/leaderboard.md").read_text(encoding="utf-8")
SHOWN = [line.removeprefix("$ stmbench ") for line in TEXT.splitlines() if line.startswith("$ stmbench ")]


@pytest.mark.parametrize("line", commands(TEXT) + SHOWN)
def test_every_command_parses(line: str) -> None:
    name, *arguments = shlex.split(line)
    GROUP.commands[name].make_context(name, arguments)


@pytest.mark.parametrize("line", [line for line in commands(TEXT) if "leaderboard" not in line])
def test_every_filter_of_runs_and_tables_reads(line: str) -> None:
    words = shlex.split(line)
    text = words[words.index("--where") + 1]
    where.parse(text, views.fields("measurements" if words[0] == "export" else "runs"))


def test_every_format_is_named() -> None:
    assert [suffix for suffix in (*formats.SUFFIXES, *export.WRITERS) if f"`{suffix}`" not in TEXT] == [
        ".htm"
    ]
