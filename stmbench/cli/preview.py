"""What `stmbench run --dry-run` shows: the resolved recipe, each network's size, the data, the plan."""

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from stmbench import plan
from stmbench.reading import tables


def show(console: Console, asked: plan.Request, seeds: Sequence[int]) -> None:
    """Print the plan of a request."""
    info, recipe = asked.info, asked.recipe
    console.print(f"[bold]Recipe[/] {recipe.name} ({recipe.digest})", highlight=False)
    for section, values in recipe.values().items():
        if isinstance(values, dict):
            line = "  ".join(f"{key}={_plain(value)}" for key, value in values.items())
            console.print(f"  [cyan]\\[{section}][/] {line}", highlight=False)
    console.print(
        f"[bold]Data[/]   {escape(info.name)} ({info.fingerprint}): {info.num_train:,} training and "
        f"{info.num_val:,} validation images, {info.num_classes} classes",
        highlight=False,
    )
    if asked.preprocessing:
        used = "  ".join(f"{key}={_plain(value)}" for key, value in asked.preprocessing.items())
        console.print(f"[bold]Images[/] prepared as the weights want: {used}", highlight=False)
    table = Table("mixer", "scale", "parameters", "MACs", box=None, pad_edge=False)
    for mixer in asked.mixers:
        parameters, macs = plan.size(asked, mixer)
        counted = tables.NONE if macs is None else tables.macs(macs)
        table.add_row(mixer, asked.scale_of(mixer) or tables.NONE, f"{parameters:,}", counted)
    console.print("[bold]Models[/]")
    console.print(table)
    console.print(
        f"[bold]Plan[/]   {' → '.join(asked.stages)} on {asked.device}, "
        f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}, "
        f"{f'backend {asked.backend}, ' if asked.backend else ''}"
        f"{f'design {asked.design}, ' if asked.design != 'unified' else ''}"
        f"for {len(asked.mixers)} model{'s' * (len(asked.mixers) != 1)}. Nothing was run.",
        highlight=False,
    )


def _plain(value: object) -> str:
    return "default" if value is None else escape(str(list(value) if isinstance(value, tuple) else value))
