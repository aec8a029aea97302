"""What works on this machine, as JSON rows [works, what, found]: ``python -m stmbench.probe``.

A program of its own, so that `stmbench doctor` survives whatever is broken here.
"""

import json
import shutil
import sys

import torch

import stmbench.data
from stmbench import evidence

DATA = ("fashion-mini", "fashion")


def rows() -> list[tuple[bool, str, str]]:
    """One row per library, device, backend and named data set."""
    versions = ", ".join(f"{name} {version}" for name, version in evidence.versions().items() if name != "os")
    found = [
        (True, "versions", versions),
        (True, "cpu", f"{evidence.hardware('cpu')}, {torch.get_num_threads()} threads"),
    ]
    found += [_cuda(), (torch.backends.mps.is_available(), "mps", _yes(torch.backends.mps.is_available()))]
    found.append(_compile())
    return found + [_data(source) for source in DATA]


def _cuda() -> tuple[bool, str, str]:
    if not torch.cuda.is_available():
        return False, "cuda", "not here"
    names = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    bf16 = "bf16" if torch.cuda.is_bf16_supported() else "no bf16"
    return (
        True,
        "cuda",
        ", ".join(f"{p.name} ({p.total_memory / 2**30:.0f} GiB)" for p in names) + f", {bf16}",
    )


def _compile() -> tuple[bool, str, str]:
    compiler = shutil.which("g++") or shutil.which("c++") or shutil.which("clang++")
    return bool(compiler), "torch.compile", compiler or "no C++ compiler: train.compile needs one on a CPU"


def _data(source: str) -> tuple[bool, str, str]:
    try:
        info = stmbench.data.find(source)
    except ValueError as error:
        return False, f"data {source}", str(error)
    return True, f"data {source}", f"{info.num_train:,} + {info.num_val:,} images, {info.num_classes} classes"


def _yes(there: bool) -> str:
    return "here" if there else "not here"


if __name__ == "__main__":
    json.dump(rows(), sys.stdout)
