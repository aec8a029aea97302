"""Every backend of every mixer against the plain one, at the sizes of the backbone's four levels.

python tests/benchmarks/bench_mixers.py [--mixers halo,swin] [--quick] [-o FILE.json] [--against OLD.json]

One process; a case's backends are timed in turns, in rounds whose order is turned round every time, and
with them one linear layer on the same map in float32. A round is the median pass; the ratios are to the
plain backend and to the linear layer in the same round, so that what slows the machine down touches both.
Of a mixer whose successive blocks differ (shifted windows) a pass is the mean of its kinds. The backend that
would be taken unasked is marked *. CONTRIBUTING says how to read it.
"""

import argparse
import atexit
import contextlib
import copy
import gc
import itertools
import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import suite
import torch
from suite import Case
from torch import Tensor, nn

from stmbench import catalog, plan
from stmbench.measure import clock, machine
from stmbench.measure.setting import AUTOCAST
from stmbench.mixers import backends
from stmbench.mixers.backends import PLAIN, BackendMixer

SIZES = (56, 28, 14, 7)  # of the levels, of an image of 224 pixels
LINEAR = "linear"
PASSES, ROUND_S = 2, 0.03  # a round has at least both
KEYS = ("mixer", "backend", "mode", "level", "dtype", "compiled", "scale", "batch")


def options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--mixers", type=suite.words, default=list(catalog.mixers()))
    parser.add_argument("--backends", type=suite.words, default=[], help="beside plain; all by default")
    parser.add_argument("--mode", type=suite.words, default=["forward", "train"])
    parser.add_argument("--levels", type=suite.words, default=["1", "2", "3", "4"])
    parser.add_argument("--dtypes", type=suite.words, default=["fp32", "bf16"])
    parser.add_argument("--scale", default="tiny")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--compiled", action="store_true")
    parser.add_argument("--quick", action="store_true", help="3 rounds of levels 1 and 3 in fp32: a minute")
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--against", type=Path, help="an older file")
    given = parser.parse_args(arguments)
    if given.quick:
        given.rounds, given.levels, given.dtypes = 3, ["1", "3"], ["fp32"]
    given.mixers = [catalog.mixer(name).name for name in given.mixers]
    return given


def main(arguments: Sequence[str] | None = None) -> None:
    given = options(arguments)
    gc.freeze()  # what is imported stays: collecting before each round has little to look through
    atexit.register(gc.unfreeze)
    cases: list[Case] = []
    lists = (given.mixers, given.mode, given.dtypes, map(int, given.levels))
    for mixer, mode, dtype, level in itertools.product(*lists):
        for case in measure(given, mixer, mode, dtype, level):
            cases.append(case)
            show(case)
    if given.output:
        kept = {key: value for key, value in vars(given).items() if key not in ("output", "against")}
        suite.write(given.output, suite.head("mixers/1", given.device, kept), cases)
    if given.against:
        suite.compare(given.against, cases, KEYS)


def measure(given: argparse.Namespace, mixer: str, mode: str, dtype: str, level: int) -> Iterator[Case]:
    """A case for each backend that can run."""
    torch.compiler.reset()  # or the cases before would use up what one function may be compiled for
    blocks, width = mixers_of(mixer, given.scale, level)
    x = torch.randn(given.batch, SIZES[level - 1], SIZES[level - 1], width)
    x = x.to(given.device).requires_grad_(mode == "train")
    asked = [each.name for each in plan.backends_of(mixer) if each.name != PLAIN]
    asked = [name for name in asked if name in given.backends or not given.backends]
    default, contenders = "", {}
    for name in ("", PLAIN, *asked):
        members = nn.ModuleList(copy.deepcopy(block) for block in blocks).to(given.device)
        backends.force(members, name)
        taken = path(members, x, mode, dtype, compiling=given.compiled)
        default = default or taken
        if name and taken == name:
            contenders[name] = timed(members, x, mode, dtype, given.compiled)
    rounds, peaks = race(contenders | {LINEAR: linear(x)}, given.device, given.rounds)
    for name in contenders:
        seconds = [each / len(blocks) for each in rounds[name]]
        linears, plain = quartiles(seconds, rounds[LINEAR]), quartiles(rounds[name], rounds[PLAIN])
        yield {
            **{"mixer": mixer, "backend": name, "taken": name in default.split("+"), "mode": mode},
            **{"level": level, "size": SIZES[level - 1], "width": width, "dtype": dtype},
            **{"compiled": given.compiled, "scale": given.scale, "batch": given.batch},
            "ms": significant(1e3 * statistics.median(seconds)),
            **dict(zip(("ratio_low", "ratio", "ratio_high"), plain, strict=True)),
            **dict(zip(("linears_low", "linears", "linears_high"), linears, strict=True)),
            "peak_bytes": peaks[name],
        }


