"""The SQL interface: the views have these columns in every database, and docs/database.md says so."""

import re
import shlex
import sqlite3
from pathlib import Path
from typing import Any

import pytest
import typer
from filled import fill
from sqlalchemy import text

from stmbench.cli import app
from stmbench.store import NewRun, Store

ROOT = Path(__file__).parents[2]
DOCS = (ROOT / "docs/database.md").read_text(encoding="utf-8")
VIEWS = {
    "runs_v1": "run state reason created updated mixer scale design seed recipe recipe_digest data "
    "data_fingerprint weights weights_sha256 backend device hardware precision threads host git_commit "
    "git_dirty fingerprint folder overrides recipe_values versions",
    "stages_v1": "run stage state started ended reason",
    "measurements_v1": "run stage name condition step value unit reason",
    "files_v1": "run stage kind condition path bytes sha256",
}
"""Released: columns may be added at an end, and none of these be moved, renamed or taken away."""


@pytest.mark.parametrize("view", VIEWS)
def test_views_keep_their_columns(store: Store, new_run: NewRun, view: str) -> None:
    [run] = fill(store, new_run, 1)
    with store._read() as connection:
        rows = (
            connection.execute(text(f"SELECT * FROM {view} WHERE run = :run"), {"run": run}).mappings().all()
        )
    assert rows
    wanted = VIEWS[view].split()
    assert list(rows[0])[: len(wanted)] == wanted


@pytest.mark.parametrize("view", VIEWS)
def test_every_column_is_documented(view: str) -> None:
    section = DOCS.split(f"**`{view}`**")[1].split("\n**`")[0]
    assert set(VIEWS[view].split()) <= set(re.findall(r"`(\w+)`", section))


@pytest.mark.parametrize("query", re.findall(r"```sql\n(.*?)```", DOCS, re.DOTALL))
def test_the_queries_we_show_work(query: str) -> None:
    connection = sqlite3.connect(f"file:{ROOT}/tests/golden/schema_0004.db?immutable=1", uri=True)
    rows = connection.execute(query).fetchall()
    connection.close()
    assert rows or "loss" in query  # there is no curve in it


@pytest.mark.parametrize("line", re.findall(r"^stmbench (.*?)(?: *#.*)?$", DOCS, re.MULTILINE))
def test_every_command_we_show_parses(line: str) -> None:
    command: Any = typer.main.get_command(app)
    words = shlex.split(line)
    while hasattr(command, "commands"):
        command = command.commands[words.pop(0)]
    command.make_context("stmbench", words)
