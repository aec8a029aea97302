"""Which images an epoch's micro-batches hold, and the seed that each image's augmentation has.

A *place* is a position in the epoch's permutation of the images. Global micro-batch `j` of `m` images holds
the places from ``j * m`` on and belongs to rank ``j % world``; what is left over at the end is dropped. The
image at a place and its seed follow from (seed, epoch, place) alone: neither loader processes nor ranks nor
the micro-batch at which training was resumed change them.

Repeated augmentation is that of Hoffer et al. 2020 (arXiv:1901.09335) as DeiT trains with it (Touvron et al.
2021, arXiv:2012.12877): an image stands several times in a row in the permutation, and the epoch ends after
as many places as there are images. There the repeats of an image go to different ranks; here they share a
micro-batch, and an optimizer step has the same images as there.
"""

import contextlib
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

TRANSFORMS, ERASING = range(2)  # who draws from a place's seed, each from one of its own

Place = tuple[int, int]  # an image's index and the seed of its transforms


@dataclass(frozen=True, slots=True, kw_only=True)
class Deal:
    """How the places of an epoch are dealt out to the micro-batches of ranks."""

    seed: int
    micro_batch: int  # m
    rank: int = 0
    world: int = 1

    def places(self, step: int) -> np.ndarray:
        """(m,): those of the rank's micro-batch number `step`, from 0."""
        return (step * self.world + self.rank) * self.micro_batch + np.arange(self.micro_batch)

    def seeds(self, epoch: int, step: int, purpose: int) -> np.ndarray:
        """(m,) uint64: their seeds, by SplitMix64 (Steele et al. 2014, doi:10.1145/2660193.2660195)."""
        key = np.random.SeedSequence([self.seed, epoch, purpose]).generate_state(1, np.uint64)  # (1,)
        z = key + self.places(step).astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


class EpochSampler(Sampler[list[Place]]):
    """The micro-batches of one rank, as lists of places."""

    def __init__(self, images: int, deal: Deal, repeats: int = 1) -> None:
        self.images, self.deal, self.repeats = images, deal, repeats
        self._epoch, self._step = 1, 0

    def __len__(self) -> int:
        """Of a whole epoch: the same number on every rank."""
        return self.images // self.deal.micro_batch // self.deal.world

    def start(self, epoch: int, step: int) -> None:
        """The next iteration is of `epoch`, from the rank's micro-batch number `step`, from 0, on."""
        self._epoch, self._step = epoch, step

    def __iter__(self) -> Iterator[list[Place]]:
        epoch, order = self._epoch, self.order(self._epoch)
        for step in range(self._step, len(self)):
            indices, seeds = order[self.deal.places(step)], self.deal.seeds(epoch, step, TRANSFORMS)
            yield list(zip(indices.tolist(), seeds.tolist(), strict=True))

    def order(self, epoch: int) -> np.ndarray:
        """(N,): the image at each place of an epoch."""
        order = np.random.default_rng([self.deal.seed, epoch]).permutation(self.images)
        return order if self.repeats == 1 else np.repeat(order, self.repeats)[: self.images]


class Seeded(Dataset[Any]):
    """Items of a data set by place: whatever an item draws at random follows from its place's seed."""

    def __init__(self, items: Dataset[Any]) -> None:
        self.items = items

    def __getitems__(self, places: Sequence[Place]) -> list[Any]:
        """A micro-batch; PyTorch's loader asks for nothing else."""
        found = []
        with own_randomness():
            for index, seed in places:
                set_seed(seed)
                found.append(self.items[index])
        return found


@contextlib.contextmanager
def own_randomness(device: str = "cpu") -> Iterator[None]:
    """Whatever is drawn or seeded inside leaves the global generators of the caller as they were."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 - timm draws from the global ones
    with torch.random.fork_rng([torch.device(device)] if device.startswith("cuda") else []):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002


def set_seed(seed: int, device: str = "cpu") -> None:
    """Seed Python's, NumPy's and torch's global generators, the last on `device` too, with 64 bits.

    NumPy and torch share an algorithm: of the same bits both would draw the same numbers. `torch.manual_seed`
    asks every kind of device and takes a hundred times as long.
    """
    random.seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)  # noqa: NPY002
    torch.default_generator.manual_seed(seed >> 32)
    if device.startswith("cuda"):
        index = torch.device(device).index
        index = torch.cuda.current_device() if index is None else index
        torch.cuda.default_generators[index].manual_seed(seed)
    elif device.startswith("mps"):
        torch.mps.manual_seed(seed >> 32)
