"""`stmbench compare`: what differs, the test of top-1, and the verdict. It imports no torch."""

import json
import statistics
from collections.abc import Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from stmbench.cli.layout import unfolded
from stmbench.cli.options import DEFAULT, Database

if TYPE_CHECKING:
    from stmbench.reading.compare import Comparison, Outcome
    from stmbench.reading.differences import Cost
    from stmbench.reading.significance import Interval

_STYLES = {"better": "green", "worse": "red", "inconclusive": "yellow"}


class Probe(StrEnum):
    LINEAR = "linear"
    KNN = "knn"


class Format(StrEnum):
    TABLE = "table"
    JSON = "json"


def compare(
    sides: Annotated[
        list[str],
        typer.Argument(
            metavar="A B ...",
            help="Runs, or networks as the leaderboard names them (halo, halo-micro), with all their seeds; "
            "the reference first.",
        ),
    ],
    scale: Annotated[str | None, typer.Option(help="Only runs at this scale, for networks.")] = None,
    recipe: Annotated[str | None, typer.Option(help="Only runs of this recipe, for networks.")] = None,
    data: Annotated[str | None, typer.Option(help="Only runs on this data set, for networks.")] = None,
    where: Annotated[
        str | None, typer.Option(metavar="FILTER", help='Only runs that this holds for: "seed in (0, 1)".')
    ] = None,
    probe: Annotated[
        Probe | None, typer.Option(help="Compare the answers that the stage probe got from their features.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Even if data, recipes or images differ.")] = False,
    format_: Annotated[Format, typer.Option("--format", help="How to print it.")] = Format.TABLE,
    db: Database = DEFAULT,
) -> None:
    """Say what differs between trained networks, and which is surely more often right."""
    from stmbench.reading import compare as comparing
    from stmbench.store import open_store

    with open_store(db, create=False) as store:
        found = comparing.compare(
            store,
            sides,
            scale=scale,
            recipe_name=recipe,
            data=data,
            where=where,
            probe=probe or "",
            force=force,
        )
    if format_ is Format.JSON:
        typer.echo(json.dumps(comparing.record(found), indent=2, ensure_ascii=False))
    else:
        _show(found, f"Top-1 by {probe} probe" if probe else "Top-1")


def _show(found: "Comparison", title: str = "Top-1") -> None:
    console = unfolded(Console())
    console.print("[bold]What differs[/]")
    console.print(_differences(found))
    console.print("[dim]Nothing else differs.[/]", highlight=False)
    if found.costs:
        console.print("\n[bold]Costs[/]")
        console.print(_costs(found))
        for line in _conditions(found.costs):
            console.print(f"[dim]{escape(line)}[/]", highlight=False)
    images = "" if found.images is None else f" on {found.images:,} test images"
    console.print(f"\n[bold]{title}{images}[/]", highlight=False)
    console.print(_tests(found))
    for line in found.forced:
        console.print(f"[yellow]forced:[/] {escape(line)}", highlight=False)
    for line in _notes(found):
        console.print(f"[dim]{escape(line)}[/]", highlight=False)
    console.print()
    for outcome in found.outcomes:
        console.print(_verdict(outcome, found.sides[0].name), highlight=False)


