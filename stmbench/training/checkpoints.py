"""What training leaves behind to go on from: the last checkpoint, and the one before it.

A checkpoint appears whole or not at all. Should the last one be damaged all the same, by the disk or by a
copy that was cut short, training goes on from the one before.
"""

import io
from pathlib import Path
from typing import Any

import torch

from stmbench.nn.weights import write_whole

LAST, BEFORE = "checkpoint.pt", "checkpoint.before.pt"


def save(folder: Path, state: Any) -> None:
    """Write a checkpoint into the folder; the last one becomes the one before.

    Raises:
        OSError: the disk is full. Both checkpoints are as they were.
    """
    content = io.BytesIO()
    torch.save(state, content)
    draft = folder / "checkpoint.next.pt"
    write_whole(draft, content.getbuffer())
    if (folder / LAST).is_file():
        (folder / LAST).replace(folder / BEFORE)
    draft.replace(folder / LAST)


def load(folder: Path, device: str) -> tuple[Any, str]:
    """The state to go on from, None where there is none, and a line to say of a damaged one, "" for none.

    Raises:
        RuntimeError: what there is cannot be read.
    """
    damaged = ""
    for name in (LAST, BEFORE):
        path = folder / name
        if not path.is_file():
            continue
        try:
            return torch.load(path, map_location=device, weights_only=True), damaged
        except Exception as error:  # a damaged pickle fails in any way
            why = str(error).splitlines()[0] if str(error) else type(error).__name__
            damaged = (
                damaged or f"The checkpoint {path} cannot be read ({why}): going on from the one before."
            )
    if damaged:
        raise RuntimeError(
            f"{damaged.removesuffix(': going on from the one before.')}, and there is no other: "
            "start a new run."
        )
    return None, ""
