"""Stage `eval`: top-1, top-5 and loss on the validation images, for plain and EMA weights.

Every image's label and five best classes are kept as an artifact, in the data set's own order, so that two
runs can later be compared image by image. Images that cannot be decoded are left out and counted.
"""

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

import stmbench.data
from stmbench import world
from stmbench.record import Artifact, Event, Job, Measurement, Note, Progress, condition
from stmbench.training import network

UNREADABLE = -1  # the label of an image that could not be decoded


@dataclass(frozen=True)
class Predictions:
    """What a network said of N images."""

    labels: np.ndarray  # (N,) int; UNREADABLE where the image could not be decoded
    top5: np.ndarray  # (N, min(5, classes)) int, best first
    losses: np.ndarray  # (N,) float32, cross-entropy; NaN where unreadable

    @property
    def readable(self) -> np.ndarray:
        """(N,) bool."""
        return self.labels != UNREADABLE

    def numbers(self) -> dict[str, tuple[float, str]]:
        """name -> (value, unit): top1 and top5 in per cent, the mean loss, images counted and skipped."""
        hits = (self.top5 == self.labels[:, None])[self.readable]
        return {
            "top1": (100 * float(hits[:, 0].mean()), "%"),
            "top5": (100 * float(hits.any(1).mean()), "%"),
            "loss": (float(self.losses[self.readable].mean(dtype=np.float64)), ""),
            "images": (int(self.readable.sum()), "images"),
            "skipped": (int((~self.readable).sum()), "images"),
        }


def run(job: Job) -> Iterator[Event]:
    """Yield the numbers of each set of weights the run has, and its predictions as an artifact."""
    info = stmbench.data.find(job.data)
    loader = stmbench.data.eval_loader(
        info, job.recipe, device=job.device, rank=world.rank(), world=world.size()
    )
    for kind, model in network.trained(job, info):
        yield from network.taken(job, model, "eval")
        predictions = yield from predict(job, model, loader, f"eval {kind}")
        at = condition(weights=kind)
        for name, (value, unit) in predictions.numbers().items():
            yield Measurement("eval", name, value, unit, at)
        path = job.folder / f"predictions_{kind}.npz"
        if world.is_main():
            save(path, predictions, info.num_classes)
        yield Artifact("eval", "predictions", path, at)
        yield from left_out("eval", int((~predictions.readable).sum()), len(predictions.labels))


def predict(
    job: Job, model: nn.Module, loader: stmbench.data.Loader, text: str, stage: str = "eval"
) -> Generator[Event, None, Predictions]:
    """Yield progress and return `Predictions`: ``predictions = yield from predict(...)``.

    Where each process has its share of the images, every one of them gets all predictions.
    """
    model.eval()
    batches: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
    size = job.recipe.eval.batch_size
    with network.memory_advice("eval.batch_size", size):
        for done, (images, labels) in enumerate(loader, 1):
            with torch.inference_mode(), network.autocast(job.recipe, job.device):
                logits = model(images).float()
                losses = F.cross_entropy(logits, labels, ignore_index=UNREADABLE, reduction="none")
                top5 = logits.topk(min(5, logits.shape[1])).indices
            batches.append((labels, top5, losses))  # on the device: nothing waits for it before the end
            yield Progress(stage, text, done, len(loader))
    loader.check_skipped()
    own = [torch.cat(part).cpu().numpy() for part in zip(*batches, strict=True)]
    shares = world.gather(own) if loader.world > 1 else [own]
    shares = [share for share in shares if share]  # of fewer images than processes some get none
    labels, top5, losses = (_dealt(parts) for parts in zip(*shares, strict=True))
    return Predictions(labels, top5, np.where(labels == UNREADABLE, np.nan, losses))


def _dealt(shares: Sequence[np.ndarray]) -> np.ndarray:
    """What was dealt out one by one, in its order again."""
    whole = np.empty((sum(map(len, shares)), *shares[0].shape[1:]), shares[0].dtype)
    for rank, share in enumerate(shares):
        whole[rank :: len(shares)] = share
    return whole


def left_out(stage: str, skipped: int, total: int, of: str = "") -> Iterator[Note]:
    """Say how many images, of what, could not be decoded, if there are some."""
    if skipped:
        images = f"Images of {of} that" if of else "Images that"
        yield Note(stage, f"{images} could not be read and were left out: {skipped} of {total}.")


def save(path: Path, predictions: Predictions, num_classes: int) -> None:
    """Write labels and top-5 as compressed NumPy arrays of the smallest fitting type."""
    dtype = np.min_scalar_type(-max(num_classes, 2))
    with path.open("wb") as file:
        np.savez_compressed(
            file,
            labels=predictions.labels.astype(dtype),
            top5=predictions.top5.astype(dtype),
            losses=predictions.losses.astype(np.float32),
        )
