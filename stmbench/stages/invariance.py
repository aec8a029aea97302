"""Stage `invariance`: what a network still recognises when images are moved, turned, scaled or made worse.

Protocols invariance/1, invariance/published and equivariance/1 are in docs/analysis.md. The first two
report, per transformation and strength, top-1, top-5, how often the answer is the one to the plain crop
(consistency), and the soft cross-entropy to that answer, after Hu et al. 2022 (arXiv:2211.05781). They are
never mixed: every number says its protocol. Every answer is kept as an artifact.
"""

import contextlib
import time
from collections import deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

import stmbench.data
from stmbench.data import Canvases, DataInfo, Part, PublishedImages, canvas_loader
from stmbench.measure import equivariance, transforms
from stmbench.measure.ceilings import waiter
from stmbench.measure.sweep import PLAIN, Answers, Estimate, Variant, numbers
from stmbench.record import Artifact, Event, Job, Measurement, Note, Progress, condition
from stmbench.stages.evaluate import UNREADABLE, left_out
from stmbench.training import network

STAGE = "invariance"
ONE, PUBLISHED, FEATURES = "invariance/1", "invariance/published", "equivariance/1"


@dataclass(frozen=True)
class _Sweep:
    """One protocol's images and what is to become of them."""

    protocol: str
    images: Canvases
    variants: list[Variant]  # without the plain one
    references: Mapping[str, float]


def run(job: Job) -> Iterator[Event]:
    """Yield the curves of each protocol that the recipe lists, then the equivariance of the features."""
    info, settings = stmbench.data.find(job.data), job.recipe.invariance
    part, _ = stmbench.data.spread(info, settings.images)
    kind, model = network.headline(job, info)
    yield from network.taken(job, model, STAGE)
    for protocol in dict.fromkeys(settings.protocols):
        yield from _sweep(job, info, kind, model, _plan(job, protocol, cast(Part, part.val)))
    if settings.equivariance:
        few, _ = stmbench.data.spread(info, settings.equivariance)
        yield from _equivariance(job, kind, model, cast(Part, few.val))


def _plan(job: Job, protocol: str, part: Part) -> _Sweep:
    data = job.recipe.data
    if protocol == PUBLISHED:
        images = PublishedImages(part, data, network=f"{job.mixer} {job.scale} {job.seed}")
        return _Sweep(protocol, images, list(images.made), {})
    chosen = transforms.variants(job.recipe.invariance, data.crop_pct)
    made = [variant for variant in chosen if variant.transform in transforms.MADE]
    margin = transforms.margin_for(chosen, data.image_size)
    images = Canvases(part, data, margin=margin, made=made)
    return _Sweep(protocol, images, chosen, transforms.references(data.crop_pct))


def _under(job: Job, kind: str, protocol: str, **parts: object) -> str:
    precision = network.precision(job.recipe, job.device)
    size = job.recipe.data.image_size
    return condition(precision=precision, protocol=protocol, size=size, weights=kind, **parts)


def _sweep(job: Job, info: DataInfo, kind: str, model: nn.Module, sweep: _Sweep) -> Iterator[Event]:
    """Yield every number of one protocol, and the answers as an artifact."""
    clock = _Clock(job.device)
    started = time.perf_counter()
    answers = yield from _answers(job, model, sweep, clock, f"{sweep.protocol} {kind}")
    seconds, forward = time.perf_counter() - started, clock.seconds()
    under = partial(_under, job, kind, sweep.protocol)
    for name, transform, strength, unit, estimate, reason in numbers(answers, sweep.references):
        where = {"transform": transform} | ({} if strength is None else {"strength": f"{strength:g}"})
        yield from _estimated(name, estimate, unit, under(**where), reason)
    skipped = len(sweep.images) - len(answers.labels)
    yield Measurement(STAGE, "images", len(answers.labels), "images", under())
    yield Measurement(STAGE, "skipped", skipped, "images", under())
    yield Measurement(STAGE, "cost", seconds / forward, "", under())
    yield Measurement(STAGE, "outside_forward", 100 * (1 - forward / seconds), "%", under())
    short = sweep.protocol.removesuffix("/1").replace("/", "_")
    path = job.folder / f"{short}_{kind}.npz"
    answers.save(path, info.num_classes)
    yield Artifact(STAGE, "invariance", path, under())
    yield from left_out(STAGE, skipped, len(sweep.images))


