"""The sections of a recipe: frozen dataclasses with what each value means, and the values that make sense."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class Data:
    """What is read and how a plain image is made ready for the network."""

    source: str = ""  # default of --data; "" asks for one
    image_size: int = 224
    channels: Literal[1, 3] = 3
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"] = "bicubic"
    crop_pct: float = 0.875
    workers: int = -1  # loader processes; -1: as many as the machine has cores for
    cache: Literal["auto", "memory", "none"] = "auto"  # of decoded training images; auto: if all of them fit


@dataclass(frozen=True, slots=True, kw_only=True)
class Augment:
    """Training augmentation, in timm's terms; 0 or "" switches one off."""

    crop: Literal["rrc", "rkrc", "rkrr"] = "rrc"  # random resized crop; resize keep-ratio, random crop/resize
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (0.75, 4 / 3)
    hflip: float = 0.5
    color_jitter: float = 0.0
    auto_augment: str = ""
    erase: float = 0.0
    erase_mode: Literal["const", "rand", "pixel"] = "pixel"
    mixup: float = 0.0
    cutmix: float = 0.0
    smoothing: float = 0.1
    repeats: int = 1  # of an image in an epoch, which keeps its length, changed otherwise (arXiv:1901.09335)


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """The network; what is not said here is the catalogue's."""

    scale: str = "micro"  # default of --scale
    drop_path: float | None = None  # default: the scale's own
    window: int = 0  # side of the windows of halo (its blocks) and swin; 0: their own, 7


@dataclass(frozen=True, slots=True, kw_only=True)
class Optimizer:
    """timm's optimizer factory."""

    name: str = "adamw"
    lr: float = 1e-3
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.999)
    clip_grad: float = 0.0  # largest gradient norm; 0 for none
    layer_decay: float = 1.0  # of the rate from each layer to the one before it, the head's being lr
    # What is decayed beside the weights of convolutions and linear layers; of which mixers, or ["all"].
    decay_biases: bool = False  # of these layers; norms have none that is
    decay_positions: tuple[str, ...] = ()  # learnt tables of positions
    decay_layer_scales: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """timm's scheduler factory, stepped per update."""

    name: Literal["cosine", "tanh", "poly", "multistep"] = "cosine"
    epochs: int = 300
    warmup_epochs: int = 20
    warmup_steps: int = 0  # updates, in the place of warmup_epochs
    milestones: tuple[int, ...] = ()  # multistep: epochs after which the rate is multiplied by `decay`
    decay: float = 0.1
    warmup_lr: float = 0.0
    min_lr: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Train:
    batch_size: int = 1024  # images per optimizer step
    device_batch_size: int = 0  # images per forward pass, accumulated up to batch_size; 0: all at once
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"  # auto: the best autocast the device has
    ema_decay: float = 0.0  # 0 for none
    compile: bool = False
    checkpointing: bool = False  # compute activations again in the backward pass: less memory, more time


@dataclass(frozen=True, slots=True, kw_only=True)
class Eval:
    batch_size: int = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """What is timed: every combination of the three lists. Latency is always taken at batch 1."""

    batch_sizes: tuple[int, ...] = (1, 8, 32, 64)  # of the throughput sweep
    train_batch_size: int = 32  # of the training step; 0 leaves it out
    precisions: tuple[Literal["auto", "fp32", "tf32", "bf16", "fp16"], ...] = ("auto",)  # auto: the run's own
    executions: tuple[Literal["eager", "compiled", "cudagraph"], ...] = ("eager",)
    memory_formats: tuple[Literal["channels_last", "contiguous"], ...] = ("channels_last",)
    samples: int = 100  # of each; the protocol asks for at least 100
    control: bool = True  # also the same backbone around the identity, for what the mixer itself costs


@dataclass(frozen=True, slots=True, kw_only=True)
class Erf:
    """Effective receptive fields: see docs/analysis.md."""

    images: int = 500  # validation images, evenly spread over the data set; 0 for all
    sizes: tuple[int, ...] = ()  # of images, in pixels; none: data.image_size and twice that
    batch_size: int = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Invariance:
    """Transformations and their strengths, in pixels of data.image_size; an empty list leaves one out."""

    protocols: tuple[Literal["invariance/1", "invariance/published"], ...] = ("invariance/1",)
    images: int = 0  # validation images, evenly spread over the data set; 0 for all
    batch_size: int = 64
    translation: tuple[int, ...] = tuple(range(0, 65, 4))  # pixels, in eight directions
    rotation: tuple[int, ...] = tuple(range(0, 91, 5))  # degrees, before and after the crop
    scale: tuple[float, ...] = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.875, 1.0, 1.2, 1.4, 1.6, 1.8, 2.0)
    """Side of the crop over the image's shorter side."""
    flip: bool = True  # left to right
    jpeg: tuple[int, ...] = (90, 70, 50, 30, 20, 10)  # quality
    blur: tuple[float, ...] = (0.5, 1.0, 1.5, 2.0, 3.0, 4.0)  # standard deviation, pixels
    noise: tuple[float, ...] = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3)  # standard deviation, of a range of 1
    contrast: tuple[float, ...] = (0.8, 0.6, 0.4, 0.3, 0.2, 0.1)  # factor
    equivariance: int = 500  # images on which the shift equivariance of the features is looked at; 0 for none


