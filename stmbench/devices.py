"""Devices by the names that users give: what is here, and how many processes it takes."""

import torch

from stmbench import catalog, world
from stmbench.recipe import Recipe
from stmbench.training.engine import shares

KINDS = ("cuda", "mps", "cpu")  # of devices


def find(name: str) -> str:
    """`auto` as the best device there is; ValueError for one that is not here."""
    here = dict.fromkeys(KINDS, False) | dict.fromkeys(kinds(), True)
    if name == "auto":
        return world.place(kinds()[0])
    kind, _, index = name.partition(":")
    catalog.known("device", kind, ["auto", *here])
    if not here[kind]:
        raise ValueError(f"No {kind} device here. Use --device auto; `stmbench doctor` shows what there is.")
    if index and (not index.isdigit() or kind != "cuda" or int(index) >= torch.cuda.device_count()):
        raise ValueError(f"No device '{name}' here; `stmbench doctor` shows what there is.")
    return world.place(name)


def elsewhere(name: str, protocol: Recipe) -> str:
    """The device of another machine, where nothing depends on what only that machine knows."""
    if name == "auto":
        raise ValueError("Which device is best elsewhere is not known here: give --device cuda or cpu.")
    catalog.known("device", name, KINDS)
    if name == "cuda" and protocol.train.precision == "auto":
        raise ValueError(
            "train.precision = auto depends on a GPU that is elsewhere: set train.precision=bf16."
        )
    return name


def check_processes(count: int, device: str, protocol: Recipe) -> None:
    """ValueError where there are not so many GPUs, or the recipe's batch cannot be dealt out to them."""
    if count == 1:
        return
    shares(protocol, count)
    if device.startswith("cuda:") and not world.launched():
        raise ValueError(f"--gpus chooses the GPUs itself: give --device cuda, not {device}.")
    if device == "cuda" and count > torch.cuda.device_count():
        raise ValueError(f"There are {torch.cuda.device_count()} GPUs here, fewer than --gpus {count}.")


def kinds() -> list[str]:
    """The kinds of devices that are here, the fastest first."""
    here = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    return [kind for kind in KINDS if here[kind]]
