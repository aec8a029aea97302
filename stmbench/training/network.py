"""The network a job describes: made, given weights, placed on the device, and its precision."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

import stmbench.data
from stmbench import catalog
from stmbench.data import DataInfo
from stmbench.measure.setting import AUTOCAST
from stmbench.mixers import backends
from stmbench.nn import create_model, timm_models, weights
from stmbench.nn.detector import Detector
from stmbench.nn.detector_weights import holds_detector, load_detector
from stmbench.recipe import Recipe
from stmbench.record import Event, Job, Measurement, Note, condition


class OutOfMemoryError(RuntimeError):
    """The device's memory ran out; the message names the setting to lower."""


def make(job: Job, num_classes: int, device: str | None = None) -> nn.Module:
    """The job's network in its starting state, a function of the job's seed and weights file alone."""
    if timm_models.is_timm(job.mixer):
        model = _create(job, num_classes, partial(timm_models.create, job.mixer))
    else:
        window = catalog.window(job.mixer, job.recipe.model.window)
        options = {"backend": job.backend, "design": job.design, "window": window}
        model = _create(job, num_classes, partial(create_model, job.mixer, job.scale, **options))
    if job.weights:
        load(job, model, job.weights)
    return _placed(model, device or job.device)


def twin(job: Job, num_classes: int) -> nn.Module:
    """The same backbone around the identity: the job's network without its mixer."""
    options = {"size_of": job.mixer, "design": job.design}
    model = _create(job, num_classes, partial(create_model, "identity", job.scale, **options))
    return _placed(model, job.device)


def detector(
    job: Job, num_classes: int, *, masks: bool, device: str | None = None, control: bool = False
) -> Detector:
    """The job's detector in its starting state: `start_detector` without saying what it left out."""
    return start_detector(job, num_classes, masks=masks, device=device, control=control)[0]


def start_detector(
    job: Job, num_classes: int, *, masks: bool, device: str | None = None, control: bool = False
) -> tuple[Detector, str]:
    """The job's detector in its starting state, and what of it, or of the weights file, was left out.

    A detector's weights fill all of it, a classifier's the backbone. `control` is around the identity, and
    without weights.
    """
    whole = job.weights is not None and not control and holds_detector(job.weights)
    bare = dataclasses.replace(job, weights=None) if whole else job
    backbone = twin(job, 0) if control else make(bare, 0, device="cpu")
    data = job.recipe.data
    model = Detector(backbone, num_classes, job.recipe.detect, masks=masks, mean=data.mean, std=data.std)
    left = ""
    if whole:
        assert job.weights
        names = load_detector(model, job.weights)
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        left = f"Not in {job.weights}, and left as they start: {', '.join(names[:3])}{more}." if names else ""
    elif job.weights and not control:
        left = f"{job.weights} is a classifier's: its head is left out, neck and heads start untrained."
    placed = _placed(model, device or job.device)
    assert isinstance(placed, Detector)
    return placed, left


def makers(job: Job) -> tuple[Callable[..., nn.Module], Callable[..., nn.Module]]:
    """What makes the job's network, a detector if the recipe is of detection, and the same without mixer."""
    if job.recipe.detects:
        info = stmbench.data.find_detection(job.data)
        make_detector = partial(detector, job, info.num_classes, masks=info.has_masks)
        return make_detector, partial(make_detector, control=True)
    classes = stmbench.data.find(job.data).num_classes
    return partial(make, job, classes), partial(twin, job, classes)


def _create(job: Job, num_classes: int, create: Callable[..., nn.Module]) -> nn.Module:
    data, drop_path = job.recipe.data, job.recipe.model.drop_path
    if drop_path is None and job.recipe.detects:
        drop_path = catalog.DETECTION_DROP_PATH.get(job.scale)
    torch.manual_seed(job.seed)
    return create(
        num_classes=num_classes,
        in_channels=data.channels,
        image_size=data.image_size,
        drop_path=drop_path,
    )


