"""`stmbench plot`: pictures of what the database holds. None but `detections` imports torch."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from stmbench.cli.options import DEFAULT, Database, DataSets, Devices, Mixers, Recipes, Scales, Where

if TYPE_CHECKING:
    from stmbench.measure.roofline import Ceilings, Point
    from stmbench.store import RunRecord, Store

app = typer.Typer(no_args_is_help=True, help="Draw pictures of what the finished runs measured.")
_NUMBERS = ("intensity", "matmul_share", "ceiling.matmul", "ceiling.copy")

Output = Annotated[Path, typer.Option("--output", "-o", help="The picture: a .png, .svg or .pdf file.")]


class Weights(StrEnum):
    PLAIN = "plain"
    EMA = "ema"
    RANDOM = "random"


class Metric(StrEnum):
    CONSISTENCY = "consistency"
    TOP1 = "top1"
    TOP5 = "top5"
    CROSS_ENTROPY = "cross_entropy"


class Protocol(StrEnum):
    ONE = "invariance/1"
    PUBLISHED = "invariance/published"


class _Machine(NamedTuple):
    hardware: str
    device: str
    threads: int


@app.callback()
def plot() -> None:
    pass


@app.command()
def erf(
    mixer: Mixers = None,
    scale: Scales = None,
    recipe: Recipes = None,
    data: DataSets = None,
    device: Devices = None,
    where: Where = None,
    size: Annotated[int, typer.Option(min=0, help="Pixels of the images; 0 for the recipe's.")] = 0,
    weights: Annotated[
        Weights | None, typer.Option(help="Of these weights; by default those the network is known by.")
    ] = None,
    control: Annotated[bool, typer.Option("--control", help="Random weights too, below each.")] = False,
    output: Output = Path("erf.png"),
    db: Database = DEFAULT,
) -> None:
    """Draw effective receptive fields, level by level, on one colour scale; a picture per recipe and data."""
    from stmbench.pictures import erf as picture

    with _finished(output, db, mixer, scale, recipe, data, device, where) as (store, runs):
        groups = picture.read(store, runs, size=size, weights=weights or "", control=control)
    more = f" --set 'erf.sizes=[{size}]'" if size else ""
    _draw(picture, groups, output, f"has such receptive fields: stmbench run --stage train,erf{more}")


@app.command()
def invariance(
    mixer: Mixers = None,
    scale: Scales = None,
    recipe: Recipes = None,
    data: DataSets = None,
    device: Devices = None,
    where: Where = None,
    metric: Annotated[Metric, typer.Option(help="What stands upwards.")] = Metric.CONSISTENCY,
    protocol: Annotated[Protocol, typer.Option(help="Of which protocol.")] = Protocol.ONE,
    output: Output = Path("invariance.png"),
    db: Database = DEFAULT,
) -> None:
    """Draw what is still recognised as images are changed more and more; a picture per recipe and data."""
    from stmbench.pictures import invariance as picture

    with _finished(output, db, mixer, scale, recipe, data, device, where) as (store, runs):
        groups = picture.read(store, runs, protocol=protocol, metric=metric)
    more = "" if protocol == Protocol.ONE else f""" --set 'invariance.protocols=["{protocol}"]'"""
    _draw(picture, groups, output, f"has such curves: stmbench run --stage train,invariance{more}")


@app.command()
def equivariance(
    mixer: Mixers = None,
    scale: Scales = None,
    recipe: Recipes = None,
    data: DataSets = None,
    device: Devices = None,
    where: Where = None,
    output: Output = Path("equivariance.png"),
    db: Database = DEFAULT,
) -> None:
    """Draw how well each level's features move with the image; a picture per recipe and data."""
    from stmbench.pictures import invariance as picture

    with _finished(output, db, mixer, scale, recipe, data, device, where) as (store, runs):
        groups = picture.read(store, runs, protocol=picture.EQUIVARIANCE, metric="equivariance")
    _draw(picture, groups, output, "has such curves: stmbench run --stage train,invariance")


@app.command()
def curves(
    mixer: Mixers = None,
    scale: Scales = None,
    recipe: Recipes = None,
    data: DataSets = None,
    device: Devices = None,
    where: Where = None,
    output: Output = Path("curves.png"),
    db: Database = DEFAULT,
) -> None:
    """Draw losses, top-1 and learning rate by epoch; a picture per recipe and data."""
    from stmbench.pictures import curves as picture

    with _finished(output, db, mixer, scale, recipe, data, device, where) as (store, runs):
        groups = picture.read(store, runs)
    _draw(picture, groups, output, "was trained: stmbench run --stage train")


