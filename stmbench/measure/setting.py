"""What is timed and what is found: the words that a measuring process and its parent exchange."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch

from stmbench.recipe import Profile

Precision = Literal["fp32", "tf32", "bf16", "fp16"]
Execution = Literal["eager", "compiled", "cudagraph"]
MemoryFormat = Literal["channels_last", "contiguous"]

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
FORMATS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One way of running one network: what must be equal for two times to be compared."""

    mode: Literal["inference", "train"] = "inference"
    batch: int
    shape: tuple[int, int, int]  # channels, height, width of an image
    device: str = "cpu"
    precision: Precision = "fp32"  # fp32 leaves TF32 off; bf16 and fp16 are autocast
    execution: Execution = "eager"
    memory_format: MemoryFormat = "channels_last"


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A network that is ready to be timed."""

    compile_s: float | None  # the first pass of a compiled network, or capturing its graph; None when eager
    warm_up: tuple[float, ...]  # seconds of each pass of the warm-up
    settled: bool  # whether the running median had settled when the warm-up ended
    no_energy: str  # why energy cannot be measured here; "" where it can
    backend: str = ""  # that its mixers take, several joined by "+"; "" for a network that is not ours
    fallbacks: tuple[str, ...] = ()  # why the backend that was forced is not among them, a line each


@dataclass(frozen=True, slots=True)
class Rates:
    """What the device reached in the fixed matrix product and copy; None where there was no memory for it."""

    matmul: float | None  # MACs/s
    copy: float | None  # bytes/s, read and written


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """Passes timed one after the other, and what the machine was doing meanwhile."""

    seconds: tuple[float, ...]  # of each pass, by the wall clock, with the device waited for
    device_seconds: tuple[float, ...] = ()  # the same by CUDA events; empty elsewhere
    before: Mapping[str, Any]  # see `stmbench.measure.machine.state`
    after: Mapping[str, Any]
    others: float  # share of the machine's CPU time that other processes used
    steal: float  # share of it that the hypervisor gave to other machines
    rates: tuple[Rates, Rates]  # before and after the passes
    energy: float | None = None  # joules of a pass; None without a counter or in less than a second


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Bytes, from before the network was made to the end of the warm-up.

    Allocated by torch on a GPU, resident in the process elsewhere.
    """

    base: int  # before the network was made
    peak: int
    reserved: int | None = None  # the peak of what torch's allocator held; CUDA only


def check(device: str, profile: Profile) -> None:
    """ValueError for a precision or an execution that the device does not have."""
    if device.startswith("cuda"):
        if "tf32" in profile.precisions and torch.cuda.get_device_capability(device)[0] < 8:
            raise ValueError(
                "profile.precisions: this GPU has no TF32 (it came with compute capability 8.0)."
            )
        return
    kind = torch.device(device).type
    for key, values, names in (("precisions", profile.precisions, ("tf32",)),
                               ("executions", profile.executions, ("cudagraph",))):  # fmt: skip
        if refused := [name for name in names if name in values]:
            raise ValueError(f"profile.{key}: {refused[0]} needs a CUDA device, and this run's is {kind}.")