def mixers_of(mixer: str, scale: str, level: int) -> tuple[list[nn.Module], int]:
    """The mixers of successive blocks of a level until they repeat, and their width."""
    row = catalog.mixer(mixer)
    width = catalog.scale(mixer, scale).widths[level - 1]
    made = catalog.resolve(row.target)
    kinds = math.lcm(*(len(values) for values in row.block_options.values()))
    torch.manual_seed(0)
    return [made(width, **row.options(width, level - 1, block)) for block in range(kinds)], width


def context(x: Tensor, mode: str, dtype: str) -> contextlib.ExitStack:
    """As the network's blocks are called: autocast around activations of float32."""
    stack = contextlib.ExitStack()
    stack.enter_context(torch.enable_grad() if mode == "train" else torch.inference_mode())
    if dtype in AUTOCAST:
        stack.enter_context(torch.autocast(x.device.type, AUTOCAST[dtype]))
    return stack


def path(members: nn.ModuleList, x: Tensor, mode: str, dtype: str, *, compiling: bool) -> str:
    """The backends that the mixers take."""
    with backends.fallbacks(lambda _: None), context(x, mode, dtype):
        call = backends._call(x)._replace(compiling=compiling)
        taken = {each.choose(call).name for each in members if isinstance(each, BackendMixer)}
    return "+".join(sorted(taken)) or PLAIN


def timed(members: nn.ModuleList, x: Tensor, mode: str, dtype: str, compiled: bool) -> Callable[[], object]:
    """A pass through each of the mixers; in training forward and backward, without an optimizer."""
    calls: list[Any] = [torch.compile(each, fullgraph=True) if compiled else each for each in members]
    direction = torch.randn_like(x)

    def forward() -> None:
        with context(x, mode, dtype):
            for call in calls:
                call(x)

    def train() -> None:
        members.zero_grad(set_to_none=True)
        x.grad = None
        for call in calls:
            with context(x, mode, dtype):
                out = call(x)
            out.backward(direction.to(out.dtype))

    return train if mode == "train" else forward


def linear(x: Tensor) -> Callable[[], object]:
    """The measure of all: one product of the map with a square matrix."""
    weight, x = torch.randn(x.shape[-1], x.shape[-1], device=x.device), x.detach()

    def once() -> Tensor:
        with torch.inference_mode():
            return nn.functional.linear(x, weight)

    return once


def race(
    contenders: dict[str, Callable[[], object]], device: str, rounds: int
) -> tuple[dict[str, list[float]], dict[str, int | None]]:
    """Seconds of each round, and the bytes that a pass needs at most beside what is there (CUDA only)."""
    peaks = {}
    for name, once in contenders.items():  # which warms it up, and compiles it
        for _ in range(clock.FEWEST):
            once()
        machine.reset_peak(device)
        before = machine.memory(device)
        once()
        peaks[name] = machine.peak(device) - before if device.startswith("cuda") else None
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(rounds):
        for name in reversed(contenders) if turn % 2 else contenders:
            passes, on_device = clock.time_passes(contenders[name], PASSES, device, ROUND_S)
            seconds[name].append(statistics.median(on_device or passes))
    return seconds, peaks


def quartiles(own: Sequence[float], other: Sequence[float]) -> list[float]:
    """Of the ratios of the rounds."""
    ratios = [a / b for a, b in zip(own, other, strict=True)]
    return [
        significant(each) for each in (statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3)
    ]


def significant(value: float) -> float:
    return float(f"{value:.4g}")


def show(case: Case) -> None:
    where = f"{case['mixer']} {case['mode']} {case['size']}x{case['size']}x{case['width']} {case['dtype']}"
    memory = f"  {case['peak_bytes'] / 1e6:,.0f} MB" if case["peak_bytes"] is not None else ""
    line = f"{where:<36} {case['backend'] + '*' * case['taken']:<12} {case['ms']:9.4g} ms"
    line += f" {case['linears']:8.1f} linears {case['ratio']:8.3f} of plain"
    print(f"{line} ({case['ratio_low']:.3f} to {case['ratio_high']:.3f}){memory}", flush=True)


if __name__ == "__main__":
    main()
