"""Stage `erf`: how much of the image each level of a network sees, with its weights and with random ones.

The protocol is erf/1 (docs/analysis.md); its mathematics and its papers are in `stmbench.measure.receptive`.
The control with random weights is the same network as the run's seed makes it, before any training.

A size of images that the network cannot take is a failed measurement, and the other sizes count.
"""

import contextlib
import dataclasses
import itertools
import math
from collections.abc import Generator, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

import stmbench.data
from stmbench.measure.ceilings import set_tf32
from stmbench.measure.receptive import SHARES, Features, Field, Fields
from stmbench.mixers import backends
from stmbench.record import Artifact, Event, Job, Measurement, Note, Progress, condition
from stmbench.stages.evaluate import UNREADABLE
from stmbench.training import network

STAGE = "erf"
PROTOCOL = "erf/1"
PRECISION = "fp32"  # always: without autocast, and without TF32
LEAST_STRIDE = 4  # of a level: whatever a timm model hands out before is its stem


class _RefusedError(RuntimeError):
    """The network cannot take such images."""


@dataclasses.dataclass(frozen=True, slots=True)
class _Look:
    """A network with one kind of weights, at one size of images."""

    job: Job
    info: stmbench.data.DataInfo  # with the images to look at alone
    size: int
    weights: str  # plain, ema or random
    features: Features
    strides: Sequence[int]  # of the levels

    def at(self, **parts: object) -> str:
        return condition(protocol=PROTOCOL, size=self.size, weights=self.weights, **parts)

    def __str__(self) -> str:
        return f"at {self.size} px, {self.weights} weights"


def run(job: Job) -> Iterator[Event]:
    """Yield the shares of every level for every size and kind of weights, and the maps as artifacts.

    Raises:
        ValueError: the network does not hand out the features of its levels.
        RuntimeError: nothing could be measured.
    """
    info, _ = stmbench.data.spread(stmbench.data.find(job.data), job.recipe.erf.images)
    kind, model = network.headline(job, info)
    control = network.make(dataclasses.replace(job, weights=None), info.num_classes).eval()
    levels = {kind: _levels(job, model), "random": _levels(job, control)}
    own = job.recipe.data.image_size
    failures: list[str] = []
    for size, weights in itertools.product(job.recipe.erf.sizes or (own, 2 * own), levels):
        failure = yield from _see(_Look(job, info, size, weights, *levels[weights]))
        failures.append(failure)
    if all(failures):
        raise RuntimeError(f"No receptive field could be measured: {failures[0]}.")


def _levels(job: Job, model: Any) -> tuple[Features, list[int]]:
    """What hands out a network's levels, by timm's interface, and their strides."""
    if not hasattr(model, "forward_intermediates"):
        raise ValueError(
            f"{job.mixer} does not hand out the features of its levels (timm gives it no "
            f"forward_intermediates): leave the stage {STAGE} out."
        )
    model.requires_grad_(False)  # nothing but the image's gradient is asked for
    strides = [info["reduction"] for info in model.feature_info]
    taken = [level for level, stride in enumerate(strides) if stride >= LEAST_STRIDE]

    def features(images: Tensor) -> Sequence[Tensor]:
        return model.forward_intermediates(images, indices=taken, intermediates_only=True)

    return features, [strides[level] for level in taken]


def _see(look: _Look) -> Generator[Event, None, str]:
    """Yield what one look finds; return why it found nothing, or ""."""
    try:
        levels, readable = yield from _gather(look)
    except _RefusedError as error:
        yield Measurement(STAGE, "images", math.nan, "images", look.at(), reason=str(error))
        yield Note(STAGE, f"No receptive field {look}: {error}.")
        return str(error)
    yield Measurement(STAGE, "images", int(readable.sum()), "images", look.at())
    yield Measurement(STAGE, "skipped", int((~readable).sum()), "images", look.at())
    for level, field in enumerate(levels, 1):
        yield from _numbers(look, level, field)
    yield _save(look, levels, readable)
    failures = [field.failure for field in levels]
    return failures[0] if all(failures) else ""


def _gather(look: _Look) -> Generator[Event, None, tuple[list[Field], np.ndarray]]:
    """The field of each level, and which images (N,) could be read."""
    recipe = look.job.recipe
    loader = stmbench.data.eval_loader(
        look.info,
        dataclasses.replace(
            recipe,
            data=dataclasses.replace(recipe.data, image_size=look.size),
            eval=dataclasses.replace(recipe.eval, batch_size=recipe.erf.batch_size),
        ),
        device=look.job.device,
    )
    fields, readable = Fields(look.features, look.strides), []
    for done, (images, labels) in enumerate(loader, 1):
        seen = labels != UNREADABLE
        readable.append(seen.cpu())
        if seen.any():
            yield from _add(fields, images[seen], recipe.erf.batch_size)
        yield Progress(STAGE, f"erf {look}", done, len(loader))
    loader.check_skipped()
    return fields.levels, torch.cat(readable).numpy()


def _add(fields: Fields, images: Tensor, batch_size: int) -> Iterator[Note]:
    """Look at a batch; a forced backend that cannot run is a note."""
    said: list[str] = []
    try:
        with (
            network.memory_advice("erf.batch_size", batch_size),
            backends.fallbacks(said.append),
            _without_tf32(),
        ):
            fields.add(images)
    except Exception as error:  # each network refuses in its own way
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise _RefusedError(reason.rstrip(".")) from error
    yield from (Note(STAGE, text) for text in said)


@contextlib.contextmanager
def _without_tf32() -> Iterator[None]:
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    set_tf32(False)
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def _numbers(look: _Look, level: int, field: Field) -> Iterator[Event]:
    """The shares of one level, or why there are none."""
    at = {share: look.at(level=level, precision=PRECISION, share=share) for share in SHARES}
    if field.failure:
        for share in SHARES:
            yield Measurement(STAGE, "side", math.nan, "px", at[share], reason=field.failure)
        yield Note(STAGE, f"No receptive field of level {level} {look}: {field.failure}.")
        return
    for share, estimate in field.squares().items():
        for suffix, square in (("", estimate.value), (".low", estimate.low), (".high", estimate.high)):
            yield Measurement(STAGE, f"side{suffix}", square.side, "px", at[share])
            yield Measurement(STAGE, f"area{suffix}", square.area, "%", at[share])
        yield Measurement(STAGE, "densest", field.densest(share), "%", at[share])
    yield Measurement(STAGE, "offset", field.offset(), "px", look.at(level=level, precision=PRECISION))


def _save(look: _Look, levels: Sequence[Field], readable: np.ndarray) -> Artifact:
    """Write the map of each level, and which images of the data set it is of."""
    part = look.info.val
    assert isinstance(part, stmbench.data.Part)
    places = np.flatnonzero(readable)
    path = look.job.folder / f"erf_{look.size}_{look.weights}.npz"
    with path.open("wb") as file:
        np.savez_compressed(
            file,
            maps=np.stack([field.map for field in levels]).astype(np.float32),  # (levels, H, W)
            centres=np.array([field.centre for field in levels]),  # (levels, 2) pixel
            grids=np.array([field.grid for field in levels]),  # (levels, 2) positions
            images=np.array(part.indices)[places],  # (N,)
            files=np.array([part.filename(int(place)) for place in places]),  # (N,)
            dtype=np.array("float32"),  # that the network computed in
        )
    return Artifact(STAGE, "erf", path, look.at())
