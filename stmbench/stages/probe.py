"""Stage `probe`: what the frozen features of a network are worth, on any classification data.

Two classifiers of the numbers that the network's own classifier would get, which leave the network as it is:
the k nearest training images vote as in Wu et al. 2018 (arXiv:1805.01978, section 3.4), and a logistic
regression is fitted to all of them (a linear probe, Alain & Bengio 2016, arXiv:1610.01644). docs/probe.md has
the protocol, probe/1. Neither depends on a seed, and their answers to the validation images are kept as those
of an evaluation are. Departures: features are standardised for the regression; a class that no neighbour has
is no answer.
"""

import dataclasses
import math
from collections.abc import Generator, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import stmbench.data
from stmbench.data import DataInfo
from stmbench.recipe import Probe
from stmbench.record import Artifact, Event, Job, Measurement, Note, Progress, condition
from stmbench.stages.evaluate import UNREADABLE, Predictions, left_out, save
from stmbench.training import network

# N training images, Q validation images, D features, K neighbours, C classes

STAGE = "probe"
PROTOCOL = "probe/1"
L2 = (1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5)  # weights of the penalty that are tried, the strongest first
HELD_OUT = 5  # one training image in so many is not fitted to, but chooses the penalty
ITERATIONS = 100  # of L-BFGS, at most
BANK, QUERIES, ROWS = 16_384, 1_024, 8_192  # images at once in a matrix product: what bounds the memory


@dataclasses.dataclass(frozen=True)
class Features:
    """What a network makes of the N images of a split."""

    values: Tensor  # (N, D) on the CPU, as precise as the network computes
    labels: Tensor  # (N,) int64, UNREADABLE where the image could not be decoded

    def readable(self) -> "Features":
        """Those of the images that could be decoded."""
        kept = self.labels != UNREADABLE
        return self if kept.all() else Features(self.values[kept], self.labels[kept])


def check(info: DataInfo, settings: Probe) -> None:
    """ValueError for data that cannot be probed: a stream, or too few training images."""
    if not hasattr(info.train, "__getitem__"):
        raise ValueError(
            f"{info.name} is a stream, and the stage probe looks at training images as they are, in their "
            "order: name the other stages with --stage."
        )
    count = min(info.num_train, settings.images or info.num_train)
    _check_enough(count, info, settings)


def _check_enough(count: int, info: DataInfo, settings: Probe) -> None:
    if count < max(settings.neighbours, HELD_OUT):
        raise ValueError(
            f"{count} training images of {info.name} are too few to probe with: at least {HELD_OUT}, and as "
            f"many as probe.neighbours ({settings.neighbours}), are needed; probe.images = 0 takes all."
        )


def run(job: Job) -> Iterator[Event]:
    """Yield the top-1 and top-5 of both classifiers of the headline network, and their predictions."""
    info, settings = stmbench.data.find(job.data), job.recipe.probe
    check(info, settings)
    kind, model = network.headline(job, info)
    yield from network.taken(job, model, STAGE)
    part, _ = stmbench.data.spread(dataclasses.replace(info, val=info.train), settings.images)
    bank = (yield from _features(job, model, part, "training images")).readable()
    seen = yield from _features(job, model, info, "validation images")
    _check_enough(len(bank.labels), info, settings)
    yield from _unknown_classes(bank, seen, info)

    under = partial(_under, job, kind, len(bank.labels))
    at = under(probe="knn", k=settings.neighbours, temperature=f"{settings.temperature:g}")
    neighbours = yield from _neighbours(job, bank, seen, info.num_classes)
    yield from _numbers(job, info, neighbours, at, f"knn_{kind}")
    at = under(probe="linear")
    fitted, l2 = yield from _linear(job, bank, seen, info.num_classes)
    yield from _numbers(job, info, fitted, at, f"linear_{kind}")
    yield Measurement(STAGE, "loss", *fitted.numbers()["loss"], at)
    yield Measurement(STAGE, "l2", l2, "", at)


def _under(job: Job, kind: str, images: int, **parts: object) -> str:
    precision = network.precision(job.recipe, job.device)
    size = job.recipe.data.image_size
    return condition(images=images, precision=precision, protocol=PROTOCOL, size=size, weights=kind, **parts)


