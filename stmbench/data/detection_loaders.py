"""Batches of images with their objects, for training and for evaluating a detector.

What happens to an image in training is drawn from its place's seed: see `stmbench.data.sampling`. There the
next readable image stands in for an unreadable one; in evaluation that is left out. Both count.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.v2 import functional as v2

from stmbench.data import scenes
from stmbench.data.detection import DetectionInfo, Split, Target
from stmbench.data.images import UNREADABLE, Images
from stmbench.data.resources import loader_processes
from stmbench.data.sampling import Deal, EpochSampler, Place
from stmbench.data.scenes import Scene
from stmbench.recipe import Recipe

Batch = tuple[list[Tensor], list[Target]]


class _Decoded(Images):
    """The images of a split, each with its index for a label."""

    def __init__(self, split: Split) -> None:
        super().__init__(split.reader, channels=3, training=split.training)
        self._split = split

    def _decode(self, index: int) -> tuple[Image.Image, int]:
        return self._split.image(index), index


class _Scenes(Dataset[Any]):
    """The images of a split made ready, with their targets; None for one that cannot be read."""

    def __init__(self, split: Split, recipe: Recipe) -> None:
        self.split, self.recipe = split, recipe
        self.images = _Decoded(split)

    def __getitem__(self, place: Place) -> Scene | None:
        index, seed = place
        image, index = self.images[index]
        if index == UNREADABLE:
            return None
        pixels = v2.pil_to_tensor(image)  # (3, H, W)
        return self._train(pixels, index, seed) if self.split.training else self._eval(pixels, index)

    def _train(self, pixels: Tensor, index: int, seed: int) -> Scene:
        detect, random = self.recipe.detect, np.random.default_rng(seed)
        scene = (pixels, self.split.target(index))
        if random.random() < detect.flip:
            scene = scenes.mirrored(scene)
        if detect.jitter:
            low, high = detect.jitter
            fill = tuple(round(255 * mean) for mean in self.recipe.data.mean)  # 0 for the network
            return scenes.jittered(scene, (low, high), detect.jitter_size, fill, random)
        return scenes.resized(scene, *self._size(pixels))

    def _eval(self, pixels: Tensor, index: int) -> Scene:
        target = {"image_id": self.split.image_ids[index], "size": self.split.sizes[index]}
        return v2.resize(pixels, list(self._size(pixels)), antialias=True), target

    def _size(self, pixels: Tensor) -> tuple[int, int]:
        height, width = pixels.shape[-2:]
        detect = self.recipe.detect
        return scenes.resized_size(height, width, detect.short_side, detect.long_side)


class DetectionLoader:
    """Iterates over ``(images, targets)``, lists of as many: float32 (3, H, W) from 0 to 1, on the device.

    The tensors of a target are on the device too. In training a target is that of `Split`, as the image was
    changed; in evaluation it has `image_id`, and `size`, the height and width that the file has. The length
    is the number of batches of this rank in one epoch. Each iteration is of the next epoch, the first of
    epoch 1, unless `start` says otherwise. The global random generators stay as they are.
    """

    def __init__(self, batches: DataLoader[Any], dataset: _Scenes, device: str) -> None:
        self.dataset = dataset
        self._batches, self._device = batches, torch.device(device)
        self._next = (1, 0)

    def __len__(self) -> int:
        return len(self._batches)

    @property
    def processes(self) -> int:
        """How many processes make the batches; 0 where the caller's own does."""
        return self._batches.num_workers

    @property
    def skipped(self) -> int:
        """How many different images could not be read so far, of those that this rank was to read."""
        return self.dataset.images.skipped

    def check_skipped(self) -> None:
        """Raise `UnreadableImagesError` if more than 1 % of the images could not be read."""
        self.dataset.images.check_skipped()

    def start(self, epoch: int, step: int = 0) -> None:
        """The next iteration is of `epoch`, from 1, beginning with this rank's batch `step`, from 0."""
        self._next = (epoch, step)

    def __iter__(self) -> Iterator[Batch]:
        """Raise `UnreadableImagesError` as soon as more than 1 % of the images turn out unreadable."""
        epoch, step = self._next
        self._next = (epoch + 1, 0)
        if isinstance(self._batches.batch_sampler, EpochSampler):
            self._batches.batch_sampler.start(epoch, step)
        for batch in self._batches:
            self.check_skipped()
            if readable := [scene for scene in batch if scene is not None]:
                yield self._placed(readable)

    def _placed(self, batch: Sequence[Scene]) -> Batch:
        images = [self._moved(image).float() / 255 for image, _ in batch]
        return images, [{key: self._moved(value) for key, value in target.items()} for _, target in batch]

    def _moved(self, value: Any) -> Any:
        return value.to(self._device, non_blocking=True) if isinstance(value, Tensor) else value


def detection_train_loader(
    info: DetectionInfo,
    recipe: Recipe,
    *,
    device: str,
    seed: int,
    micro_batch: int,
    rank: int = 0,
    world: int = 1,
) -> DetectionLoader:
    """Shuffled, augmented batches of exactly `micro_batch` images; what is left over is dropped."""
    deal = Deal(seed=seed, micro_batch=micro_batch, rank=rank, world=world)
    return _loader(_Scenes(info.train, recipe), EpochSampler(info.num_train, deal), device)


def detection_eval_loader(
    info: DetectionInfo, recipe: Recipe, *, device: str, rank: int = 0, world: int = 1
) -> DetectionLoader:
    """The validation images `rank`, `rank + world`, ... in the data set's order, resized alone."""
    own: list[Place] = [(index, 0) for index in range(rank, info.num_val, world)]  # no seed: nothing is drawn
    size = recipe.eval.batch_size
    batches = [own[start : start + size] for start in range(0, len(own), size)]
    return _loader(_Scenes(info.val, recipe), batches, device)


def _loader(dataset: _Scenes, batches: Iterable[list[Place]], device: str) -> DetectionLoader:
    loader = DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=loader_processes(dataset.recipe.data.workers, device),
        collate_fn=list,
        pin_memory=device.startswith("cuda"),
        generator=torch.Generator(),  # else each iteration would draw from the global one
    )
    return DetectionLoader(loader, dataset, device)
