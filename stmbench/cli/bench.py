"""`stmbench bench`: is one network faster than another, as a table, as JSON, and as an exit code for CI."""

import dataclasses
import json
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from stmbench.cli.layout import unfolded

if TYPE_CHECKING:
    from stmbench.bench import Contender, Options, Result, Row

_BUSY = 0.1  # of the machine's CPU time, in others' hands: said, since it widens the intervals
_STYLES = {"faster": "green", "slower": "red", "inconclusive": "yellow"}


class Format(StrEnum):
    TABLE = "table"
    JSON = "json"


def bench(
    contenders: Annotated[
        list[str],
        typer.Argument(
            metavar="A B ...",
            help="Mixers or timm:NAME, the reference first. NAME@key=value,... changes for one of them: "
            "scale, weights, backend, precision, execution, memory_format.",
        ),
    ],
    scale: Annotated[str, typer.Option(help="micro, tiny, small, base.")] = "micro",
    weights: Annotated[str, typer.Option(help="Checkpoint file (.safetensors, .pth).")] = "",
    backend: Annotated[
        str,
        typer.Option(help="How mixers compute: see `stmbench mixers show halo`. \\[default: the fastest]"),
    ] = "",
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Images at once. \\[default: 1, or 8 for a training step]")
    ] = None,
    image_size: Annotated[int, typer.Option(min=1, help="Height and width of an image.")] = 224,
    channels: Annotated[int, typer.Option(help="Of an image: 1 or 3.")] = 3,
    classes: Annotated[int, typer.Option(min=1, help="That the classifier tells apart.")] = 1000,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
    mode: Annotated[str, typer.Option(help="inference, or train: a whole training step.")] = "inference",
    precision: Annotated[str, typer.Option(help="fp32, tf32, bf16, fp16.")] = "fp32",
    execution: Annotated[str, typer.Option(help="eager, compiled, cudagraph.")] = "eager",
    memory_format: Annotated[str, typer.Option(help="channels_last, contiguous.")] = "channels_last",
    pairs: Annotated[int, typer.Option(min=8, help="Fresh processes of each contender.")] = 12,
    fail_if_slower: Annotated[
        str, typer.Option(metavar="5%", help="Exit with 1 if one is surely slower than the reference by it.")
    ] = "",
    format_: Annotated[Format, typer.Option("--format", help="How to print it.")] = Format.TABLE,
) -> None:
    """Time networks in turns, in fresh processes: faster, slower, or inconclusive."""
    from stmbench.bench import Options

    limit = _limit(fail_if_slower)
    options = Options(
        batch_size=batch_size,
        image_size=image_size,
        channels=channels,
        classes=classes,
        device=device,
        mode=mode,
        scale=scale,
        weights=weights,
        backend=backend,
        precision=precision,
        execution=execution,
        memory_format=memory_format,
    )
    _bench(contenders, options, pairs, limit, format_)


def _bench(
    names: list[str], options: "Options", pairs: int, limit: float | None, output_format: Format
) -> None:
    from stmbench import bench

    result = _follow(bench.contenders(names, options), pairs)
    if output_format is Format.JSON:
        typer.echo(json.dumps(_record(result), indent=2, ensure_ascii=False))
    else:
        _show(result)
    errors = Console(stderr=True, soft_wrap=True)
    slower = [line for row in result.rows[1:] if limit is not None and (line := _slower(row, result, limit))]
    for line in slower:
        errors.print(escape(line), highlight=False)
    failed = all(row.reason for row in result.rows[1:]) or result.rows[0].reason
    if slower or failed:
        raise typer.Exit(1)


def _limit(text: str) -> float | None:
    """The ratio that ``5%`` allows: 1.05; None for no text."""
    if not text:
        return None
    number = text.strip().removesuffix("%")
    try:
        if not text.strip().endswith("%") or not 0 <= float(number) < float("inf"):
            raise ValueError
    except ValueError:
        raise ValueError(f"--fail-if-slower takes a share such as 5%, not '{text}'.") from None
    return 1 + float(number) / 100