def _table(*headers: str, right: Sequence[str] = (), whole: Sequence[str] = ()) -> Table:
    """Columns flush left but for those in `right`; in a narrow terminal those in `whole` do not give way."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for header in headers:
        justify = "right" if header in right else "left"
        table.add_column(escape(header), justify=justify, overflow="fold", no_wrap=header in whole)
    return table


def _differences(found: "Comparison") -> Table:
    from stmbench.reading.tables import NONE

    table = _table("", "", *(side.name for side in found.sides))
    topic = ""
    for one in found.differences:
        values = (escape(value) or NONE for value in one.values)
        table.add_row(one.topic if one.topic != topic else "", escape(one.name), *values)
        topic = one.topic
    return table


def _costs(found: "Comparison") -> Table:
    from stmbench.reading.tables import DISTURBED

    names = [side.name for side in found.sides]
    table = _table("", *names, right=names)
    shared = _shared(found.costs)
    for cost in found.costs:
        own = [part for part in cost.condition.split(",") if part not in shared] if _timed(cost) else []
        label = f"{cost.name}{DISTURBED * cost.disturbed}" + f" at {', '.join(own)}" * bool(own)
        table.add_row(escape(label), *_cells(cost))
    return table


def _cells(cost: "Cost") -> list[str]:
    from stmbench.reading import tables

    forms = {"parameters": tables.amount, "MACs": tables.macs}
    form = forms.get(cost.name, lambda value: f"{value:,.4g} {cost.unit}")
    cells = []
    for value, ratio in zip(cost.values, cost.ratios, strict=True):
        of_first = f" ({ratio:.3f}x)" if ratio is not None and cells else ""
        cells.append(tables.NONE if value is None else form(value) + of_first)
    return cells


def _timed(cost: "Cost") -> bool:
    return cost.name in ("latency", "throughput")


def _shared(costs: "Sequence[Cost]") -> list[str]:
    """The parts of their condition that all times have in common, but for the batch."""
    conditions = [cost.condition.split(",") for cost in costs if _timed(cost)]
    parts = conditions[0] if conditions else []
    return [part for part in parts if all(part in one for one in conditions) and "batch" not in part]


def _conditions(costs: "Sequence[Cost]") -> list[str]:
    from stmbench.reading.tables import DISTURBED

    lines = [f"times at {', '.join(shared)}"] if (shared := _shared(costs)) else []
    if any(cost.disturbed for cost in costs):
        lines.append(f"{DISTURBED} the machine was disturbed: `stmbench show RUN` says how")
    return lines


def _tests(found: "Comparison") -> Table:
    p = "p (Holm)" if len(found.outcomes) > 1 else "p"
    headers = ("", "seeds", "top-1 %", "difference", "interval", p, "verdict")
    table = _table(*headers, right=headers[1:-1], whole=("difference", p, "verdict"))
    rows = [("", "", "", "reference"), *map(_outcome, found.outcomes)]
    for side, row in zip(found.sides, rows, strict=True):
        scores = [value for value in side.top1 if value is not None]
        sd = f" ±{statistics.stdev(scores):.2f}" if len(scores) > 1 else ""
        top1 = f"{statistics.fmean(scores):.2f}{sd}" if scores else ""
        table.add_row(escape(side.name), str(len(side.runs)), top1, *row)
    return table


def _outcome(outcome: "Outcome") -> tuple[str, str, str, str]:
    """Difference, interval, p-value and verdict."""
    if outcome.test is None:
        return "", "", "", "[yellow]no test[/]"
    assert outcome.p is not None
    assert outcome.verdict
    verdict = f"[{_STYLES[outcome.verdict]}]{outcome.verdict}[/]"
    return f"{outcome.test.value:+.2f}", _ends(outcome.interval), _p(outcome.p), verdict


def _ends(interval: "Interval | None") -> str:
    assert interval
    return f"{interval[0]:+.2f} to {interval[1]:+.2f}"


def _p(p: float) -> str:
    return f"{p:.2g}" if p >= 0.0001 else "<0.0001"


def _notes(found: "Comparison") -> list[str]:
    """How the tests were made, and what they do not say."""
    from stmbench.reading.significance import Pair

    reference, lines = found.sides[0], []
    pairs = [(one.contender, one.test) for one in found.outcomes if isinstance(one.test, Pair)]
    for name, test in pairs:
        alone = f"{test.only_contender:,} by {name} alone, {test.only_reference:,} by {reference.name} alone"
        lines.append(f"images answered rightly: {alone}")
    if pairs:
        lines.append(
            "McNemar's exact test, interval of a paired bootstrap; one seed each: this tells two trained"
        )
        lines[-1] += " networks apart, not what they are made of"
    if any(one.test and not isinstance(one.test, Pair) for one in found.outcomes):
        lines.append("means over seeds; the interval (Student's) is for other seeds and other test images")
        drawn = [(one.contender, one.hierarchical) for one in found.outcomes if one.hierarchical]
        intervals = ", ".join(f"{name} {_ends(interval)}" for name, interval in drawn)
        lines.append(f"hierarchical bootstrap of seeds, then images: {intervals}; it covers too little where")
        lines[-1] += " seeds vary much, and does not decide"
        lone = [side.name for side in found.sides if len(side.runs) == 1]
        lines += [f"{', '.join(lone)}: one seed, taken to vary as much as the other side's"] * bool(lone)
    if len(found.outcomes) > 1:
        lines.append(f"p-values and intervals are corrected for {len(found.outcomes)} comparisons (Holm)")
    return lines


def _verdict(outcome: "Outcome", reference: str) -> str:
    name, reference = escape(outcome.contender), escape(reference)
    if outcome.test is None or outcome.verdict is None:
        return f"[yellow]no test[/] of {name} against {reference}: {escape(outcome.reason)}."
    word = f"[{_STYLES[outcome.verdict]}]{outcome.verdict}[/]"
    assert outcome.level
    coverage = f"{100 * (1 - outcome.level):.4g} %"
    numbers = f"{outcome.test.value:+.2f} points, {coverage} interval {_ends(outcome.interval)}"
    if outcome.verdict == "inconclusive":
        return f"{word}: {name} and {reference} are not told apart, {numbers}."
    return f"{word}: {name} than {reference}, {numbers}."
