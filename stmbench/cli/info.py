"""`stmbench mixers`, `recipes` and `doctor`: what there is to run, and what works on this machine."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from stmbench.cli.options import Database


def mixers() -> None:
    """List the mixers with their scales and sources."""
    from stmbench import catalog

    table = Table("mixer", "also", "what it is", "scales", "source", box=None, pad_edge=False)
    for row in catalog.mixers().values():
        table.add_row(row.name, ", ".join(row.aliases), row.title, " ".join(row.scales), row.source)
    Console().print(table)


def recipes() -> None:
    """List the recipes that come with stmbench, with the promise each opens with."""
    from stmbench import recipe

    console = Console()
    for name in recipe.names():
        console.print(f"[bold]{name}[/]  [dim]{recipe.load(name).digest}[/]", highlight=False)
        for line in recipe.promise(recipe.find(name)).splitlines():
            console.print(f"  {escape(line)}", highlight=False)
        console.print()


def doctor(db: Database = "runs/stmbench.db") -> None:
    """Say what works on this machine: devices, libraries, data, results, disk."""
    table = Table("", "what", "found", box=None, pad_edge=False, show_header=False)
    for good, what, found in [*_probe(), _database(db), _disk(db)]:
        table.add_row("[green]ok[/]" if good else "[yellow]--[/]", what, escape(found))
    Console().print(table)


def _probe() -> list[tuple[bool, str, str]]:
    """What torch finds, asked in another process: a broken installation is a row, not a crash."""
    asked = subprocess.run([sys.executable, "-m", "stmbench.probe"], capture_output=True, text=True)
    if asked.returncode:
        lines = asked.stderr.strip().splitlines() or ["no answer"]
        return [(False, "torch", f"does not import: {lines[-1]}")]
    rows: list[list[Any]] = json.loads(asked.stdout)
    return [(bool(good), str(what), str(found)) for good, what, found in rows]


def _database(db: str) -> tuple[bool, str, str]:
    from stmbench.store import open_store

    try:
        count = len(open_store(db, create=False).runs())
    except ValueError as error:
        return False, "results", str(error)
    return True, "results", f"{count} runs at {db}"


def _disk(db: str) -> tuple[bool, str, str]:
    folder = Path.cwd() if "://" in db else Path(db).absolute().parent
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free / 1e9
    return free > 1, "disk", f"{free:.0f} GB free at {folder}"
