"""Masks of objects as COCO stores them: polygons, and run lengths by column, compressed or not.

They become pixels by faster-coco-eval, whose rasteriser is that of COCO's own tools (Lin et al. 2014,
arXiv:1405.0312): what of a polygon lies outside the image is cut off.
"""

from typing import Any

import numpy as np

Rle = dict[str, Any]  # "size": [height, width], "counts": bytes or str


def library() -> Any:
    """The modules of faster-coco-eval; ValueError says how to install it."""
    try:
        import faster_coco_eval
    except ImportError:
        raise ValueError("Masks and AP need faster-coco-eval: pip install 'stmbench[detection]'.") from None
    return faster_coco_eval


def decode(segmentations: list[Any], height: int, width: int) -> np.ndarray:
    """Polygons or run lengths of N objects as (N, H, W) uint8, 1 inside.

    Raises:
        ValueError: run lengths that are not those of such an image, or faster-coco-eval is missing.
    """
    if not segmentations:
        return np.zeros((0, height, width), np.uint8)
    mask = library().mask
    try:
        planes = mask.decode([mask.segmToRle(each, width, height) for each in segmentations])  # (H, W, N)
    except (RuntimeError, TypeError) as error:
        raise ValueError(str(error)) from None
    return np.ascontiguousarray(planes.transpose(2, 0, 1))  # (N, H, W)


def encode(masks: np.ndarray) -> list[Rle]:
    """(N, H, W) of 0 and 1 as compressed run lengths, fit for JSON."""
    planes = np.asfortranarray(masks.transpose(1, 2, 0).astype(np.uint8))  # (H, W, N)
    found = library().mask.encode(planes) if planes.shape[2] else []
    return [{"size": list(rle["size"]), "counts": rle["counts"].decode("ascii")} for rle in found]