def _answers(
    job: Job, model: nn.Module, sweep: _Sweep, clock: "_Clock", text: str
) -> Generator[Event, None, Answers]:
    """Yield progress and return what the network says of every image under every variant."""
    variants, size = [PLAIN, *sweep.variants], job.recipe.invariance.batch_size
    loader = canvas_loader(sweep.images, batch_size=size, device=job.device)
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    labels: list[Tensor] = []
    with network.memory_advice("invariance.batch_size", size):
        for done, (views, batch_labels) in enumerate(loader):
            sweep.images.check_skipped()
            batch = transforms.Batch(views, sweep.images.made, job.recipe.data, job.device)
            logits: list[Tensor] = []
            for place, variant in enumerate(variants):
                with torch.inference_mode():
                    images = batch.plain if variant == PLAIN else batch.apply(variant)
                    with clock.running(), network.autocast(job.recipe, job.device):
                        found = model(images)
                    logits.append(found.float())
                yield Progress(STAGE, text, done * len(variants) + place + 1, len(loader) * len(variants))
            labels.append(batch_labels)
            # They stay on the device: nothing waits for it before the end.
            parts.append(_judged(torch.stack(logits), batch_labels.to(job.device, non_blocking=True)))
        told = torch.cat(labels).numpy()
        columns = (torch.cat(part, 1).cpu().numpy() for part in zip(*parts, strict=True))
    sweep.images.check_skipped()
    readable = told != UNREADABLE
    indices = np.array(sweep.images.indices)
    return Answers(variants, told[readable], indices[readable], *(each[:, readable] for each in columns))


@torch.inference_mode()
def _judged(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The best class, whether the label is in the top 5, cross-entropy to plain: (V, B) each.

    `logits` is (V, B, classes).
    """
    top5 = logits.topk(min(5, logits.shape[2]), dim=2).indices  # (V, B, 5)
    logs = logits.log_softmax(2)
    entropies = -(logs[0].exp() * logs).sum(2)
    return top5[..., 0].int(), (top5 == labels[:, None]).any(2), entropies


def _equivariance(job: Job, kind: str, model: nn.Module, part: Part) -> Iterator[Event]:
    """Yield how well the features of each level move with the image, or a note why that is not known."""
    data, size = job.recipe.data, job.recipe.invariance.batch_size
    image = torch.zeros(1, data.channels, data.image_size, data.image_size, device=job.device)
    try:
        hand_out = equivariance.features_of(model)
        with torch.inference_mode(), network.autocast(job.recipe, job.device):
            levels = equivariance.levels_of(model, hand_out, image)
    except ValueError as error:
        yield Note(STAGE, f"No equivariance of {job.mixer}: {error}.")
        return

    def features(images: Tensor) -> Sequence[Tensor]:
        with network.autocast(job.recipe, job.device):
            return hand_out(images)

    comparison = equivariance.Comparison(levels, data.image_size)
    canvases = Canvases(part, data, margin=comparison.margin)
    loader = canvas_loader(canvases, batch_size=size, device=job.device)
    labels: list[Tensor] = []
    with network.memory_advice("invariance.batch_size", size):
        for done, (views, batch_labels) in enumerate(loader, 1):
            canvases.check_skipped()
            with torch.inference_mode():
                comparison.add(transforms.Batch(views, (), data, job.device).canvas, features)
            labels.append(batch_labels)
            yield Progress(STAGE, f"{FEATURES} {kind}", done, len(loader))
    readable = torch.cat(labels).numpy() != UNREADABLE
    under = partial(_under, job, kind, FEATURES)
    for level, cells, estimate, reason in comparison.results(readable):
        yield from _estimated("equivariance", estimate, "", under(level=level, shift=f"{cells:g}"), reason)
    yield Measurement(STAGE, "images", int(readable.sum()), "images", under())


def _estimated(name: str, estimate: Estimate, unit: str, at: str, reason: str) -> Iterator[Measurement]:
    """A number, and the ends of its interval where it has one."""
    for suffix, value in zip(("", ".low", ".high"), estimate, strict=True):
        if value is not None:
            yield Measurement(STAGE, name + suffix, value, unit, at, reason=reason)


class _Clock:
    """Seconds that forward passes take on the device; on CUDA by its events, without waiting for any."""

    def __init__(self, device: str) -> None:
        self._wait = waiter(device)
        self._stream = torch.cuda.current_stream(device) if device.startswith("cuda") else None
        self._seconds = 0.0
        self._open: deque[tuple[torch.cuda.Event, torch.cuda.Event]] = deque()

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Count what is done inside."""
        if self._stream is not None:
            first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            first.record(self._stream)
            yield
            last.record(self._stream)
            self._open.append((first, last))
            while self._open[0][1].query() and len(self._open) > 1:
                self._close()
        else:
            self._wait()
            started = time.perf_counter()
            yield
            self._wait()
            self._seconds += time.perf_counter() - started

    def seconds(self) -> float:
        """All that was counted, once the device is done."""
        self._wait()
        while self._open:
            self._close()
        return self._seconds

    def _close(self) -> None:
        first, last = self._open.popleft()
        self._seconds += first.elapsed_time(last) / 1e3
