"""A checkpoint file as a whole: what it holds, and the same as safetensors under our names."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from stmbench.nn.identify import Network, identify
from stmbench.nn.weights import convert, read_weights, save_weights, told_kinds


@dataclass(frozen=True, slots=True)
class Checkpoint:
    path: Path
    bytes: int
    sha256: str
    kinds: tuple[str, ...]  # plain, ema
    networks: tuple[Network, ...]  # those of ours that it fits; several where they differ in no weight
    parameters: int  # numbers in all tensors but derived ones, running statistics included
    tensors: int
    dtypes: tuple[str, ...]
    classes: int | None
    metadata: Mapping[str, str]


def inspect(path: Path) -> Checkpoint:
    """Read a checkpoint file and say what it is.

    Raises:
        ValueError: it cannot be read; see `stmbench.nn.weights.read_weights`.
    """
    state, metadata = read_weights(path)
    state = convert(state)
    head = state.get("head.fc.weight")
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return Checkpoint(
        path=path,
        bytes=path.stat().st_size,
        sha256=digest,
        kinds=told_kinds(path, metadata),
        networks=_named(identify(state), metadata),
        parameters=sum(tensor.numel() for tensor in state.values()),
        tensors=len(state),
        dtypes=tuple(sorted({str(tensor.dtype).removeprefix("torch.") for tensor in state.values()})),
        classes=None if head is None else len(head),
        metadata={key: value for key, value in metadata.items() if key not in ("ema", "weights")},
    )


def convert_file(path: Path, output: Path, *, ema: bool = False) -> Network:
    """Write the plain or averaged weights of a file as safetensors under our names; say of which network.

    Raises:
        ValueError: it cannot be read, is of no network of ours, lacks averaged weights, or `output` is there
            already or no .safetensors file.
    """
    if output.suffix != ".safetensors":
        raise ValueError(f"{output.name} is to be a .safetensors file.")
    if output.exists():
        raise ValueError(f"{output} is there already: give another name.")
    found = inspect(path)
    if ema and "ema" not in found.kinds:
        raise ValueError(f"{path} has no averaged weights.")
    if not found.networks:
        raise ValueError(f"{path} is of no network of ours: only those have names to convert to.")
    network = found.networks[0]
    state, _ = read_weights(path, ema=ema)
    told = {"mixer": network.mixer, "scale": network.scale, "design": network.design}
    source = {"weights": "ema" if ema else found.kinds[0], "source": path.name, "source_sha256": found.sha256}
    save_weights(output, convert(state), dict(found.metadata) | told | source)
    return network


def _named(networks: list[Network], metadata: Mapping[str, str]) -> tuple[Network, ...]:
    """Those that the file's own metadata names, if it does; pool and identity have the same weights."""
    named = [network for network in networks if network.mixer == metadata.get("mixer")]
    return tuple(named or networks)
