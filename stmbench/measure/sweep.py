"""What a sweep of transformations says: curves over strengths, areas under them, and how sure both are.

The unit of chance is the image. Intervals are the 2.5th and 97.5th percentiles of a bootstrap (Efron 1979)
over images: one is drawn with all its answers, to all directions and strengths and to the plain crop.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from stmbench.data.canvas import Variant

PLAIN = Variant("none", 0.0)
_RESAMPLES = 2000
_AT_ONCE = 50  # resamples, whose counts are in memory together
_INTERVAL = (0.025, 0.975)


class Estimate(NamedTuple):
    """A number with its 95 % interval; none where there is no sense in one."""

    value: float
    low: float | None = None
    high: float | None = None


class Number(NamedTuple):
    """What is reported; `strength` is None for what is said of a whole curve. NaN has a `reason`."""

    name: str
    transform: str
    strength: float | None
    unit: str
    estimate: Estimate
    reason: str = ""


@dataclass(frozen=True)
class Answers:
    """What a network said of N readable images under V variants, the first of which is `PLAIN`."""

    variants: Sequence[Variant]
    labels: np.ndarray  # (N,) int
    indices: np.ndarray  # (N,) int, of the images in their data set
    top1: np.ndarray  # (V, N) int
    in_top5: np.ndarray  # (V, N) bool: whether the label is
    cross_entropy: np.ndarray  # (V, N) float32, of the prediction to the plain crop's

    def save(self, path: Path, num_classes: int) -> None:
        """Write everything as compressed NumPy arrays of small types."""
        classes = np.min_scalar_type(-max(num_classes, 2))
        with path.open("wb") as file:
            np.savez_compressed(
                file,
                transform=np.array([variant.transform for variant in self.variants]),
                strength=np.array([variant.strength for variant in self.variants]),
                direction=np.array([variant.direction for variant in self.variants]),
                labels=self.labels.astype(classes),
                indices=self.indices,
                top1=self.top1.astype(classes),
                in_top5=self.in_top5,
                cross_entropy=self.cross_entropy.astype(np.float16),
            )


def resampled(columns: np.ndarray) -> np.ndarray:
    """Means of (N, M) over R draws of N rows with replacement, the same for all columns: (R, M)."""
    rng, count = np.random.default_rng(0), len(columns)
    means = []
    for _ in range(_RESAMPLES // _AT_ONCE):
        drawn = rng.integers(0, count, (_AT_ONCE, count))
        times = np.stack([np.bincount(row, minlength=count) for row in drawn])  # (_AT_ONCE, N)
        means.append(times @ columns / count)
    return np.concatenate(means)


def interval(value: float, draws: np.ndarray, scale: float = 1.0) -> Estimate:
    """The value with the percentiles of its finite draws, all times `scale`."""
    low, high = np.quantile(draws[np.isfinite(draws)], _INTERVAL).tolist()
    return Estimate(scale * value, scale * low, scale * high)


def numbers(answers: Answers, references: Mapping[str, float]) -> Iterator[Number]:
    """Every number of a sweep; at the strengths of `references` the answers are those to the plain crop."""
    points = _points(answers.variants, references)
    hits = answers.top1 == answers.labels
    scores = {"top1": hits, "top5": answers.in_top5, "consistency": answers.top1 == answers.top1[0]}
    shares: dict[
        str, tuple[np.ndarray, np.ndarray]
    ] = {}  # of each score: (P,) and (R, P), a column per point
    for name, score in scores.items():
        columns = np.stack([score[members].mean(axis=0) for members in points.values()], axis=1)  # (N, P)
        shares[name] = columns.mean(axis=0), resampled(columns)
    for place, ((transform, strength), members) in enumerate(points.items()):
        for name, (means, draws) in shares.items():
            estimate = interval(means[place], draws[:, place], 100)
            yield Number(name, transform, strength, "%", estimate)
            if len(members) > 1 and name != "top5":
                worst = 100 * float(scores[name][members].mean(axis=1).min())
                yield Number(f"{name}.worst", transform, strength, "%", Estimate(worst))
        entropy = float(answers.cross_entropy[members].mean(dtype=np.float64))
        yield Number("cross_entropy", transform, strength, "", Estimate(entropy))
    for transform in dict.fromkeys(transform for transform, _ in points if transform != PLAIN.transform):
        yield from _areas(transform, list(points), shares)


def _points(
    variants: Sequence[Variant], references: Mapping[str, float]
) -> dict[tuple[str, float], list[int]]:
    """The variants of each point of a curve, by (transform, strength)."""
    points = defaultdict(list)
    for place, variant in enumerate(variants):
        points[variant.transform, variant.strength].append(place)
    for transform in {variant.transform for variant in variants} & references.keys():
        points[transform, references[transform]] = [0]
    return dict(sorted(points.items()))


def axis(transform: str, strength: float) -> float:
    """Where on its axis a point stands: by how much was done to the image; of `scale` it is the ratio."""
    return {"jpeg": 100 - strength, "contrast": 1 - strength}.get(transform, strength)


def _areas(
    transform: str, points: list[tuple[str, float]], shares: Mapping[str, tuple[np.ndarray, np.ndarray]]
) -> Iterator[Number]:
    """The area under a curve relative to one that stays at its plain value: 1 is invariant."""
    plain = points.index(PLAIN[:2])
    spots = {axis(*point): place for place, point in enumerate(points) if point[0] == transform}
    if transform == "jpeg":
        spots[0.0] = plain  # what no file format has touched, in the place of a quality of 100
    if len(spots) < 2:
        return
    x = np.array(sorted(spots))
    order = [spots[spot] for spot in x]
    weights = np.convolve(np.diff(x), [0.5, 0.5]) / (x[-1] - x[0])  # of the trapezoids
    for name in ("top1", "consistency"):
        means, draws = shares[name]
        if means[plain] == 0:
            reason = "no plain image is right"
            yield Number(f"auc.{name}", transform, None, "", Estimate(np.nan), reason)
            continue
        with np.errstate(divide="ignore", invalid="ignore"):
            areas = draws[:, order] @ weights / draws[:, plain]
        value = float(means[order] @ weights / means[plain])
        yield Number(f"auc.{name}", transform, None, "", interval(value, areas))
