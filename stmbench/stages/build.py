"""Stage `build`: how large the network is. Parameters, MACs and activations, in total and per part.

MACs are the closed forms that the backbone and its mixers declare (convolutions, linear layers, attention
products, sampling). Activations are the output elements of convolutions and matrix products, counted by
fvcore on a CPU copy, the measure that tracks accelerator time best (Radosavovic et al. 2020,
arXiv:2003.13678).
"""

import logging
import warnings
from collections import Counter
from collections.abc import Iterator

import torch
from torch import nn

import stmbench.data
from stmbench.nn.backbone import Backbone
from stmbench.record import Event, Job, Measurement, condition
from stmbench.stages import network

with warnings.catch_warnings():  # fvcore scripts functions on import, which newer torch warns of
    warnings.simplefilter("ignore")
    from fvcore.nn import ActivationCountAnalysis


def run(job: Job) -> Iterator[Event]:
    """Yield `parameters`, `macs`, `activations` (one image), and ``NAME.PART`` for each part."""
    info = stmbench.data.find(job.data)
    model = network.make(job, info.num_classes, device="cpu").eval()
    size, channels = job.recipe.data.image_size, job.recipe.data.channels
    at = condition(height=size, width=size)
    yield from _measure("parameters", parameters(model), "", "")
    yield from _measure("macs", model.macs(size, size), "MACs", at)
    yield from _measure("activations", activations(model, (channels, size, size)), "", at)


def _measure(name: str, parts: dict[str, int], unit: str, at: str) -> Iterator[Measurement]:
    yield Measurement("build", name, sum(parts.values()), unit, at)
    for part, value in parts.items():
        yield Measurement("build", f"{name}.{part}", value, unit, at)


def parameters(model: Backbone) -> dict[str, int]:
    """Learnt parameters per part: `stem`, `level1` to `level4`, `head`."""
    counts: Counter[str] = Counter()
    for name, parameter in model.named_parameters():
        counts[_part(name)] += parameter.numel()
    return dict(counts)


def activations(model: nn.Module, shape: tuple[int, int, int]) -> dict[str, int]:
    """Output elements of convolutions and matrix products per part, for one image (C, H, W)."""
    parameter = next(model.parameters())
    image = torch.zeros(1, *shape, dtype=parameter.dtype, device=parameter.device)
    logging.getLogger("fvcore.nn.jit_analysis").setLevel(logging.ERROR)
    with warnings.catch_warnings():  # tracing warns of the sizes it fixes; one image is all it is used for
        warnings.simplefilter("ignore")
        analysis = ActivationCountAnalysis(model, image).unsupported_ops_warnings(False)
        analysis = analysis.uncalled_modules_warnings(False)
        by_module = analysis.by_module()
    return {_part(name): by_module[name] for name in _part_modules(model)}


def _part_modules(model: nn.Module) -> list[str]:
    return ["stem", *(f"levels.{i}" for i in range(4)), "head"]


def _part(name: str) -> str:
    first, _, rest = name.partition(".")
    return f"level{int(rest.split('.')[0]) + 1}" if first == "levels" else first
