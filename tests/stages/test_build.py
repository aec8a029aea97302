"""Sizes: totals are the sums of their parts, and activations are counted where the answer is known."""

import dataclasses

import pytest
import torch
from torch import nn

from stmbench.mixers.dwconv import DepthwiseConv
from stmbench.record import Job, Macs, Measurement
from stmbench.stages import build

LEVELS = ["level1", "level2", "level3", "level4"]


def build_of(job: Job) -> dict[str, Measurement]:
    found = [e for e in build.run(job) if isinstance(e, Measurement)]
    assert len({e.name for e in found}) == len(found)
    return {e.name: e for e in found}


def test_totals_are_the_sums_of_their_parts(tiny_job: Job) -> None:
    found = build_of(dataclasses.replace(tiny_job, mixer="halo"))
    values = {name: e.value for name, e in found.items()}
    for total in ("parameters", "activations"):
        parts = [value for name, value in values.items() if name.startswith(f"{total}.")]
        assert values[total] == sum(parts) > 0
    kinds = [values[f"macs.{kind}"] for kind in ("stem", "downsample", "mixers", "mlps", "head")]
    levels = [values[f"macs.{part}"] for part in ("stem", *LEVELS, "head")]
    assert values["macs"] == sum(kinds) == sum(levels) > 0
    for kind in ("mixers", "mlps"):
        assert values[f"macs.{kind}"] == sum(values[f"macs.{level}.{kind}"] for level in LEVELS)
    assert found["macs"].condition == "height=28,width=28"
    assert {f"parameters.{level}" for level in LEVELS} < found.keys()


def test_macs_are_those_that_were_counted(tiny_job: Job) -> None:
    values = {name: e.value for name, e in build_of(dataclasses.replace(tiny_job, mixer="halo")).items()}
    assert values["macs.skipped"] > 0
    assert values["macs.padding"] > 0
    assert values["macs"] - values["macs.skipped"] == values["macs.fvcore"] == values["macs.flop_counter"]
    families = {name: value for name, value in values.items() if name.startswith("macs.operator.")}
    assert families.keys() == {f"macs.operator.{name}" for name in ("convolution", "linear", "product")}
    assert sum(families.values()) == values["macs.fvcore"]
    assert values["macs.disagreement"] == 0
    work = values["elementwise"] / (values["elementwise"] + values["macs.fvcore"])
    assert values["elementwise_share"] == pytest.approx(100 * work) != 0
    assert not [name for name in values if name.startswith("uncounted.")]


def test_a_disagreement_fails_the_stage_and_keeps_the_numbers(
    tiny_job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DepthwiseConv, "macs", lambda self, height, width: Macs(height * width * self.dim**2))
    found = []
    with pytest.raises(RuntimeError, match=r"level1\.mixers: closed form 150,528, fvcore 531,552"):
        found.extend(build.run(tiny_job))
    names = {event.name for event in found if isinstance(event, Measurement)}
    assert {"parameters", "macs", "macs.fvcore", "macs.disagreement", "activations"} < names


def test_a_network_that_cannot_be_counted_keeps_its_closed_form(
    tiny_job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("no such kernel on the CPU")

    monkeypatch.setattr(build, "count", fail)
    found = []
    with pytest.raises(RuntimeError, match="no such kernel"):
        found.extend(build.run(tiny_job))
    assert {"parameters", "macs", "macs.mixers"} < {e.name for e in found if isinstance(e, Measurement)}


def test_a_timm_model_is_counted_by_its_children(tiny_job: Job) -> None:
    values = {
        n: e.value for n, e in build_of(dataclasses.replace(tiny_job, mixer="timm:test_resnet")).items()
    }
    assert values["macs"] == values["macs.fvcore"] == values["macs.flop_counter"] > 0
    children = ("conv1", "layer1", "layer2", "layer3", "layer4", "fc")
    assert values["macs"] == sum(values[f"macs.{name}"] for name in children)
    assert "macs.padding" not in values
    assert values["parameters"] == sum(v for name, v in values.items() if name.startswith("parameters."))
    assert values["activations"] == sum(v for name, v in values.items() if name.startswith("activations."))


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
