"""Batches of images with objects: where they are after every change, and what decides it."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from coco_set import BRIGHT, DARK, content, dump, write
from samples import truncate
from torch import Tensor

from stmbench import data, recipe
from stmbench.data import DetectionInfo, UnreadableImagesError, scenes, sources
from stmbench.recipe import Recipe

Scene = tuple[Tensor, dict[str, Any]]


@pytest.fixture
def info(tmp_path: Path) -> DetectionInfo:
    sources.find_detection.cache_clear()
    return data.find_detection(str(write(tmp_path, content(12), content(7, seed=1))))


@pytest.fixture
def protocol() -> Callable[..., Recipe]:
    def make(workers: int = 0, batch: int = 3, **detect: Any) -> Recipe:
        plain = recipe.load("detect_quick", [f"data.workers={workers}", f"eval.batch_size={batch}"])
        detect = {"short_side": 64, "long_side": 1000, "flip": 0.5} | detect
        return dataclasses.replace(plain, detect=dataclasses.replace(plain.detect, **detect))

    return make


def trained(info: DetectionInfo, protocol: Recipe, epoch: int = 1, step: int = 0, **how: Any) -> list[Scene]:
    """All images of an epoch, with their targets."""
    options = {"device": "cpu", "seed": 5, "micro_batch": 2} | how
    loader = data.detection_train_loader(info, protocol, **options)
    loader.start(epoch, step)
    return [scene for images, targets in loader for scene in zip(images, targets, strict=True)]


def same(first: list[Scene], second: list[Scene]) -> bool:
    def equal(a: Any, b: Any) -> bool:
        return torch.equal(a, b) if isinstance(a, Tensor) else a == b

    return len(first) == len(second) and all(
        torch.equal(a, b) and s.keys() == t.keys() and all(equal(s[key], t[key]) for key in s)
        for (a, s), (b, t) in zip(first, second, strict=True)
    )


def bright_box(image: Tensor) -> Tensor:
    """Left, top, right and bottom of what is bright."""
    rows, columns = (image[0] > (BRIGHT + DARK) / 2 / 255).nonzero(as_tuple=True)
    ends = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    return torch.stack(ends).float()


def is_where_it_says(scene: Scene) -> None:
    image, target = scene
    assert target["masks"].shape[1:] == image.shape[1:]
    torch.testing.assert_close(target["boxes"][0], bright_box(image), atol=1.01, rtol=0)
    mask = target["masks"][0].bool()
    torch.testing.assert_close(
        bright_box(mask.expand(3, -1, -1).float()), bright_box(image), atol=1.01, rtol=0
    )


# What happens to an image


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((480, 640), (800, 1067)),  # height and width
        ((640, 480), (1067, 800)),
        ((400, 1000), (533, 1333)),  # the longer side decides
        ((1600, 1600), (800, 800)),
    ],
)
def test_plain_resizing_keeps_the_ratio(size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert scenes.resized_size(*size, short_side=800, long_side=1333) == expected


@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_boxes_and_masks_follow_resizing_and_mirroring(
    info: DetectionInfo, protocol: Callable[..., Recipe], flip: float
) -> None:
    found = trained(info, protocol(flip=flip))
    assert len(found) == 12
    originals = {info.train.image_ids[i]: info.train[i] for i in range(12)}
    for image, target in found:
        is_where_it_says((image, target))
        original, before = originals[target["image_id"]]
        assert min(image.shape[1:]) == 64
        assert target["labels"].tolist() == before["labels"].tolist()
        scale = image.shape[2] / original.width
        start = before["boxes"][0, 0] if not flip else original.width - before["boxes"][0, 2]
        assert float(target["boxes"][0, 0]) == pytest.approx(float(start) * scale, abs=0.01)
        assert float(target["area"][0]) == pytest.approx(float(before["area"][0]) * scale**2, rel=0.03)


def test_boxes_and_masks_follow_jitter(info: DetectionInfo, protocol: Callable[..., Recipe]) -> None:
    """Windows of enlarged images, and small images on the colour that is zero to the network."""
    jitter = protocol(jitter=(0.5, 2.0), jitter_size=96)
    found = [scene for epoch in range(1, 6) for scene in trained(info, jitter, epoch)]
    assert {tuple(image.shape) for image, _ in found} == {(3, 96, 96)}
    fill = torch.tensor([round(255 * mean) / 255 for mean in jitter.data.mean])
    padded = [scene for scene in found if torch.allclose(scene[0][:, -1, -1], fill)]
    assert 10 < len(padded) < len(found)
    whole = [(i, t) for i, t in found if len(t["labels"]) and bright_box(i)[2:].max() < 90]
    assert len(whole) > 10
    for image, target in whole:
        canvas = torch.where((image == fill[:, None, None]).all(0), DARK / 255, image)  # the fill is not dark
        is_where_it_says((canvas, target))


def test_objects_of_which_nothing_is_left_are_left_out() -> None:
    image = torch.zeros(3, 100, 100, dtype=torch.uint8)
    boxes = torch.tensor([[0.0, 0.0, 4.0, 4.0], [96.0, 96.0, 100.0, 100.0]])
    target = {"boxes": boxes, "labels": torch.tensor([1, 2]), "area": torch.tensor([16.0, 16.0])}
    target |= {"iscrowd": torch.tensor([0, 0]), "image_id": 7}
    seen = set()
    for seed in range(300):
        random = np.random.default_rng(seed)
        _, found = scenes.jittered((image, target), (1.3, 1.3), 100, (0, 0, 0), random)
        assert len(found["boxes"]) == len(found["labels"]) == len(found["area"]) == len(found["iscrowd"]) < 2
        seen.add(tuple(found["labels"].tolist()))
    assert seen == {(), (1,), (2,)}


# What decides it


@pytest.mark.parametrize("jitter", [(), (0.1, 2.0)])
def test_an_epoch_follows_from_its_seed_alone(
    info: DetectionInfo, protocol: Callable[..., Recipe], jitter: tuple[float, ...]
) -> None:
    plain = protocol(jitter=jitter, jitter_size=64)
    expected = trained(info, plain)
    assert same(trained(info, protocol(workers=2, jitter=jitter, jitter_size=64)), expected)
    assert same(trained(info, plain, step=4), expected[8:])
    ranks = [trained(info, plain, rank=rank, world=3) for rank in range(3)]
    dealt = [scene for step in range(2) for rank in ranks for scene in rank[2 * step : 2 * step + 2]]
    assert same(dealt, expected)
    assert not same(trained(info, plain, epoch=2), expected)
    assert not same(trained(info, plain, seed=6), expected)


def test_the_global_generators_stay_as_they_are(info: DetectionInfo, protocol: Callable[..., Recipe]) -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    trained(info, protocol())
    assert torch.equal(torch.rand(1), expected)


def test_iterations_are_of_one_epoch_after_the_other(
    info: DetectionInfo, protocol: Callable[..., Recipe]
) -> None:
    loader = data.detection_train_loader(info, protocol(), device="cpu", seed=5, micro_batch=5)
    assert len(loader) == 2  # what is left over is dropped
    epochs = [[scene for batch in loader for scene in zip(*batch, strict=True)] for _ in range(2)]
    for number, found in enumerate(epochs, 1):
        assert same(found, trained(info, protocol(), number, micro_batch=5))


@pytest.mark.parametrize("world", [1, 2, 3])
def test_ranks_evaluate_every_image_once(
    info: DetectionInfo, protocol: Callable[..., Recipe], world: int
) -> None:
    found = []
    for rank in range(world):
        loader = data.detection_eval_loader(info, protocol(), device="cpu", rank=rank, world=world)
        batches = list(loader)
        assert len(batches) == len(loader)
        found += [target["image_id"] for _, targets in batches for target in targets]
    assert sorted(found) == list(info.val.image_ids)


def test_evaluation_says_how_large_an_image_was(info: DetectionInfo, protocol: Callable[..., Recipe]) -> None:
    [(images, targets), *_] = data.detection_eval_loader(info, protocol(), device="cpu")
    assert [target["size"] for target in targets] == [info.val.sizes[i] for i in range(3)]
    assert [min(image.shape[1:]) for image in images] == [64] * 3
    assert all(image.min() >= 0 and image.max() <= 1 for image in images)


# What cannot be read


def test_an_unreadable_image_is_replaced_in_training_and_left_out_in_evaluation(
    tmp_path: Path, protocol: Callable[..., Recipe]
) -> None:
    sources.find_detection.cache_clear()
    root = write(tmp_path, content(101), content(101, seed=1))
    truncate(root / "train2017" / "050.png")
    (root / "val2017" / "050.png").unlink()
    info = data.find_detection(str(root))
    loader = data.detection_train_loader(info, protocol(), device="cpu", seed=5, micro_batch=101)
    [(_, targets)] = loader
    assert sorted(t["image_id"] for t in targets) == sorted([*range(100, 150), 151, *range(151, 201)])
    assert loader.skipped == 1
    loader = data.detection_eval_loader(info, protocol(workers=1), device="cpu")
    found = [target["image_id"] for _, targets in loader for target in targets]
    assert found == [*range(100, 150), *range(151, 201)]
    assert loader.skipped == 1


def test_more_than_a_hundredth_is_an_error_that_names_the_first(
    info: DetectionInfo, protocol: Callable[..., Recipe]
) -> None:
    truncate(Path(info.source) / "val2017" / "003.png")
    with pytest.raises(UnreadableImagesError, match=r"1 of 7 images .* The first is 003\.png"):
        list(data.detection_eval_loader(info, protocol(), device="cpu"))


def test_an_image_of_another_size_than_annotated_is_unreadable(
    tmp_path: Path, protocol: Callable[..., Recipe]
) -> None:
    sources.find_detection.cache_clear()
    values = content(6)
    write(tmp_path, values)
    values["images"][2]["width"] += 1
    dump(values, tmp_path / "annotations" / "instances_train2017.json")
    info = data.find_detection(str(tmp_path))
    with pytest.raises(UnreadableImagesError, match=r"002\.png: it is \d+ x \d+ pixels, annotated as"):
        trained(info, protocol())
