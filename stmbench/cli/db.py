"""`stmbench db`: care of the results database itself, whole. What is in it is read by other commands."""

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape

from stmbench.cli import errors
from stmbench.cli.options import DEFAULT, Database

if TYPE_CHECKING:
    from collections.abc import Iterable

    from stmbench.store import Store
    from stmbench.store.check import Finding
    from stmbench.store.merge import Merged
    from stmbench.store.salvage import Damage

app = typer.Typer(
    no_args_is_help=True,
    help="Keep the results database: upgrade, back up, check, merge. (To read results: leaderboard, export.)",
)
CopyFiles = Annotated[
    bool, typer.Option("--copy-files", help="Copy the runs' files too. \\[default: they stay where they are]")
]
_SHOWN = 20  # runs that are named


@app.callback()
def db() -> None:
    pass


@app.command()
def upgrade(db: Database = DEFAULT) -> None:
    """Bring the database to this version's schema, keeping a copy, and make anew what leaderboards read."""
    from stmbench.store import open_store, tables

    with open_store(db, create=False) as store:  # which upgrades
        store.refresh_summaries()
    _say(f"{_where(store)} is at schema {tables.SCHEMA}, the newest.")


@app.command()
def backup(
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The copy. \\[default: beside it, with the time]")
    ] = None,
    db: Database = DEFAULT,
) -> None:
    """Copy an SQLite database while others may be writing into it."""
    from stmbench.store import backup, database

    url = database.parse_url(db)
    file = database.sqlite_file(url)
    if file is None:
        raise ValueError(
            "A server's database is backed up by its own pg_dump; `stmbench db export` writes its runs."
        )
    if not file.is_file():
        raise ValueError(f"There is no database {file}.")
    target = output or file.with_name(f"{file.stem}-{datetime.now():%Y%m%d-%H%M%S}{file.suffix}")
    backup.copy(file, target)
    _say(f"{target}: {_size(target.stat().st_size)}, a whole copy of {file}. The runs' files are not in it.")


@app.command()
def check(
    files: Annotated[bool, typer.Option("--files", help="Read every file, and compare its digest.")] = False,
    salvage: Annotated[
        Path | None, typer.Option(help="A new database to copy everything to that can be read.")
    ] = None,
    db: Database = DEFAULT,
) -> None:
    """Look for damage: broken pages, rows without a run, files that are gone or changed, dead runs."""
    from stmbench.store import database, pages

    file = database.sqlite_file(database.parse_url(db))
    if file is not None and not file.is_file():
        raise ValueError(f"There is no database {file}.")
    broken = pages.complaints(file) if file else []
    if file and (broken or salvage):
        from stmbench.store.salvage import examine

        _tell_damage(file, broken, examine(file, salvage), salvage)
    elif salvage:
        raise ValueError("Only an SQLite file is salvaged: `stmbench db merge` copies from a server.")
    if broken or _tell_findings(db, files):
        raise typer.Exit(1)


@app.command()
def merge(
    sources: Annotated[list[str], typer.Argument(metavar="SOURCE...", help="SQLite files or database URLs.")],
    copy_files: CopyFiles = False,
    db: Database = DEFAULT,
) -> None:
    """Take in every run of other databases, each once; of two versions of a run the more complete is kept."""
    from stmbench.store import merge, open_store, source

    with open_store(db) as store:
        for url in sources:
            merge.refuse_itself(url, store)
        for url in sources:
            with source.reading(url) as other:
                _follow(store, url, merge.merge(store, merge.runs_of(other), copy_files=copy_files))


@app.command()
def vacuum(db: Database = DEFAULT) -> None:
    """Give the space of deleted rows back, and let the database learn how many rows it holds."""
    from stmbench.store import maintenance, open_store

    with open_store(db, create=False) as store:
        sizes = maintenance.vacuum(store)
    _say(f"{_where(store)}: {_size(sizes.before)} before, {_size(sizes.after)} after.")


@app.command("export")
def export_(
    output: Annotated[Path, typer.Argument(help="A new file, .jsonl or .jsonl.gz.")],
    db: Database = DEFAULT,
) -> None:
    """Write whole runs as text, one a line, for `stmbench db import`. (Tables: `stmbench export`.)"""
    from stmbench.store import merge, source, transfer

    with source.reading(db) as store:
        count = transfer.export(merge.runs_of(store), output)
    _say(f"{output}: {_runs(count)}, {_size(output.stat().st_size)}. The runs' files are not in it.")