@app.command()
def detections(
    run: Annotated[str, typer.Argument(help="A run's id, or enough of its beginning.")],
    images: Annotated[int, typer.Option(min=1, help="So many validation images, evenly spread.")] = 4,
    score: Annotated[float, typer.Option(min=0, max=1, help="Show what was found as surely.")] = 0.5,
    weights: Annotated[
        Weights | None, typer.Option(help="Of these weights; by default those the network is known by.")
    ] = None,
    output: Output = Path("detections.png"),
    db: Database = DEFAULT,
) -> None:
    """Draw what a detector found on validation images, beside what is annotated there."""
    from stmbench import style
    from stmbench.pictures import detections as picture
    from stmbench.store import open_store

    style.check(output)
    with open_store(db, create=False) as store:
        found = picture.read(store, store.run(run), images=images, score=score, weights=weights or "")
    _draw(picture, found, output, "has such detections: stmbench run --recipe detect_quick")


@app.command()
def pareto(
    mixer: Mixers = None,
    scale: Scales = None,
    recipe: Recipes = None,
    data: DataSets = None,
    device: Devices = None,
    where: Where = None,
    x: Annotated[
        str, typer.Option("--x", help="Costs, with commas between.")
    ] = "macs,parameters,latency,memory",
    output: Output = Path("pareto.png"),
    db: Database = DEFAULT,
) -> None:
    """Draw top-1 against what it costs, and the Pareto front; a picture per table of the leaderboard."""
    from stmbench import style
    from stmbench.pictures import pareto as picture
    from stmbench.reading import leaderboard
    from stmbench.store import open_store

    style.check(output)
    with open_store(db, create=False) as store:
        groups = leaderboard.rank(
            store, mixer=mixer, scale=scale, recipe_name=recipe, data=data, device=device, where=where
        )
        boards = picture.read(store, groups, x)
    _draw(picture, boards, output, "has top-1 and such a cost: stmbench run --stage build,train,eval,profile")


@app.command()
def roofline(
    mixer: Mixers = None,
    scale: Scales = None,
    recipe: Recipes = None,
    data: DataSets = None,
    device: Devices = None,
    where: Where = None,
    output: Output = Path("roofline.png"),
    db: Database = DEFAULT,
) -> None:
    """Draw the models, at their best batch, under what their device can reach; a picture per device."""
    from stmbench import style
    from stmbench.measure import roofline as picture
    from stmbench.reading import leaderboard
    from stmbench.store import open_store

    style.check(output)
    with open_store(db, create=False) as store:
        groups = leaderboard.rank(
            store, mixer=mixer, scale=scale, recipe_name=recipe, data=data, device=device, where=where
        )
        ids = {run for group in groups for row in group.rows for run in row.runs}
        found = _read(store, [run for run in store.runs() if run.id in ids])
    if not found:
        typer.echo("No finished run that matches was profiled for it: stmbench run --stage profile.")
    for path, (machine, (points, ceilings)) in _paths(output, list(found.items())):
        picture.draw(points, ceilings, path, f"{machine.hardware} [{machine.device}]")
        typer.echo(f"{path}: {len(points)} point{'s' * (len(points) != 1)}, {machine.hardware}")


@contextmanager
def _finished(output: Path, db: str, *filters: str | None) -> "Iterator[tuple[Store, list[RunRecord]]]":
    """The results, and the finished runs in them that pass the filters of every command."""
    from stmbench import style
    from stmbench.reading import selection
    from stmbench.store import open_store

    style.check(output)
    mixer, scale, recipe, data, device, where = filters
    with open_store(db, create=False) as store:
        runs = selection.finished(
            store, mixer=mixer, scale=scale, recipe_name=recipe, data=data, device=device, where=where
        )
        yield store, runs


def _draw(picture: Any, groups: Sequence[Any], output: Path, missing: str) -> None:
    """Draw each group by the module `picture`, or say what is missing and how to make it."""
    if not groups:
        typer.echo(f"No finished run that matches {missing}.")
    for path, group in _paths(output, groups):
        picture.draw(group, path)
        typer.echo(f"{path}: {picture.caption(group)}")


def _paths(output: Path, found: Sequence[Any]) -> Iterator[tuple[Path, Any]]:
    """Where each is drawn: `output` itself, or several numbered from 1."""
    for i, each in enumerate(found, 1):
        yield output if len(found) == 1 else output.with_stem(f"{output.stem}-{i}"), each


def _read(store: "Store", runs: "Sequence[RunRecord]") -> "Mapping[_Machine, tuple[list[Point], Ceilings]]":
    """Points and ceilings by machine; of runs of one network, newest first, the newest gives its points."""
    from stmbench.measure import roofline as picture
    from stmbench.pictures.networks import family

    numbers = store.headline(("profile",), _NUMBERS)
    points: defaultdict[_Machine, dict[tuple[str, str], Point]] = defaultdict(dict)
    matmul: defaultdict[_Machine, dict[str, float]] = defaultdict(dict)
    copies: defaultdict[_Machine, float] = defaultdict(float)
    for run in runs:
        own, ceilings = picture.read(family(run, run.scale), numbers.get(run.id, ()))
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