def _slower(row: "Row", result: "Result", limit: float) -> str:
    """Why the row does not pass the limit; "" if it does."""
    name, reference, percent = row.contender.name, result.rows[0].contender.name, 100 * (limit - 1)
    if row.ratio is None:
        return f"{name} was not measured, so nobody knows whether it is slower than {reference}."
    if row.ratio.low <= limit:
        return ""
    return (
        f"{name} is more than {percent:g} % slower than {reference}: "
        f"{row.ratio.value:.3f} times as long, at least {row.ratio.low:.3f}."
    )


def _follow(contenders: "list[Contender]", pairs: int) -> "Result":
    """Run the bench under a bar on stderr; the result is all that goes to stdout."""
    from stmbench import bench
    from stmbench.cli.draw import Drawer

    console = Console(stderr=True, soft_wrap=True)
    try:
        with Drawer(console) as drawer:
            for event in bench.run(contenders, pairs):
                if isinstance(event, bench.Result):
                    return event
                drawer.draw(event)
    except KeyboardInterrupt:
        console.print("[yellow]Stopped.[/]")
        raise typer.Exit(130) from None
    raise AssertionError("a bench ends with its result")


def _show(result: "Result") -> None:
    console = unfolded(Console())
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("contender", overflow="fold")
    backends = any(row.backend not in ("", "plain") for row in result.rows)
    if backends:
        table.add_column("backend", overflow="fold")
    for header in ("time", "ratio", "95 %"):
        table.add_column(header, justify="right", no_wrap=True)
    table.add_column("verdict", overflow="fold")
    for row in result.rows:
        name, *cells = _cells(row, reference=row is result.rows[0])
        table.add_row(name, *[escape(row.backend)] * backends, *cells)
    console.print(table)
    for line in _notes(result):
        console.print(f"[dim]{escape(line)}[/]", highlight=False)


def _cells(row: "Row", *, reference: bool) -> tuple[str, ...]:
    time = f"{1e3 * row.seconds:.4g} ms" if row.seconds is not None else ""
    name, verdict = escape(row.contender.name), "reference" if reference else ""
    if row.reason:
        return name, time, "", "", f"[red]{escape(row.reason)}[/]"
    if row.ratio is None:
        return name, time, "", "", verdict
    verdict = row.ratio.verdict
    interval = f"{row.ratio.low:.3f}\N{EN DASH}{row.ratio.high:.3f}"
    return name, time, f"{row.ratio.value:.3f}", interval, f"[{_STYLES[verdict]}]{verdict}[/]"


def _notes(result: "Result") -> list[str]:
    setting = result.rows[0].contender.setting
    channels, height, width = setting.shape
    lines = [
        f"{setting.mode} at batch {setting.batch} of {channels}x{height}x{width}, "
        f"{result.hardware} [{setting.device}], {result.threads} threads; "
        f"ratio of times to the reference's, {result.groups} processes of each"
    ]
    if result.set_aside:
        lines.append(f"{result.set_aside} more of each were set aside: the machine ran slower under them")
    if result.others > _BUSY:
        lines.append(f"other programs took {100 * result.others:.0f} % of the CPU meanwhile")
    return lines


def _record(result: "Result") -> dict[str, Any]:
    from stmbench.bench import PROTOCOL

    shared = ("groups", "set_aside", "others", "hardware", "threads", "versions")
    return {
        "protocol": PROTOCOL,
        "reference": result.rows[0].contender.name,
        **{name: getattr(result, name) for name in shared},
        "contenders": [_row_record(row) for row in result.rows],
    }


def _row_record(row: "Row") -> dict[str, Any]:
    job = row.contender.job
    found = row.ratio
    return {
        "name": row.contender.name,
        "network": job.mixer,
        "scale": job.scale,
        "design": job.design,
        "weights": job.weights or "",
        "backend": row.backend,
        "forced": job.backend,
        **dataclasses.asdict(row.contender.setting),
        "seconds": row.seconds,
        "ratio": found and found.value,
        "low": found and found.low,
        "high": found and found.high,
        "verdict": found and found.verdict,
        "log_ratios": list(row.log_ratios),
        "reason": row.reason,
    }