def _numbers(job: Job, info: DataInfo, found: Predictions, at: str, name: str) -> Iterator[Event]:
    numbers = found.numbers()
    for key in ("top1", "top5", "images", "skipped"):
        yield Measurement(STAGE, key, *numbers[key], at)
    path = job.folder / f"probe_{name}.npz"
    save(path, found, info.num_classes)
    yield Artifact(STAGE, "predictions", path, at)


def _unknown_classes(bank: Features, seen: Features, info: DataInfo) -> Iterator[Note]:
    """Say which classes have validation images and no training images, if any has."""
    lacking = sorted(set(seen.readable().labels.tolist()) - set(bank.labels.tolist()))
    if lacking:
        names = [info.class_names[label] if info.class_names else str(label) for label in lacking]
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        yield Note(
            STAGE,
            f"No training image is of {', '.join(names[:5])}{more}: their validation images count as wrong.",
        )


# Features


def _features(job: Job, model: nn.Module, info: DataInfo, of: str) -> Generator[Event, None, Features]:
    """Yield progress and return the features of the validation images of `info`, without augmentation."""
    loader = stmbench.data.eval_loader(info, job.recipe, device=job.device)
    values, size, start = torch.empty(0), job.recipe.eval.batch_size, 0
    labels = torch.empty(info.num_val, dtype=torch.int64)
    with network.memory_advice("eval.batch_size", size):
        for done, (images, batch_labels) in enumerate(loader, 1):
            with torch.inference_mode(), network.autocast(job.recipe, job.device):
                found = features_of(model, images)  # (B, D)
            if not start:  # filled in place: ImageNet's are gigabytes, and none of them twice
                values = torch.empty(info.num_val, found.shape[1], dtype=found.dtype)
            values[start : start + len(found)] = found.cpu()
            labels[start : start + len(found)] = batch_labels.cpu()
            start += len(found)
            yield Progress(STAGE, of, done, len(loader))
    loader.check_skipped()
    skipped = int((labels == UNREADABLE).sum())
    yield from left_out(STAGE, skipped, len(labels), of)
    if not bool(values.isfinite().all()):
        raise RuntimeError(f"The features of {of} are not finite: these weights have diverged.")
    return Features(values, labels)


def features_of(model: nn.Module, images: Tensor) -> Tensor:
    """(B, D): what the classifier of a network, ours or timm's, would get of these images."""
    classifier: Any = model
    return classifier.forward_head(classifier.forward_features(images), pre_logits=True)


# Nearest neighbours


def _neighbours(
    job: Job, bank: Features, seen: Features, num_classes: int
) -> Generator[Event, None, Predictions]:
    """Yield progress and return the answers of the nearest training images."""
    settings, device = job.recipe.probe, job.device
    queries = F.normalize(seen.values.to(device, torch.float32))  # (Q, D)
    best = torch.full((len(queries), settings.neighbours), -math.inf, device=device)  # (Q, K) cosines
    labels = torch.zeros(best.shape, dtype=torch.int64, device=device)  # (Q, K)
    starts = range(0, len(bank.labels), BANK)
    for done, start in enumerate(starts, 1):
        part = F.normalize(bank.values[start : start + BANK].to(device, torch.float32))  # (BANK, D)
        part_labels = bank.labels[start : start + BANK].to(device)
        for rows in torch.arange(len(queries), device=device).split(QUERIES):
            cosines = torch.cat([best[rows], queries[rows] @ part.T], 1)  # (QUERIES, K + BANK)
            of = torch.cat([labels[rows], part_labels.expand(len(rows), -1)], 1)
            best[rows], places = cosines.topk(settings.neighbours, dim=1)
            labels[rows] = of.gather(1, places)
        yield Progress(STAGE, "neighbours", done, len(starts))
    top5 = voted(best.cpu(), labels.cpu(), num_classes, settings.temperature)
    # Votes are no probabilities: there is no cross-entropy of them.
    return Predictions(seen.labels.numpy(), top5.numpy(), np.full(len(top5), np.nan, np.float32))


def voted(cosines: Tensor, labels: Tensor, num_classes: int, temperature: float) -> Tensor:
    """The five classes with the most votes, best first: (Q, min(5, C)), UNREADABLE where nobody voted.

    Each of the neighbours, (Q, K) `cosines` and `labels`, votes with exp(cosine / temperature); of classes
    with as many votes the first is taken.
    """
    weights = ((cosines - cosines.amax(1, keepdim=True)).double() / temperature).exp()  # (Q, K), up to 1
    votes = torch.zeros(len(labels), num_classes, dtype=torch.float64).scatter_add_(1, labels, weights)
    ordered = votes.sort(dim=1, descending=True, stable=True)
    top5 = ordered.indices[:, :5]
    return torch.where(ordered.values[:, :5] > 0, top5, UNREADABLE)


