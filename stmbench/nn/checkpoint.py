"""A checkpoint file as a whole: what it holds, and the same as safetensors under our names."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from stmbench.nn import places, windows
from stmbench.nn.identify import Network, identify
from stmbench.nn.weights import DERIVED, backbone_of, convert, read_weights, save_weights, told_kinds


@dataclass(frozen=True, slots=True)
class Checkpoint:
    path: Path
    bytes: int
    sha256: str
    kinds: tuple[str, ...]  # plain, ema
    networks: tuple[Network, ...]  # those of ours that it fits; several where they differ in no weight
    model: str  # timm:NAME, where the folder it is in says so
    window: int  # the side of the windows of its mixers; 0 where they have none
    parts: str  # of a detector: which, and what becomes of them
    parameters: int  # numbers in all tensors but derived ones, running statistics included
    tensors: int
    dtypes: tuple[str, ...]
    classes: int | None
    metadata: Mapping[str, str]


def inspect(given: Path) -> Checkpoint:
    """Read a checkpoint file, or the one in a folder as the Hugging Face hub has them, and say what it is.

    Raises:
        ValueError: it cannot be found or read; see `places.locate` and `weights.read_weights`.
    """
    path = places.locate(given)
    found, metadata = read_weights(path)
    inside = backbone_of(found)
    state = convert(inside or found)
    learnt = {key: tensor for key, tensor in found.items() if not DERIVED.search(key)}
    head = state.get("head.fc.weight")
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    config = places.config_of(path)
    return Checkpoint(
        path=path,
        bytes=path.stat().st_size,
        sha256=digest,
        kinds=told_kinds(path, metadata),
        networks=_named(identify(found), metadata),
        model=places.timm_name(config),
        window=windows.side(state),
        parts=_parts(found, state) if inside else "",
        parameters=sum(tensor.numel() for tensor in learnt.values()),
        tensors=len(learnt),
        dtypes=tuple(sorted({str(tensor.dtype).removeprefix("torch.") for tensor in learnt.values()})),
        classes=config.get("num_classes") if head is None else len(head),
        metadata={key: value for key, value in metadata.items() if key not in ("ema", "weights")},
    )


def _parts(found: Mapping[str, Tensor], backbone: Mapping[str, Tensor]) -> str:
    """What a detector consists of, and what a classifier can take of it."""
    tops = {key.partition(".")[0] for key in found} - {"backbone"}
    others = ", ".join(
        sorted("neck" if top == "pyramid" else top for top in tops)
    )  # it holds our backbone too
    normed = any(key.startswith("levels.0.norm.") for key in backbone)
    without = "" if normed else ", which ran without the norms between levels: these start anew"
    return f"backbone, {others}, of a detector; a classifier takes the backbone alone{without}"


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
    if found.parts:
        raise ValueError(f"{path} is a detector: `--weights` takes it as it is.")
    network = found.networks[0]
    state, _ = read_weights(found.path, ema=ema)
    told = {"mixer": network.mixer, "scale": network.scale, "design": network.design}
    source = {
        "weights": "ema" if ema else found.kinds[0],
        "source": found.path.name,
        "source_sha256": found.sha256,
    }
    save_weights(output, convert(state), dict(found.metadata) | told | source)
    return network


def _named(networks: list[Network], metadata: Mapping[str, str]) -> tuple[Network, ...]:
    """Those that the file's own metadata names, if it does; pool and identity have the same weights."""
    named = [network for network in networks if network.mixer == metadata.get("mixer")]
    return tuple(named or networks)
