"""An epoch has each image once, or as often as it is repeated; each place has a seed of its own."""

import random

import numpy as np
import pytest
import torch

from stmbench.data.sampling import ERASING, TRANSFORMS, Deal, EpochSampler, own_randomness, set_seed


def sampler(images: int, *, repeats: int = 1, **deal: int) -> EpochSampler:
    return EpochSampler(images, Deal(**{"seed": 0, "micro_batch": 4, **deal}), repeats)


def test_an_epoch_has_every_image_once() -> None:
    batches = sampler(20)
    orders = []
    for epoch in (1, 2):
        batches.start(epoch, 0)
        orders.append([index for batch in batches for index, _ in batch])
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(20))
    assert orders[0] != orders[1] != list(range(20))
    assert orders[0] != sampler(20, seed=1).order(1).tolist()


def test_what_is_left_over_is_dropped() -> None:
    batches = [batch for rank in range(3) for batch in sampler(23, rank=rank, world=3)]
    assert [len(batch) for batch in batches] == [4] * 3
    assert len({index for batch in batches for index, _ in batch}) == 12
    assert len(sampler(3)) == len([*sampler(3)]) == 0


@pytest.mark.parametrize("repeats", [2, 3])
def test_a_repeated_epoch_keeps_its_number_of_images(repeats: int) -> None:
    order = sampler(100, repeats=repeats).order(1)
    _, counts = np.unique(order, return_counts=True)
    assert len(order) == 100
    assert counts.tolist().count(repeats) == 100 // repeats
    assert counts.sum() == 100
    seeds = [seed for batch in sampler(100, repeats=repeats) for _, seed in batch]
    assert len(set(seeds)) == 100


def test_every_place_has_a_seed_of_its_own() -> None:
    def seeds(seed: int, epoch: int, purpose: int) -> list[int]:
        deal = Deal(seed=seed, micro_batch=1000)
        return [each for step in range(5) for each in deal.seeds(epoch, step, purpose).tolist()]

    found = [seeds(0, 1, TRANSFORMS), seeds(1, 0, TRANSFORMS), seeds(0, 2, TRANSFORMS), seeds(0, 1, ERASING)]
    assert len({each for part in found for each in part}) == 20_000
    bits = np.unpackbits(np.array(found, np.uint64).view(np.uint8)).reshape(-1, 64)
    assert np.abs(bits.mean(0) - 0.5).max() < 0.02  # none of them stands still


def test_seeds_follow_from_the_place_alone() -> None:
    together = Deal(seed=3, micro_batch=12).seeds(2, 1, TRANSFORMS)
    for rank in (0, 1):
        deal = Deal(seed=3, micro_batch=3, rank=rank, world=2)
        parts = [deal.seeds(2, step, TRANSFORMS) for step in (2, 3)]
        expected = [together[3 * rank : 3 * rank + 3], together[6 + 3 * rank : 9 + 3 * rank]]
        assert np.array_equal(parts, expected)


def test_one_seed_sets_all_generators_each_to_its_own_numbers() -> None:
    def draw() -> list[float]:
        return [random.random(), np.random.random(), float(torch.rand((), dtype=torch.float64))]  # noqa: NPY002

    with own_randomness():
        set_seed(2**63 + 5)
        first, second = draw(), draw()
        set_seed(2**63 + 5)
        assert draw() == first != second
        set_seed(2**63 + 5)  # NumPy and torch share an algorithm
        assert np.random.randint(2**20, dtype=np.uint32) != int(torch.randint(2**20, ()))  # noqa: NPY002
        for other in (2**63 + 6, 2**63 + 5 + 2**32):
            set_seed(other)
            assert draw() != first
