"""`stmbench mixers`: what there is to compare, and how each of it is computed on this machine."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from stmbench.catalog import Mixer
    from stmbench.mixers.backends import Backend, BackendMixer, Call

app = typer.Typer(invoke_without_command=True)
_SIZE = 224
_BATCH = {"cpu": 8, "cuda": 128, "mps": 32}
_PRECISION = {"cpu": "fp32", "cuda": "bf16", "mps": "fp32"}


@app.callback()
def mixers(context: typer.Context) -> None:
    """List the mixers with their scales and sources; `show` tells more of one."""
    if context.invoked_subcommand:
        return
    from stmbench import catalog

    table = Table("mixer", "also", "what it is", "scales", "source", box=None, pad_edge=False)
    for row in catalog.mixers().values():
        table.add_row(row.name, ", ".join(row.aliases), row.title, " ".join(row.scales), row.source)
    Console().print(table)


@app.command()
def show(mixer: Annotated[str, typer.Argument(help="A mixer's name or alias.")]) -> None:
    """Tell of one mixer: source, sizes, and the backends that can compute it."""
    from stmbench import catalog

    row = catalog.mixer(mixer)
    also = f" (also {', '.join(row.aliases)})" if row.aliases else ""
    console = Console()
    console.print(f"[bold]{row.name}[/]{also}: {row.title}\n{row.source}\n", highlight=False)
    console.print(_sizes(row))
    console.print()
    console.print(_backends(row))
    console.print(
        "\nEvery input takes the first that is best for it; --backend forces one. To compare them:\n"
        f"stmbench bench {row.name}@backend=plain {row.name}",
        highlight=False,
        style="dim",
    )


def _sizes(row: "Mixer") -> Table:
    from stmbench import plan
    from stmbench.reading import tables

    table = Table("scale", "widths", "depths", box=None, pad_edge=False)
    for header in ("params", f"MACs at {_SIZE}"):
        table.add_column(header, justify="right", no_wrap=True)
    for name, scale in row.scales.items():
        parameters, macs = plan.weigh(plan.sketch(row.name, name, image_size=_SIZE), _SIZE)
        sizes = (" ".join(map(str, numbers)) for numbers in (scale.widths, scale.depths))
        table.add_row(name, *sizes, tables.amount(parameters), tables.macs(macs))
    return table


def _backends(row: "Mixer") -> Table:
    """A line for each backend, best first: when it is taken, and what each device here makes of it."""
    from stmbench import devices, plan

    table = Table("backend", "when", box=None, pad_edge=False)
    columns = []
    for device in devices.kinds():
        for compiling in (False, True):
            how = f"{'compiled' if compiling else 'eager'} on {device}, {_PRECISION[device]}"
            table.add_column(how, overflow="fold")
            columns.append(_on(row, device, compiling))
    for backend in plan.backends_of(row.name):
        table.add_row(backend.name, escape(backend.when), *(column[backend.name] for column in columns))
    return table


def _on(row: "Mixer", device: str, compiling: bool) -> dict[str, str]:
    """What a device makes of each backend, by its name: what takes it, or why it cannot run."""
    from stmbench import plan

    takers: dict[str, dict[str, set[int]]] = defaultdict(lambda: defaultdict(set))
    calls = list(_calls(row, device, compiling))
    for mode, level, mixer, call in calls:
        takers[mixer.choose(call).name if mixer else "plain"][mode].add(level)
    return {
        backend.name: _said(takers[backend.name], backend, [call for *_, call in calls])
        for backend in plan.backends_of(row.name)
    }


def _said(takers: "Mapping[str, set[int]]", backend: "Backend", calls: "Sequence[Call]") -> str:
    if takers:
        words = {mode: f"{mode}{_levels(levels)}" for mode, levels in takers.items()}
        if len(takers) == 2 and len({_levels(levels) for levels in takers.values()}) == 1:
            words = {"both": f"all{_levels(next(iter(takers.values())))}"}
        return f"[green]takes[/] {', '.join(words.values())}"
    refusals = [backend.refuses(call) for call in calls]
    return f"[yellow]no:[/] {escape(refusals[0])}" if all(refusals) else "can run"


def _levels(levels: set[int]) -> str:
    """Nothing where it is all four."""
    return "" if len(levels) == 4 else f" at level {', '.join(map(str, sorted(levels)))}"


def _calls(
    row: "Mixer", device: str, compiling: bool
) -> "Iterator[tuple[str, int, BackendMixer | None, Call]]":
    """Every mixer of the tiny network, or the smallest there is, with what it is asked in each mode."""
    import torch

    from stmbench import plan
    from stmbench.mixers.backends import BackendMixer, Call

    scale = "tiny" if "tiny" in row.scales else next(iter(row.scales))
    model = plan.sketch(row.name, scale, image_size=_SIZE)
    dtype = torch.bfloat16 if _PRECISION[device] == "bf16" else torch.float32
    for mode in ("inference", "training"):
        for i, level in enumerate(model.levels):
            size, width = _SIZE // 4 // 2**i, row.scales[scale].widths[i]
            call = Call(
                device=device,
                dtype=dtype,
                shape=(_BATCH[device], size, size, width),
                grad=mode == "training",
                compiling=compiling,
                exporting=False,
            )
            found = [module for module in level.modules() if isinstance(module, BackendMixer)]
            yield from ((mode, i + 1, mixer, call) for mixer in found or [None])
