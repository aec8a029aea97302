"""Stage `detect`: a detector around the backbone, trained by the recipe, and its average precision.

Trained by `stmbench.training.engine`, as classifiers are, from random weights, from a classifier's, or from a
detector's; with ``schedule.epochs = 0`` a detector is only evaluated. What is found in every validation image
is kept as an artifact, for plain and EMA weights, in the pixels of the image's file.
"""

from collections.abc import Callable, Generator, Iterator
from typing import Any

import torch
from torch import Tensor, nn

import stmbench.data
from stmbench import world
from stmbench.data import DetectionInfo, DetectionLoader, masks
from stmbench.measure import ap
from stmbench.nn.detector import at_size
from stmbench.nn.detector_weights import load_detector
from stmbench.record import Artifact, Event, Job, Measurement, Note, Progress, condition
from stmbench.stages.evaluate import left_out
from stmbench.training import engine, network
from stmbench.training.engine import Loss, Numbers


def run(job: Job) -> Generator[Event, None, None]:
    """Train, unless there are no epochs; then yield the AP of each kind of weights and what was found."""
    info = stmbench.data.find_detection(job.data)
    yield from (Note("detect", text) for text in info.notes)
    if job.recipe.schedule.epochs:
        yield from _train(job, info)
    loader = _eval_loader(job, info)
    model = network.detector(job, info.num_classes, masks=info.has_masks)
    for kind, file in network.detector_files(job).items():
        load_detector(model, file, ema=kind == "ema")
        found = yield from predict(job, model, info, loader, f"detect {kind}")
        at = condition(weights=kind)
        for name, (value, unit) in ap.average_precision(info, found).items():
            yield Measurement("detect", name, value, unit, at)
        yield Measurement("detect", "images", len(found.images), "images", at)
        path = job.folder / f"detections_{kind}.json.gz"
        if world.is_main():
            ap.save(path, found)
        yield Artifact("detect", "detections", path, at)
        yield from left_out("detect", info.num_val - len(found.images), info.num_val)


def _train(job: Job, info: DetectionInfo) -> Iterator[Event]:
    task = Detecting(job, info)
    if task.left:
        yield Note("detect", task.left)
    yield from network.taken(job, task.pyramid, "detect")
    yield from engine.train(job, task)


class Detecting:
    """Images and the objects on them: see `engine.Task`."""

    stage = "detect"

    def __init__(self, job: Job, info: DetectionInfo) -> None:
        self.job, self.info = job, info
        micro_batch, accumulate = engine.shares(job.recipe, world.size())
        where: Any = {"device": job.device, "rank": world.rank(), "world": world.size()}
        self.loader: stmbench.data.Batches = stmbench.data.detection_train_loader(
            info, job.recipe, seed=job.seed, micro_batch=micro_batch, **where
        )
        if len(self.loader) < accumulate:
            raise ValueError(
                f"{info.name} has {info.num_train} training images, fewer than one batch: "
                f"lower it with --set train.batch_size=N."
            )
        self.val_loader = _eval_loader(job, info)
        detector, self.left = network.start_detector(job, info.num_classes, masks=info.has_masks)
        self.model: nn.Module = detector
        self.pyramid = detector.pyramid

    def loss(self, forward: Callable[..., dict[str, Tensor]], batch: Any) -> Loss:
        images, targets = batch
        parts = forward(images, targets)
        return Loss(torch.stack([*parts.values()]).sum(), len(images), parts)

    def validate(self, kind: str, model: nn.Module, epoch: int) -> Generator[Event, None, Numbers]:
        text = f"validate {epoch}/{self.job.recipe.schedule.epochs}"
        found = yield from predict(self.job, model, self.info, self.val_loader, text)
        numbers = ap.average_precision(self.info, found)
        return {name: numbers[name] for name in ("box_ap", "mask_ap") if name in numbers}

    def metadata(self) -> dict[str, str]:
        return {"data": f"{self.info.name}@{self.info.fingerprint}"}


def _eval_loader(job: Job, info: DetectionInfo) -> DetectionLoader:
    return stmbench.data.detection_eval_loader(
        info, job.recipe, device=job.device, rank=world.rank(), world=world.size()
    )


def predict(
    job: Job, model: nn.Module, info: DetectionInfo, loader: DetectionLoader, text: str
) -> Generator[Event, None, ap.Found]:
    """Yield progress and return what is found: ``found = yield from predict(...)``.

    Where each process has its share of the images, every one of them gets what all have found.
    """
    model.eval()
    own: list[dict[str, Any]] = []
    with network.memory_advice("eval.batch_size", job.recipe.eval.batch_size):
        for done, (images, targets) in enumerate(loader, 1):
            with torch.inference_mode(), network.autocast(job.recipe, job.device):
                answers = model(images)
            for image, target, answer in zip(images, targets, answers, strict=True):
                height, width = image.shape[-2:]
                found = at_size(answer, (height, width), target["size"])
                own.append({"image_id": target["image_id"], **_plain(found)})
            yield Progress("detect", text, done, len(loader))
    loader.check_skipped()
    everything = [each for share in world.gather(own) for each in share]
    return ap.found(info, sorted(everything, key=lambda each: each["image_id"]))


def _plain(found: dict[str, Tensor]) -> dict[str, Any]:
    """What was found in one image as NumPy arrays, and masks as run lengths."""
    arrays = {key: value.cpu().numpy() for key, value in found.items()}
    return arrays | ({"masks": masks.encode(arrays["masks"])} if "masks" in arrays else {})
