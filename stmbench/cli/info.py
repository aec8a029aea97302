"""`stmbench doctor`: what works on this machine."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from stmbench.cli.options import DEFAULT, Database


def doctor(db: Database = DEFAULT) -> None:
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
        count = open_store(db, create=False).count()
    except (ValueError, OSError) as error:
        return False, "results", str(error)
    return True, "results", f"{count} run{'s' * (count != 1)} at {db}"


def _disk(db: str) -> tuple[bool, str, str]:
    folder = Path.cwd() if "://" in db else Path(db).absolute().parent
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free / 1e9
    return free > 1, "disk", f"{free:.0f} GB free at {folder}"
