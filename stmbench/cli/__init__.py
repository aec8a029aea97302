"""The command line. Every command parses, calls and draws; what it needs is imported when it runs."""

import io
import sys
from typing import Annotated

import typer

from stmbench import __version__
from stmbench.cli import (
    bench,
    compare,
    db,
    errors,
    export,
    info,
    ladder,
    mixers,
    plot,
    recipes,
    report,
    reproduce,
    results,
    run,
    show,
    submit,
    sweep,
    weights,
)

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Compare spatial token mixers fairly: one backbone, one protocol, one results database.",
    epilog="Start with: stmbench run --mixer halo --stage all",
)
app.command()(run.run)
app.command()(run.resume)
app.command()(sweep.sweep)
app.command(context_settings=submit.SETTINGS)(submit.submit)
app.command()(reproduce.reproduce)
app.command()(bench.bench)
app.command()(ladder.ladder)
app.command()(results.leaderboard)
app.command()(compare.compare)
app.command()(results.runs)
app.command()(show.show)
app.command()(export.export)
app.add_typer(plot.app, name="plot")
app.command()(report.report)
app.add_typer(mixers.app, name="mixers")
app.add_typer(recipes.app, name="recipes")
app.add_typer(weights.app, name="weights")
app.add_typer(db.app, name="db")
app.command()(info.doctor)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"stmbench {__version__}")
        raise typer.Exit


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line: one clear line for an error, exit code 2 for the user's and 1 for ours."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal that is not Unicode shows "?" for what it lacks
            stream.reconfigure(errors="replace")
    debug = "--debug" in sys.argv  # wherever it was typed
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    errors.follow_log()
    try:
        app(arguments)
    except Exception as error:
        if debug:
            raise
        errors.show(error)
        sys.exit(errors.exit_code(error))