@dataclass(frozen=True, slots=True, kw_only=True)
class Robustness:
    """Folders with other test images for ImageNet's classes; "" leaves one out."""

    v2: str = ""  # ImageNet-V2
    a: str = ""  # ImageNet-A
    r: str = ""  # ImageNet-R
    sketch: str = ""  # ImageNet-Sketch
    c: str = ""  # ImageNet-C: CORRUPTION/SEVERITY/CLASS folders


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """Classifiers of frozen features: see docs/probe.md."""

    images: int = 0  # training images, evenly spread over the data set; 0 for all
    neighbours: int = 20  # that vote
    temperature: float = 0.07  # of their votes


@dataclass(frozen=True, slots=True, kw_only=True)
class Detect:
    """The detector around the backbone, of recipes with the stage `detect`: see docs/detection.md."""

    fpn_channels: int = 256  # of every map of the feature pyramid
    anchor_sizes: tuple[int, ...] = (32, 64, 128, 256, 512)  # pixels, by map; 4, or 5 with a pooled map
    rpn_samples: int = 256  # anchors of an image that the loss is taken of
    roi_samples: int = 512  # proposals of an image that the loss is taken of
    proposals: int = 1000  # of an image
    detections: int = 100  # of an image, at most
    box_width: int = 1024  # of the two layers of the box head
    mask_width: int = 256  # channels of the mask head
    image_size: tuple[int, int] = (800, 1280)  # height and width that `build` counts and `profile` times at
    short_side: int = 800  # pixels that an image's shorter side is resized to ...
    long_side: int = 1333  # ... unless the longer one would then have more than these
    flip: float = 0.5  # left to right, in training
    jitter: tuple[
        float, ...
    ] = ()  # [low, high]: large-scale jitter, in training instead of resizing; [] for none
    jitter_size: int = 1024  # sides of the square that it crops or pads to


# Smallest values that make sense, for the numbers a typing error would turn into a crash far from here.
AT_LEAST = {
    ("detect", "fpn_channels"): 1,
    ("detect", "anchor_sizes"): 1,
    ("detect", "rpn_samples"): 1,
    ("detect", "roi_samples"): 1,
    ("detect", "proposals"): 1,
    ("detect", "detections"): 1,
    ("detect", "box_width"): 1,
    ("detect", "mask_width"): 1,
    ("detect", "image_size"): 1,
    ("detect", "short_side"): 1,
    ("detect", "long_side"): 1,
    ("detect", "jitter"): 0.01,
    ("detect", "jitter_size"): 1,
    ("data", "image_size"): 1,
    ("data", "crop_pct"): 0.01,
    ("data", "workers"): -1,
    ("augment", "color_jitter"): 0,
    ("augment", "mixup"): 0,
    ("augment", "cutmix"): 0,
    ("augment", "repeats"): 1,
    ("model", "window"): 0,
    ("optimizer", "lr"): 0,
    ("optimizer", "weight_decay"): 0,
    ("optimizer", "clip_grad"): 0,
    ("optimizer", "layer_decay"): 0.01,
    ("schedule", "warmup_lr"): 0,
    ("schedule", "min_lr"): 0,
    ("schedule", "epochs"): 0,
    ("schedule", "warmup_epochs"): 0,
    ("schedule", "warmup_steps"): 0,
    ("schedule", "milestones"): 1,
    ("schedule", "decay"): 0,
    ("train", "batch_size"): 2,
    ("train", "device_batch_size"): 0,
    ("eval", "batch_size"): 1,
    ("profile", "batch_sizes"): 1,
    ("profile", "train_batch_size"): 0,
    ("profile", "samples"): 1,
    ("erf", "images"): 0,
    ("erf", "sizes"): 1,
    ("erf", "batch_size"): 1,
    ("invariance", "images"): 0,
    ("invariance", "batch_size"): 1,
    ("invariance", "translation"): 0,
    ("invariance", "scale"): 0.01,
    ("invariance", "jpeg"): 1,
    ("invariance", "blur"): 0,
    ("invariance", "noise"): 0,
    ("invariance", "contrast"): 0,
    ("invariance", "equivariance"): 0,
    ("probe", "images"): 0,
    ("probe", "neighbours"): 1,
    ("probe", "temperature"): 0.001,
}
AT_MOST = {("optimizer", "layer_decay"): 1, ("invariance", "jpeg"): 100}
SHARES = (
    ("data", "crop_pct"), ("augment", "hflip"), ("augment", "erase"), ("augment", "smoothing"),
    ("train", "ema_decay"), ("model", "drop_path"), ("detect", "flip"),
)  # fmt: skip
