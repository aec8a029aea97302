"""Average precision of boxes and masks as COCO defines it (Lin et al. 2014, arXiv:1405.0312).

faster-coco-eval computes it: the mean, over classes and over intersections over union from 0.5 to 0.95, of
the area under the interpolated precision curve. Crowds are neither right nor wrong to find. For masks an
object that was found is as large as its mask, not as its box.

Annotations are numbered anew, from 1: COCO's tools take an object with the number 0 for one not found.
"""

import gzip
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stmbench.data import DetectionInfo
from stmbench.data.masks import library

NUMBERS = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", "ar1", "ar10", "ar100")
"""In the order of the summary of COCO's tools; small is below 32, large above 96 pixels squared."""
KINDS = {"box": "bbox", "mask": "segm"}


@dataclass(frozen=True, slots=True)
class Found:
    """What a detector found on the images it was shown, those on which it found nothing included."""

    images: list[int]  # ids
    results: list[dict[str, Any]]  # as COCO's results format has them, with the data set's own ids


def found(info: DetectionInfo, detections: Sequence[Mapping[str, Any]]) -> Found:
    """From a detector's terms to COCO's.

    A detection is what was found on one image: `image_id`, `boxes` (N, 4), left, top, right and bottom in
    pixels of the file, `scores` (N,), `labels` (N,) from 1 and, in a set with masks, `masks`, N run lengths.
    Boxes are kept to a hundredth of a pixel; AP is computed from what is kept.
    """
    return Found(
        [int(each["image_id"]) for each in detections],
        [result for each in detections for result in _results(info, each)],
    )


def _results(info: DetectionInfo, detection: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    boxes = np.asarray(detection["boxes"], np.float64).reshape(-1, 4)  # (N, 4)
    sides = boxes[:, 2:] - boxes[:, :2]
    boxes = np.concatenate([boxes[:, :2], sides], 1).round(2)  # left, top, width, height
    scores = np.asarray(detection["scores"], np.float64)
    for i, label in enumerate(np.asarray(detection["labels"]).tolist()):
        result = {
            "image_id": int(detection["image_id"]),
            "category_id": info.category_ids[label - 1],
            "bbox": boxes[i].tolist(),
            "score": float(scores[i]),
        }
        if info.has_masks:
            result["segmentation"] = detection["masks"][i]
        yield result


def save(path: Path, found: Found) -> None:
    """Write what was found as compressed JSON: ``images``, ids, and ``results``, in COCO's format."""
    content = json.dumps({"images": found.images, "results": found.results}, separators=(",", ":"))
    path.write_bytes(gzip.compress(content.encode(), mtime=0))  # the same results are the same file


def load(path: Path) -> Found:
    """Read them back.

    Raises:
        ValueError: the file is gone, or holds no such thing.
    """
    try:
        values = json.loads(gzip.decompress(path.read_bytes()))
        return Found(values["images"], values["results"])
    except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"The detections in {path} cannot be read: {error}.") from None


def average_precision(info: DetectionInfo, found: Found) -> dict[str, tuple[float, str]]:
    """name -> (value, unit): `box_ap`, `box_ap50` ... and `box_ap.CLASS`, the same for masks, in per cent.

    A number of which the images hold no object (of this class, of this size) is left out.

    Raises:
        ValueError: faster-coco-eval is not installed.
    """
    numbers: dict[str, tuple[float, str]] = {}
    for kind in ("box", "mask") if info.has_masks else ("box",):
        for name, value in _evaluated(info, found, kind).items():
            if value >= 0:  # COCO's tools say -1 where there is nothing to find
                numbers[f"{kind}_{name}"] = (100 * value, "%")
    return numbers


def _evaluated(info: DetectionInfo, found: Found, kind: str) -> dict[str, float]:
    coco = library()
    truth = coco.COCO(annotations(info, found.images))
    sized_by = {"box": "segmentation", "mask": "bbox"}[kind]  # what would give an object the wrong area
    results = [{key: each[key] for key in each if key != sized_by} for each in found.results]
    evaluation = coco.COCOeval_faster(truth, truth.loadRes(results), KINDS[kind], print_function=_say_nothing)
    evaluation.run()
    numbers: dict[str, float] = dict(zip(NUMBERS, map(float, evaluation.stats), strict=False))
    precision = evaluation.eval["precision"][:, :, :, 0, -1]  # (IoU, recall, class) of all sizes
    for name, of_class in zip(info.class_names, np.moveaxis(precision, 2, 0), strict=True):
        numbers[f"ap.{name}"] = float(of_class[of_class > -1].mean()) if (of_class > -1).any() else -1.0
    return numbers


def annotations(info: DetectionInfo, images: Sequence[int]) -> dict[str, Any]:
    """What is annotated on some of the validation images, in COCO's format."""
    val, wanted = info.val, set(images)
    places = [i for i, image in enumerate(val.image_ids) if image in wanted]
    objects = [(val.image_ids[i], each) for i in places for each in val.annotations[i]]
    return {
        "images": [
            {"id": val.image_ids[i], "height": val.sizes[i][0], "width": val.sizes[i][1]} for i in places
        ],
        "categories": [
            {"id": category, "name": name}
            for category, name in zip(info.category_ids, info.class_names, strict=True)
        ],
        "annotations": [
            {**each, "id": number, "image_id": image} for number, (image, each) in enumerate(objects, 1)
        ],
    }


def _say_nothing(*_: object) -> None:
    """A stage never prints."""
