"""Stage `build`: how large the network is. Parameters, MACs and activations, in total and per part.

MACs are the closed forms that the backbone and its mixers declare, checked against two counters
(`stmbench.measure.count`); for a network without a closed form they are the first counter's, checked against
the second. Activations are the output elements of convolutions and matrix products, counted by fvcore, the
measure that tracks accelerator time best (Radosavovic et al. 2020, arXiv:2003.13678).
"""

import logging
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping

import torch
from torch import nn

import stmbench.data
from stmbench.measure.count import Count, count, declared
from stmbench.mixers import backends
from stmbench.nn.detector import Detector
from stmbench.record import Event, Job, Macs, Measurement, condition
from stmbench.training import network

with warnings.catch_warnings():  # fvcore scripts functions on import, which newer torch warns of
    warnings.simplefilter("ignore")
    from fvcore.nn import ActivationCountAnalysis


def run(job: Job) -> Iterator[Event]:
    """Yield `parameters`, `macs`, `activations` (one image) and ``NAME.PART`` for each part.

    Raises:
        RuntimeError: the accounts of the MACs differ by more than 1 %, all of them yielded by then; or the
            network cannot be counted, its closed form yielded by then.
    """
    if job.recipe.detects:
        yield from _detector(job)
        return
    info = stmbench.data.find(job.data)
    model = network.make(job, info.num_classes, device="cpu").eval()
    backends.force(model, backends.PLAIN)  # it is counted here, not timed
    size, channels = job.recipe.data.image_size, job.recipe.data.channels
    at = condition(height=size, width=size)
    yield from _measure("parameters", parameters(model), "", "")
    forms = declared(model, size, size)
    if forms:
        yield from _measure("macs", {name: form.total for name, form in forms.items()}, "MACs", at)
        yield from _parts("macs", _sums(forms), "MACs", at)
    counted = count(model, (channels, size, size))
    if not forms:
        yield Measurement("build", "macs", counted.macs, "MACs", at)  # what no child does is in here too
        yield from _parts("macs", {part.name: part.macs for part in counted.parts}, "MACs", at)
    yield from _accounts(counted, at)
    yield from _measure("activations", activations(model, (channels, size, size)), "", at)
    counted.check()


def _detector(job: Job) -> Iterator[Event]:
    """The same of a detector: the backbone, the neck and each head apart.

    The heads' MACs are their closed forms alone, for as many boxes as the recipe has at most.
    """
    info = stmbench.data.find_detection(job.data)
    model = network.detector(job, info.num_classes, masks=info.has_masks, device="cpu").eval()
    pyramid, (channels, height, width) = model.pyramid, network.image_shape(job.recipe)
    backends.force(pyramid, backends.PLAIN)
    yield from _measure("parameters", detector_parameters(model), "", "")
    counted = count(pyramid, (channels, height, width))
    heads = {f"heads.{name}": form.total for name, form in model.head_macs(height, width).items()}
    neck = sum(part.macs for part in counted.parts if part.name == "neck")
    forms = declared(pyramid, height, width)
    whole = sum(form.total for form in forms.values()) if forms else counted.macs
    boxes = {"proposals": job.recipe.detect.proposals, "detections": job.recipe.detect.detections}
    at = condition(height=height, width=width, **boxes)
    yield from _measure("macs", {"backbone": whole - neck, "neck": neck, **heads}, "MACs", at)
    yield Measurement("build", "macs.heads", sum(heads.values()), "MACs", at)
    yield from _accounts(counted, condition(height=height, width=width))
    counted.check()


def detector_parameters(model: Detector) -> dict[str, int]:
    """Learnt parameters of the backbone, the neck and each head."""
    heads = model.roi_heads
    parts = {
        "backbone": [model.pyramid.backbone],
        "neck": [model.pyramid.neck],
        "heads.rpn": [model.rpn],
        "heads.box": [heads.box_head, heads.box_predictor],
        "heads.mask": [heads.mask_head, heads.mask_predictor] if heads.has_mask() else [],
    }
    sums = {name: sum(p.numel() for each in of for p in each.parameters()) for name, of in parts.items()}
    return {name: number for name, number in sums.items() if number}


def _measure(name: str, parts: Mapping[str, int], unit: str, at: str) -> Iterator[Measurement]:
    yield Measurement("build", name, sum(parts.values()), unit, at)
    yield from _parts(name, parts, unit, at)


def _parts(name: str, parts: Mapping[str, int], unit: str, at: str) -> Iterator[Measurement]:
    for part, value in parts.items():
        yield Measurement("build", f"{name}.{part}", value, unit, at)


def _sums(forms: Mapping[str, Macs]) -> dict[str, int]:
    """The closed form's parts added up per level and per kind, and what of it is padding or skipped."""
    sums: Counter[str] = Counter()
    for name, form in forms.items():
        level, _, kind = name.partition(".")
        if kind:
            sums.update({level: form.total, kind: form.total})
        sums.update(padding=form.padding, skipped=form.skipped)
    return dict(sums)


def _accounts(counted: Count, at: str) -> Iterator[Measurement]:
    """What each counter found, how far they are apart, the work that is no MACs, and what nobody counted."""
    total = counted.total
    families = {f"operator.{name}": value for name, value in total.traced.items() if value}
    accounts = {"fvcore": total.fvcore, "flop_counter": total.flop_counter}
    yield from _parts("macs", accounts | families, "MACs", at)
    yield Measurement("build", "macs.disagreement", 100 * counted.disagreement, "%", at)
    work = max(counted.elementwise + counted.macs, 1)
    yield Measurement("build", "elementwise", counted.elementwise, "operations", at)
    yield Measurement("build", "elementwise_share", 100 * counted.elementwise / work, "%", at)
    yield from _parts("uncounted", total.uncounted, "calls", at)


def parameters(model: nn.Module) -> dict[str, int]:
    """Learnt parameters per part: `stem`, `level1` to `level4`, `head`; other networks' by their children."""
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
    parts = {_part(name): by_module[name] for name in _part_modules(model) if by_module[name]}
    rest = by_module[""] - sum(parts.values())
    return parts | ({"rest": rest} if rest else {})


def _part_modules(model: nn.Module) -> Iterator[str]:
    for name, child in model.named_children():
        if name == "levels":
            yield from (f"levels.{index}" for index, _ in child.named_children())
        else:
            yield name


def _part(name: str) -> str:
    first, _, rest = name.partition(".")
    index = rest.partition(".")[0]
    return f"level{int(index) + 1}" if first == "levels" and index.isdigit() else first