# Linear probe


def _linear(
    job: Job, bank: Features, seen: Features, num_classes: int
) -> Generator[Event, None, tuple[Predictions, float]]:
    """Yield progress and return the answers of a logistic regression, and the penalty it was fitted under."""
    held = bank.labels.argsort(stable=True)[HELD_OUT - 1 :: HELD_OUT]  # so much of every class
    kept = torch.ones(len(bank.labels), dtype=torch.bool).index_fill_(0, held, False).nonzero()[:, 0]
    regression, scores = Regression(bank, kept, num_classes, job.device), []
    for done, l2 in enumerate(L2, 1):
        regression.fit(l2)
        hits = regression.logits(bank.values[held]).argmax(1) == bank.labels[held]
        scores.append(int(hits.sum()))
        yield Progress(STAGE, "linear probe", done, len(L2) + 1)
    l2 = L2[scores.index(max(scores))]  # the strongest of those that are equally good
    regression = Regression(bank, torch.arange(len(bank.labels)), num_classes, job.device)
    regression.fit(l2)
    yield Progress(STAGE, "linear probe", len(L2) + 1, len(L2) + 1)
    logits = regression.logits(seen.values)
    losses = F.cross_entropy(logits, seen.labels, ignore_index=UNREADABLE, reduction="none").numpy()
    labels = seen.labels.numpy()
    top5 = logits.topk(min(5, num_classes)).indices.numpy()
    return Predictions(labels, top5, np.where(labels == UNREADABLE, np.nan, losses)), l2


class Regression:
    """Multinomial logistic regression on standardised features, fitted by L-BFGS from where it last stood.

    It minimises the mean cross-entropy plus l2 / 2 times the sum of squared weights; biases are free. That is
    convex, so that neither a seed nor the order of images decides the outcome.
    """

    def __init__(self, bank: Features, rows: Tensor, num_classes: int, device: str) -> None:
        self.bank, self.rows, self.device = bank, rows, device  # of the bank, those fitted to
        self.mean, self.scale = (moment.to(device) for moment in _moments(bank.values, rows))
        size = bank.values.shape[1]
        self.weight = torch.zeros(num_classes, size, device=device, requires_grad=True)
        self.bias = torch.zeros(num_classes, device=device, requires_grad=True)

    def fit(self, l2: float) -> None:
        """Go on to the minimum under this penalty."""
        optimizer = torch.optim.LBFGS(
            [self.weight, self.bias],
            max_iter=ITERATIONS,
            tolerance_grad=1e-5,
            line_search_fn="strong_wolfe",
        )

        def closure() -> Tensor:
            optimizer.zero_grad()
            penalty = l2 / 2 * self.weight.square().sum()
            penalty.backward()
            total = penalty.detach()
            for rows in self.rows.split(ROWS):
                logits = self._logits(self.bank.values[rows])
                labels = self.bank.labels[rows].to(self.device)
                loss = F.cross_entropy(logits, labels, reduction="sum") / len(self.rows)
                loss.backward()
                total += loss.detach()
            return total

        optimizer.step(closure)  # pyright: ignore[reportArgumentType]

    @torch.no_grad()
    def logits(self, values: Tensor) -> Tensor:
        """(Q, C) on the CPU, of features (Q, D)."""
        return torch.cat([self._logits(part).cpu() for part in values.split(ROWS)])

    def _logits(self, values: Tensor) -> Tensor:
        standard = (values.to(self.device, torch.float32) - self.mean) * self.scale
        return standard @ self.weight.T + self.bias


def _moments(values: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """The mean of each feature over these rows and one over its standard deviation, both (D,) float32.

    A feature that does not vary, but for rounding, gets 0: it has nothing to tell, and noise is not blown up.
    """
    parts = rows.split(ROWS)
    mean = torch.stack([values[part].double().sum(0) for part in parts]).sum(0) / len(rows)
    squares = torch.stack([(values[part].double() - mean).square().sum(0) for part in parts])
    deviation = (squares.sum(0) / len(rows)).sqrt()
    scale = torch.where(deviation > 1e-5 * mean.abs(), 1 / deviation, 0)
    return mean.float(), scale.float()