def _placed(model: nn.Module, device: str) -> nn.Module:
    return model.to(device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


def load(job: Job, model: nn.Module, file: str, *, ema: bool = False) -> None:
    """Load a checkpoint of the job's kind of network; ValueError where it does not fit."""
    weights.load_weights(model, file, ema=ema, adapt=_adapt(job))


def classes_of(job: Job, model: nn.Module) -> int | None:
    """How many classes the weights that the job starts from tell apart; None without a classifier."""
    assert job.weights
    return weights.classes_of(job.weights, model, adapt=_adapt(job))


def _adapt(job: Job) -> weights.Adapt:
    return timm_models.adapt if timm_models.is_timm(job.mixer) else weights.adapt_inputs


def weights_file(job: Job, kind: str) -> Path:
    """Where training leaves its `plain` or `ema` weights."""
    return job.folder / f"{kind}.safetensors"


def trained(job: Job, info: DataInfo) -> Iterator[tuple[str, nn.Module]]:
    """The networks an evaluation looks at: the run's own plain and EMA weights, else those it was given."""
    model = make(job, info.num_classes)
    for kind, file in _files(job).items():
        load(job, model, file, ema=kind == "ema")
        yield kind, model


def headline(job: Job, info: DataInfo) -> tuple[str, nn.Module]:
    """The one network a run is known by, and its kind of weights: EMA wherever there are some."""
    files = _files(job)
    kind = "ema" if "ema" in files else "plain"
    model = make(job, info.num_classes)
    load(job, model, files[kind], ema=kind == "ema")
    return kind, model.eval()


def detector_files(job: Job) -> dict[str, str]:
    """The detectors to evaluate: those that were trained here, by kind of weights, else what was given."""
    if job.recipe.schedule.epochs:
        files = {kind: weights_file(job, kind) for kind in ("plain", "ema")}
        return {kind: str(file) for kind, file in files.items() if file.is_file()}
    assert job.weights, "a plan has weights to look at"
    return dict.fromkeys(weights.kinds_of(job.weights), job.weights)


def _files(job: Job) -> dict[str, str]:
    """The checkpoint of each kind of weights."""
    if "train" in job.stages:
        files = {kind: str(weights_file(job, kind)) for kind in ("plain", "ema")}
        return {kind: file for kind, file in files.items() if Path(file).is_file()}
    assert job.weights, "a plan has weights to look at"
    return dict.fromkeys(weights.kinds_of(job.weights), job.weights)


def taken(job: Job, model: nn.Module, stage: str) -> Iterator[Event]:
    """The backends that the stage's mixers take, as the condition of their number; of networks of ours alone.

    A forced backend that cannot run is a note.
    """
    if timm_models.is_timm(job.mixer):
        return
    recipe, trains = job.recipe, stage in ("train", "detect")
    channels, height, width = image_shape(recipe)
    batch = recipe.train.device_batch_size or recipe.train.batch_size if trains else recipe.eval.batch_size
    said: list[str] = []
    grad = torch.enable_grad() if trains else torch.inference_mode()
    with backends.fallbacks(said.append), grad, autocast(recipe, job.device):
        image = torch.zeros(1, channels, height, width, device=job.device)
        path = backends.paths(model, image, batch=batch, compiling=trains and recipe.train.compile)
    yield from (Note(stage, text) for text in said)
    mixers = sum(catalog.scale(job.mixer, job.scale).depths)
    yield Measurement(stage, "mixers", mixers, "", condition(backend=path))


def image_shape(recipe: Recipe) -> tuple[int, int, int]:
    """Channels, height and width of the image that stands for all: what is counted and timed."""
    data = recipe.data
    size = recipe.detect.image_size if recipe.detects else (data.image_size, data.image_size)
    return data.channels, *size


def precision(recipe: Recipe, device: str) -> str:
    """fp32, bf16 or fp16: the recipe's, or for "auto" the best the device has autocast for."""
    if recipe.train.precision != "auto":
        return recipe.train.precision
    if device.startswith("cuda"):
        return "bf16" if torch.cuda.is_bf16_supported() else "fp16"
    return "fp32"


def autocast(recipe: Recipe, device: str) -> contextlib.AbstractContextManager[Any]:
    """Autocast as the recipe's precision asks for on this device; does nothing for fp32."""
    kind = precision(recipe, device)
    if kind == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(torch.device(device).type, AUTOCAST[kind])


@contextlib.contextmanager
def memory_advice(setting: str, batch_size: int) -> Iterator[None]:
    """Turn any form of running out of memory into one line that names the batch size to try."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if not isinstance(error, torch.OutOfMemoryError | MemoryError) and "allocate memory" not in str(
            error
        ):
            raise
        advice = f"try --set {setting}={batch_size // 2}" if batch_size > 1 else "no smaller batch exists"
        raise OutOfMemoryError(f"Out of memory with {batch_size} images at once; {advice}.") from error
