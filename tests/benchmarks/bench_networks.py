"""Whole networks: time, memory, and the share of the machine, against timm's Swin-T and ConvNeXt-T.

python tests/benchmarks/bench_networks.py [--rounds 3] [--profile] [-o FILE.json] [--against OLD.json]

A training step (forward, backward, fused AdamW) and inference of the unified networks and of timm's. In
every round each gets a fresh process; all start together and are timed in turns, in turned order. Ratios are
to timm's two in the same round, medians over rounds. The peak of memory is the fresh process's, without what
it held before the network. The share is the network's MACs (three times as many in a training step) per
second over what the machine reaches in one large matrix product. `--profile` lists what a step spends its
time on.
"""

import argparse
import contextlib
import dataclasses
import gc
import statistics
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import suite
import torch
from suite import Case
from torch.profiler import ProfilerActivity, profile

from stmbench import bench
from stmbench.bench import Contender, Options
from stmbench.measure import ceilings, count
from stmbench.measure.setting import Memory, Prepared
from stmbench.measure.subject import Subject, adamw
from stmbench.measure.worker import WorkerError
from stmbench.training import network

REFERENCES = {"swin": "timm:swin_tiny_patch4_window7_224", "convnext": "timm:convnext_tiny"}
OURS = ("halo", "swin", "sra", "dwconv", "dcnv3", "pool", "identity")
TURNS, PASSES, TURN_S = 3, 3, 0.5  # of each in a round; a turn has at least both
KEYS = ("network", "mode", "precision", "execution", "batch", "image_size")
OPERATORS = 8  # of the profile


@dataclasses.dataclass(frozen=True)
class Timed:
    """What one process found in one round."""

    seconds: float
    memory: Memory
    prepared: Prepared


def options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=OURS, help="such as: halo halo@backend=plain")
    parser.add_argument("--mode", type=suite.words, default=["train", "inference"])
    parser.add_argument("--scale", default="tiny")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--execution", default="eager")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--no-timm", action="store_true", help="without the two references")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--against", type=Path, help="an older file")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    given = options(arguments)
    threads = torch.get_num_threads()
    ceiling = ceilings.measure(given.device, [given.precision], threads)[given.precision].matmul
    cases: list[Case] = []
    for mode in given.mode:
        asked = contenders(given, mode)
        found: dict[str, list[Timed]] = defaultdict(list)
        for turn in range(given.rounds):
            for name, timed in taken(asked, turned=turn % 2 == 1).items():
                found[name].append(timed)
        for contender in asked:
            case = case_of(contender, found, ceiling)
            cases.append(case)
            show(case)
            if given.profile and mode == "train":
                print("\n".join(f"    {line}" for line in operators(contender)))
    if given.output:
        kept = {key: value for key, value in vars(given).items() if key not in ("output", "against")}
        head = suite.head("networks/1", given.device, kept) | {"ceiling_macs_per_s": ceiling}
        suite.write(given.output, head, cases)
    if given.against:
        suite.compare(given.against, cases, KEYS)


def contenders(given: argparse.Namespace, mode: str) -> list[Contender]:
    names = [*given.networks, *([] if given.no_timm else REFERENCES.values())]
    shared = Options(
        batch_size=given.batch,
        image_size=given.size,
        device=given.device,
        mode=mode,
        scale=given.scale,
        precision=given.precision,
        execution=given.execution,
    )
    return [bench.contender(name, shared) for name in names]


def taken(asked: Sequence[Contender], turned: bool) -> dict[str, Timed]:
    """One round: a fresh process of each, timed in turns; those that fail are left out, and said."""
    seconds: dict[str, list[float]] = defaultdict(list)
    prepared: dict[str, Prepared] = {}
    memory: dict[str, Memory] = {}
    with contextlib.ExitStack() as stack:
        ready = [(contender.name, stack.enter_context(contender.start())) for contender in asked]
        for _, worker in ready:
            worker.wait()
        for name, worker in ready:
            try:
                prepared[name], memory[name] = worker.prepare(), worker.memory()
            except WorkerError as error:
                print(f"{name}: {error}", flush=True)
        ready = [(name, worker) for name, worker in ready if name in memory]
        for turn in range(TURNS):
            for name, worker in reversed(ready) if (turn % 2 == 1) != turned else ready:
                seconds[name] += worker.sample(PASSES, TURN_S, calibrate=False).seconds
    return {name: Timed(statistics.median(seconds[name]), memory[name], prepared[name]) for name, _ in ready}


def case_of(contender: Contender, found: dict[str, list[Timed]], ceiling: float | None) -> Case:
    setting, own = contender.setting, found[contender.name]
    case: Case = {
        **{"network": contender.name, "mode": setting.mode, "scale": contender.job.scale},
        **{"precision": setting.precision, "execution": setting.execution},
        **{"batch": setting.batch, "image_size": setting.shape[1]},
    }
    if not own:
        return case | {"ms": None}
    seconds = statistics.median(each.seconds for each in own)
    case |= {"backend": own[0].prepared.backend, "ms": significant(1e3 * seconds)}
    for label, reference in REFERENCES.items():
        pairs = zip(own, found.get(reference, []), strict=False)
        if ratios := [ours.seconds / theirs.seconds for ours, theirs in pairs]:
            case[label] = significant(statistics.median(ratios))
    case["peak_bytes"] = max(each.memory.peak - each.memory.base for each in own)
    macs = macs_of(contender) * setting.batch * (3 if setting.mode == "train" else 1)
    case["macs"], case["matmul_share"] = macs, ceiling and significant(macs / seconds / ceiling)
    return case


def macs_of(contender: Contender) -> int:
    model = network.make(contender.job, contender.classes, device="cpu")
    return count.count(model, contender.setting.shape).macs


def operators(contender: Contender) -> Iterator[str]:
    """What one step spends its time on, by torch's profiler, in this process."""
    subject = Subject(
        lambda: network.make(contender.job, contender.classes),
        contender.setting,
        adamw,
        torch.get_num_threads(),
    )
    subject.prepare()
    gc.unfreeze()
    cuda = contender.setting.device.startswith("cuda")
    with profile(activities=[ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * cuda]) as seen:
        subject._once()
    own = "self_device_time_total" if cuda else "self_cpu_time_total"
    rows = sorted(seen.key_averages(), key=lambda row: getattr(row, own), reverse=True)
    whole = sum(getattr(row, own) for row in rows)
    for row in rows[:OPERATORS]:
        spent = getattr(row, own)
        yield f"{spent / whole:6.1%} {spent / 1e3:9.2f} ms {row.count:5} x {row.key[:60]}"


def significant(value: float) -> float:
    return float(f"{value:.4g}")


def show(case: Case) -> None:
    name = f"{case['network']:<34} {case['mode']:<9} {case['precision']:<4}"
    if case["ms"] is None:
        print(f"{name}  failed", flush=True)
        return
    ratios = "".join(f"  {case[label]:.3f} of {label}" for label in REFERENCES if label in case)
    share = f"{case['matmul_share']:.0%} of the matrix product" if case["matmul_share"] else ""
    memory = f"{case['peak_bytes'] / 1e6:7,.0f} MB"
    print(f"{name} {case['ms']:9.1f} ms{ratios}  {memory}  {share}  {case['backend']}", flush=True)


if __name__ == "__main__":
    main()