@app.command("import")
def import_(
    files: Annotated[list[Path], typer.Argument(help="Files that `stmbench db export` wrote.")],
    copy_files: CopyFiles = False,
    db: Database = DEFAULT,
) -> None:
    """Take in the runs of such files, as `merge` does those of databases."""
    from stmbench.store import merge, open_store, transfer

    with open_store(db) as store:
        for file in files:
            _follow(store, str(file), merge.merge(store, transfer.read(file), copy_files=copy_files))


def warn_of_network(db: str) -> None:
    """Warn, once, before much is written to an SQLite file on a network file system."""
    from stmbench.store import database

    file = database.sqlite_file(database.parse_url(db))
    if file and (kind := database.network_file_system(file)):
        errors.warn(
            f"{file} is on a network file system ({kind}): let one machine at a time write to it, or use "
            "PostgreSQL (docs/database.md)."
        )


def _follow(store: "Store", source: str, merged: "Iterable[Merged]") -> None:
    """Say what became of a source's runs: of how many, and by name where there were two versions."""
    found = list(merged)
    several = [run for run in found if run.how in ("replaced", "kept")]
    names = {"replaced": "theirs replaced ours", "kept": "ours was kept"}
    for run in several[:_SHOWN]:
        _say(f"  {run.run}: two versions, and {names[run.how]}, the more complete")
    for run in (run for run in found if run.run != run.was):
        _say(f"  {run.was}: another run has this id here; it is {run.run}")
    if len(several) > _SHOWN:
        _say(f"  … and {len(several) - _SHOWN} more of two versions")
    counts = [(how, sum(run.how == how for run in found)) for how in ("added", "same", "replaced", "kept")]
    words = {"added": "added", "same": "there already", "replaced": "replaced", "kept": "kept as it was"}
    told = ", ".join(f"{count:,} {words[how]}" for how, count in counts if count) or "nothing in it"
    _say(f"{source}: {told}.")
    if without := sum(run.without_files for run in found):
        errors.warn(f"Of {_runs(without)} not all files were found to be copied.")


def _tell_damage(file: Path, broken: list[str], damage: "Damage", copy: Path | None) -> None:
    state = f"{file} is damaged" if broken else f"{file} is not damaged"
    _say(f"{state}: {_runs(len(damage.safe))} safe, {_runs(len(damage.lost))} with losses.")
    for line in broken[:3]:
        _say(f"  SQLite: {line}")
    for run, lost in list(damage.lost.items())[: None if copy else _SHOWN]:
        _say(f"  {run}: lost {', '.join(lost)}")
    if not copy and len(damage.lost) > _SHOWN:
        _say(f"  … and {len(damage.lost) - _SHOWN} more; --salvage names all")
    for table in damage.unnamed:
        _say(f"  Rows of the table {table} are lost, and nothing tells whose: safe runs may be among them.")
    if copy:
        _say(f"All that could be read is in {copy}. Runs with losses read interrupted or failed there.")
    else:
        _say("`stmbench db check --salvage NEW.db` copies everything that can be read.")


def _tell_findings(db: str, digests: bool) -> bool:
    """Print what our own rules find; True if anything is wrong."""
    from stmbench.store import check, source

    with source.reading(db) as store:
        found: list[Finding] = list(check.check(store, digests=digests))
    wrong = [finding for finding in found if not finding.note]
    for finding in found[:_SHOWN]:
        _say(f"  {finding.run}: {finding.text}")
    if len(found) > _SHOWN:
        _say(f"  … and {len(found) - _SHOWN} more")
    _say(f"{_where(store)}: {f'{len(wrong):,} wrong' if wrong else 'nothing wrong'}.")
    return bool(wrong)


def _where(store: "Store") -> str:
    from stmbench.store import database

    return database.label(store._url)


def _runs(count: int) -> str:
    return f"{count:,} run" + "s" * (count != 1)


def _size(count: int) -> str:
    return f"{count / 1e6:,.2f} MB"


def _say(text: str) -> None:
    Console(soft_wrap=True).print(escape(text), highlight=False)
