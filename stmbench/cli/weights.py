"""`stmbench weights`: what a checkpoint file holds, and the same under our names."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from stmbench.nn.checkpoint import Checkpoint

app = typer.Typer(no_args_is_help=True, help="Look into checkpoint files, ours, published ones and timm's.")
_FILE = "A checkpoint (.safetensors, .pth, .pt, .bin), or a folder of the Hugging Face hub's with one."


@app.callback()
def weights() -> None:
    pass


@app.command()
def inspect(file: Annotated[Path, typer.Argument(help=_FILE)]) -> None:
    """Say which network a checkpoint is of, how large, with which weights and what else it tells."""
    from stmbench.nn import checkpoint

    Console(soft_wrap=True).print(_facts(checkpoint.inspect(file)))


@app.command()
def convert(
    file: Annotated[Path, typer.Argument(help=_FILE)],
    output: Annotated[Path, typer.Option("--output", "-o", help="The new .safetensors file.")],
    ema: Annotated[
        bool, typer.Option("--ema", help="The averaged weights, where the file has both.")
    ] = False,
) -> None:
    """Write a checkpoint as safetensors under our names, once its network is known."""
    from stmbench.nn import checkpoint

    network = checkpoint.convert_file(file, output, ema=ema)
    typer.echo(f"{output}: {network}")


def _facts(found: "Checkpoint") -> Table:
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold")
    networks = " or ".join(map(str, found.networks)) or found.model or "none of ours"
    facts = {
        "file": str(found.path),
        "size": f"{found.bytes / 1e6:.1f} MB",
        "sha256": found.sha256,
        "network": networks,
        "windows": f"{found.window} x {found.window}" if found.window else "",
        "parts": found.parts,
        "weights": " and ".join(found.kinds),
        "parameters": f"{found.parameters:,} in {found.tensors} tensors of {', '.join(found.dtypes)}",
        "classes": str(found.classes) if found.classes else "",
        **dict(sorted(found.metadata.items())),
    }
    for name, value in facts.items():
        if value:
            table.add_row(escape(name), escape(value))
    return table
