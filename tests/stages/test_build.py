"""Sizes: totals are the sums of their parts, and activations are counted where the answer is known."""

import dataclasses

import torch
from torch import nn

from stmbench.record import Job, Measurement
from stmbench.stages import build


def test_totals_are_the_sums_of_their_parts(tiny_job: Job) -> None:
    found = {e.name: e for e in build.run(tiny_job) if isinstance(e, Measurement)}
    for total in ("parameters", "macs", "activations"):
        parts = [e.value for name, e in found.items() if name.startswith(f"{total}.")]
        assert found[total].value == sum(parts) > 0
    assert found["macs"].condition == "height=28,width=28"
    assert {f"parameters.level{i}" for i in (1, 2, 3, 4)} < found.keys()


def test_building_depends_on_nothing_but_the_job(tiny_job: Job) -> None:
    first, second = (list(build.run(dataclasses.replace(tiny_job, seed=seed))) for seed in (0, 1))
    assert first == second


def test_activations_of_a_known_network() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 4, 3, padding=1)
            self.levels = nn.ModuleList(nn.Conv2d(4, 4, 1) for _ in range(4))
            self.head = nn.Linear(4, 10)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.stem(x)
            for level in self.levels:
                x = level(x)
            return self.head(x.mean((2, 3)))

    counts = build.activations(Net(), (3, 5, 6))
    assert counts == {"stem": 120, "level1": 120, "level2": 120, "level3": 120, "level4": 120, "head": 10}
