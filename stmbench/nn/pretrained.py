"""What timm's scripts read of a model before they feed it: sizes, normalisation, names of layers."""

from typing import Any

from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD


def pretrained_cfg(
    num_classes: int = 1000,
    input_size: tuple[int, int, int] = (3, 224, 224),
    first_conv: str = "stem.first.conv",
) -> dict[str, Any]:
    """What timm's scripts want to know of a model; without a url, for no weights are distributed."""
    return {
        "num_classes": num_classes,
        "input_size": input_size,
        "pool_size": tuple(-(-length // 32) for length in input_size[1:]),
        "crop_pct": 0.875,
        "interpolation": "bicubic",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": first_conv,
        "classifier": "head.fc",
    }
