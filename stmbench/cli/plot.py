"""`stmbench plot`: pictures of what the database holds. None of them imports torch."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from stmbench.cli.options import DEFAULT, Database

if TYPE_CHECKING:
    from stmbench.measure.roofline import Ceilings, Point
    from stmbench.store import RunRecord, Store

app = typer.Typer(no_args_is_help=True, help="Draw pictures of what the finished runs measured.")
_NUMBERS = ("intensity", "matmul_share", "ceiling.matmul", "ceiling.copy")


class _Machine(NamedTuple):
    hardware: str
    device: str
    threads: int


@app.callback()
def plot() -> None:
    pass


@app.command()
def roofline(
    mixer: Annotated[str | None, typer.Option(help="Only this mixer, or several: halo,swin.")] = None,
    scale: Annotated[str | None, typer.Option(help="Only this scale, or several.")] = None,
    recipe: Annotated[str | None, typer.Option(help="Only runs of this recipe, or several.")] = None,
    data: Annotated[str | None, typer.Option(help="Only runs on this data set, or several.")] = None,
    device: Annotated[str | None, typer.Option(help="Only runs on cpu, cuda or mps.")] = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The picture: a .png, .svg or .pdf file.")
    ] = Path("roofline.png"),
    db: Database = DEFAULT,
) -> None:
    """Draw the models, at their best batch, under what their device can reach; a picture per device."""
    from stmbench import leaderboard
    from stmbench.measure import roofline as picture
    from stmbench.store import open_store

    picture.check(output)
    with open_store(db, create=False) as store:
        groups = leaderboard.rank(
            store, mixer=mixer, scale=scale, recipe_name=recipe, data=data, device=device
        )
        ids = {run for group in groups for row in group.rows for run in row.runs}
        found = _read(store, [run for run in store.runs() if run.id in ids])
    if not found:
        typer.echo("No finished run that matches was profiled for it: stmbench run --stage profile.")
    for i, (machine, (points, ceilings)) in enumerate(found.items(), 1):
        path = output if len(found) == 1 else output.with_stem(f"{output.stem}-{i}")
        picture.draw(points, ceilings, path, f"{machine.hardware} [{machine.device}]")
        typer.echo(f"{path}: {len(points)} point{'s' * (len(points) != 1)}, {machine.hardware}")


def _read(store: "Store", runs: "Sequence[RunRecord]") -> "Mapping[_Machine, tuple[list[Point], Ceilings]]":
    """Points and ceilings by machine; of runs of one network, newest first, the newest gives its points."""
    from stmbench.measure import roofline as picture

    numbers = store.headline(("profile",), _NUMBERS)
    points: defaultdict[_Machine, dict[tuple[str, str], Point]] = defaultdict(dict)
    matmul: defaultdict[_Machine, dict[str, float]] = defaultdict(dict)
    copies: defaultdict[_Machine, float] = defaultdict(float)
    for run in runs:
        own, ceilings = picture.read(_network(run), numbers.get(run.id, ()))
        if ceilings is None or not own:
            continue
        machine = _Machine(run.hardware, run.device, run.threads)
        for point in own:
            points[machine].setdefault((point.network, point.condition), point)
        copies[machine] = max(ceilings.copy, copies[machine])
        for precision, rate in ceilings.matmul.items():
            matmul[machine][precision] = max(rate, matmul[machine].get(precision, 0.0))
    return {
        machine: (picture.best(found.values()), picture.Ceilings(copies[machine], matmul[machine]))
        for machine, found in points.items()
    }


def _network(run: "RunRecord") -> str:
    weights = f"from {Path(run.weights).name}" if run.weights else ""
    return " ".join(filter(None, (run.mixer, run.scale, weights)))
