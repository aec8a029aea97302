"""Which of our networks a checkpoint is of, told by its names and shapes alone."""

import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from stmbench import catalog
from stmbench.nn import create_model
from stmbench.nn.weights import adapt, backbone_of, completed, convert, fits, layers

_BLOCK = re.compile(r"levels\.(\d+)\.blocks\.(\d+)\.")


class Network(NamedTuple):
    mixer: str
    scale: str
    design: str

    def __str__(self) -> str:
        return f"{self.mixer} {self.scale}" + f" ({self.design})" * (self.design != "unified")


def identify(state: Mapping[str, Tensor]) -> list[Network]:
    """The networks of the catalogue that these weights fit: one, or several that differ in no weight.

    Of a detector, the one nearest to the unified network of those that its backbone fits, which may differ in
    what a detector lacks.
    """
    inside = backbone_of(state)
    state = convert(inside or state)
    found = [tuple(map(int, match.groups())) for key in state if (match := _BLOCK.match(key))]
    depths = tuple(1 + max((block for at, block in found if at == level), default=-1) for level in range(4))
    fitting = [each for each in _candidates(depths) if _is(each, state, detects=bool(inside))]
    return fitting[-1:] if inside else fitting


def _candidates(depths: tuple[int, ...]) -> Iterator[Network]:
    for mixer, row in catalog.mixers().items():
        for scale in row.scales:
            for design, (_, size) in catalog.rungs(mixer, scale).items():
                if size.depths == depths:
                    yield Network(mixer, scale, design)


def _is(network: Network, state: Mapping[str, Tensor], *, detects: bool) -> bool:
    with torch.device("meta"):
        model = create_model(network.mixer, network.scale, design=network.design)
        (first,) = layers(model, "first_conv")
        channels = state[f"{first}.weight"].shape[1] if f"{first}.weight" in state else 0
        if channels not in (0, 3):
            options = {"design": network.design, "in_channels": channels}
            model = create_model(network.mixer, network.scale, **options)
    adapted = adapt(state, model)
    return fits(completed(adapted, model) if detects else adapted, model)
