"""Stage `robustness`: the run's network on other test images of ImageNet's classes.

ImageNet-V2, -A, -R, -Sketch and -C (`stmbench.data.robustness` names the papers), in the folders that the
recipe names, by the loader and the numbers of stage `eval`; docs/analysis.md has the protocol, robustness/1.

- On A and R, which have 200 classes, the network chooses among those alone, as their authors do.
- The images of C are the centres of ImageNet's validation images, 224 pixels wide: nothing is cropped again.
- The corruption error of C is the error over severities relative to AlexNet's, and mCE its mean over the
  fifteen corruptions (Hendrycks & Dietterich 2019, arXiv:1903.12261, section 3.2).
"""

import dataclasses
from collections.abc import Generator, Iterator, Mapping
from itertools import groupby
from statistics import fmean

import numpy as np
import torch
from torch import Tensor, nn

import stmbench.data
from stmbench.data import ALEXNET_ERRORS, DataInfo, RobustnessFolder
from stmbench.measure.shares import wilson
from stmbench.record import Artifact, Event, Job, Measurement, Note, condition
from stmbench.stages import evaluate
from stmbench.stages.evaluate import Predictions
from stmbench.training import network

STAGE = "robustness"
PROTOCOL = "robustness/1"
CROPS = 224  # pixels of ImageNet-C's images


class Among(nn.Module):
    """A classifier that chooses among some of its classes: the logits of the others are -inf."""

    def __init__(self, model: nn.Module, labels: list[int], num_classes: int) -> None:
        super().__init__()
        self.model = model
        mask = torch.full((num_classes,), -torch.inf)
        mask[labels] = 0
        self.mask = nn.Buffer(mask)

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images) + self.mask  # (B, classes)


def run(job: Job) -> Iterator[Event]:
    """Check all folders, then yield the numbers of each, and its predictions as an artifact."""
    info = stmbench.data.find(job.data)
    found = stmbench.data.find_robustness(job.recipe.robustness, info)
    kind, model = network.headline(job, info)
    yield from network.taken(job, model, STAGE)
    if job.recipe.data.image_size != CROPS and any(folder.set == "c" for folder in found):
        resized = f"resized to {job.recipe.data.image_size}, which is not how they are published"
        yield Note(STAGE, f"ImageNet-C's images of {CROPS} pixels are {resized}.")
    errors: dict[str, float] = {}  # of each corruption
    for (name, corruption), group in groupby(found, lambda folder: (folder.set, folder.corruption)):
        folders = list(group)
        said: list[Predictions] = []
        for folder in folders:
            said += [(yield from _look(job, info, kind, model, folder))]
        at = _under(job, kind, folders[0])
        joined = _joined(said)
        for key in ("images", "skipped"):
            yield Measurement(STAGE, key, *joined.numbers()[key], condition(**at))
        path = job.folder / f"{'_'.join(filter(None, (STAGE, name, corruption, kind)))}.npz"
        evaluate.save(path, joined, info.num_classes)
        yield Artifact(STAGE, "predictions", path, condition(**at))
        if corruption:
            errors[corruption] = fmean(100 - each.numbers()["top1"][0] for each in said)
            yield Measurement(STAGE, "error", errors[corruption], "%", condition(**at))
    if errors:
        yield from _summary(errors, _under(job, kind, found[-1]))


def _look(
    job: Job, info: DataInfo, kind: str, model: nn.Module, folder: RobustnessFolder
) -> Generator[Event, None, Predictions]:
    """Yield the numbers of one folder and return its predictions."""
    recipe, labels = job.recipe, sorted(folder.labels.values())
    if folder.set == "c":
        recipe = dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, crop_pct=1.0))
    if len(labels) < info.num_classes:
        model = Among(model, labels, info.num_classes).to(job.device)
    images = dataclasses.replace(info, val=folder.reader())
    loader = stmbench.data.eval_loader(images, recipe, device=job.device)
    severity = {"severity": folder.severity} if folder.severity else {}
    name = " ".join(filter(None, (folder.set, folder.corruption, *map(str, severity.values()))))
    predictions = yield from evaluate.predict(job, model, loader, name, STAGE)
    at = condition(**_under(job, kind, folder), **severity)
    numbers = predictions.numbers()
    for key in ("top1", "top5", "loss"):
        yield Measurement(STAGE, key, *numbers[key], at)
    low, high = wilson(numbers["top1"][0], numbers["images"][0])
    yield Measurement(STAGE, "top1.low", low, "%", at)
    yield Measurement(STAGE, "top1.high", high, "%", at)
    yield from evaluate.left_out(STAGE, int(numbers["skipped"][0]), len(predictions.labels), name)
    return predictions


def _under(job: Job, kind: str, folder: RobustnessFolder) -> dict[str, object]:
    """What all numbers of a folder, or of a corruption's five, are measured under."""
    corruption = {"corruption": folder.corruption} if folder.corruption else {}
    return {
        **corruption,
        "set": folder.set,
        "classes": len(folder.labels),
        "fingerprint": folder.fingerprint,
        "precision": network.precision(job.recipe, job.device),
        "protocol": PROTOCOL,
        "size": job.recipe.data.image_size,
        "weights": kind,
    }


def _joined(said: list[Predictions]) -> Predictions:
    """One folder's predictions after the other's: of a corruption, in the order of severities."""
    return Predictions(
        *(np.concatenate([getattr(each, key) for each in said]) for key in ("labels", "top5", "losses"))
    )


def _summary(errors: Mapping[str, float], under: Mapping[str, object]) -> Iterator[Measurement]:
    """The corruption errors, in per cent of AlexNet's error, and the means over the fifteen corruptions."""
    relative = {name: 100 * errors[name] / alexnet for name, alexnet in ALEXNET_ERRORS.items()}
    for name, value in relative.items():
        yield Measurement(STAGE, "ce", value, "%", condition(**{**under, "corruption": name}))
    at = condition(**{key: value for key, value in under.items() if key not in ("corruption", "set")})
    yield Measurement(STAGE, "mce", fmean(relative.values()), "%", at)
    yield Measurement(STAGE, "mean_error", fmean(errors[name] for name in ALEXNET_ERRORS), "%", at)
