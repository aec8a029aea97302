"""The tests of top-1: known p-values, known intervals, and, by simulation, how often they err."""

import math
from fractions import Fraction
from statistics import NormalDist

import numpy as np
import pytest

from stmbench.reading.holm import ALPHA, holm
from stmbench.reading.significance import Hits, Pair, Seeded, hierarchical, mcnemar, paired, verdict

IMAGES = 2000


# One network each


@pytest.mark.parametrize(
    ("b", "c", "p"),
    [
        (5, 15, 0.04139),
        (15, 5, 0.04139),
        (0, 5, 0.0625),
        (0, 6, 0.03125),
        (0, 0, 1.0),
        (7, 7, 1.0),
        (7, 8, 1.0),
    ],
)
def test_mcnemars_test_is_the_sign_test_of_the_discordant_images(b: int, c: int, p: float) -> None:
    assert mcnemar(b, c) == pytest.approx(p, abs=1e-5)


@pytest.mark.parametrize(("b", "c"), [(3, 11), (40, 77), (180, 231)])
def test_mcnemars_p_is_the_sum_of_binomial_probabilities(b: int, c: int) -> None:
    ways = sum(math.comb(b + c, k) for k in range(min(b, c) + 1))
    assert mcnemar(b, c) == pytest.approx(float(Fraction(2 * ways, 2 ** (b + c))), rel=1e-10)


def test_thousands_of_discordant_images_are_no_problem() -> None:
    z = (6300 - 6000 - 1) / math.sqrt(12_300)
    assert mcnemar(6000, 6300) == pytest.approx(2 * NormalDist().cdf(-z), rel=0.01)


def test_two_networks_are_compared_image_by_image() -> None:
    old, new = np.array([[1, 1, 0, 0, 1], [1, 0, 1, 1, 1]], bool)
    found = paired(Hits.of([old]), Hits.of([new]))
    assert found == Pair(only_reference=1, only_contender=2, images=5)
    assert found.value == pytest.approx(20)


def test_the_bootstraps_interval_is_the_normal_one_for_many_images() -> None:
    b, c, n = 900, 1100, 10_000
    low, high = Pair(b, c, n).interval()
    share = (c - b) / n
    half = 1.959964 * math.sqrt(((b + c) / n - share**2) / n)
    assert (low, high) == pytest.approx((100 * (share - half), 100 * (share + half)), abs=0.02)
    wide = Pair(b, c, n).interval(0.01)
    assert wide[1] - wide[0] == pytest.approx((high - low) * 2.575829 / 1.959964, rel=0.01)


@pytest.mark.parametrize("level", [0.05, 0.01])
def test_an_interval_excludes_zero_exactly_where_the_test_does(level: float) -> None:
    for b in (1, 6):
        for c in range(25):
            test = Pair(b, c, 500)
            decided = verdict(test.interval(level)) != "inconclusive"
            assert decided == (test.p <= level), (b, c)


def test_verdicts() -> None:
    assert verdict(Pair(5, 25, 500).interval()) == "better"
    assert verdict(Pair(25, 5, 500).interval()) == "worse"
    assert verdict(Pair(15, 15, 500).interval()) == "inconclusive"
    assert Pair(0, 0, 500).interval() == (0, 0)
    assert verdict((0, 0)) == "inconclusive"


# Several seeds


@pytest.mark.parametrize(
    ("t", "freedom", "p"),
    [(12.7062, 1, 0.05), (4.30265, 2, 0.05), (2.77645, 4, 0.05), (5.59755, 4, 0.005), (1.64487, 1e9, 0.1)],
)
def test_students_distribution_is_that_of_the_tables(t: float, freedom: float, p: float) -> None:
    found = Seeded(value=2 * t, error=2.0, freedom=freedom)
    assert found.p == pytest.approx(p, rel=1e-4)
    assert found.interval(p) == pytest.approx((0, 4 * t), abs=1e-3)


def test_seeds_without_images_of_their_own_are_students_test() -> None:
    """Where all of a seed's images go together, what is left is the t-test of the seeds' accuracies."""
    rng = np.random.default_rng(0)
    rows = [
        [rng.permutation(np.arange(IMAGES) < count) for count in side]
        for side in ((1750, 1800), (1850, 1890))
    ]
    found = paired(*map(Hits.of, rows))
    assert isinstance(found, Seeded)
    assert found.value == pytest.approx(100 * (1870 - 1775) / IMAGES)
    error = 100 / IMAGES * math.sqrt((25**2 + 25**2 + 20**2 + 20**2) / 2 * (1 / 2 + 1 / 2))
    assert found.error == pytest.approx(error, rel=0.05)
    assert found.freedom == pytest.approx(2, rel=0.1)


def test_seeds_that_answer_alike_leave_the_images() -> None:
    """Copies of two networks say as much as the two: the interval of their paired difference."""
    rng = np.random.default_rng(0)
    old, new = rng.random((2, IMAGES)) < 0.9
    found = paired(Hits.of([old] * 3), Hits.of([new] * 3))
    assert isinstance(found, Seeded)
    assert found.freedom > 1e6
    assert found.error == pytest.approx(100 * float((new * 1.0 - old).std()) / math.sqrt(IMAGES), rel=1e-3)
    same = paired(Hits.of([old] * 3), Hits.of([old] * 2))
    assert (same.value, same.p, same.interval()) == (0, 1, (0, 0))


def test_the_other_way_round_is_the_negative() -> None:
    reference, contender = (Hits.of(side) for side in simulated(np.random.default_rng(0), (2, 3), (1.4, 1.6)))
    there, back = paired(reference, contender), paired(contender, reference)
    assert (there.value, there.p) == pytest.approx((-back.value, back.p))
    assert there.interval() == pytest.approx(tuple(-end for end in reversed(back.interval())))


def test_the_error_is_the_hierarchical_bootstraps_less_what_it_gets_wrong() -> None:
    """Seeds drawn, their deviations scaled to their true size, then images: the formula, and some more."""
    rng = np.random.default_rng(1)
    reference, contender = simulated(rng, (4, 4), (1.4, 1.4), seed=0.06)
    drawn = bootstrap(rng, reference, contender, inflate=math.sqrt(4 / 3), draws=20_000).var()
    sides = [Hits.of(side) for side in (reference, contender)]
    peculiar = 100**2 * sum(side.peculiar for side in sides) * (1 / 4 + 1 / 4) / (6 * (IMAGES - 1) * IMAGES)
    found = paired(*sides)
    assert isinstance(found, Seeded)
    assert found.error**2 == pytest.approx(drawn - 2 * peculiar, rel=0.05)
    assert peculiar > 0.05 * drawn


def test_the_hierarchical_bootstrap_is_the_one_drawn_image_by_image() -> None:
    rng = np.random.default_rng(2)
    reference, contender = simulated(rng, (3, 2), (1.4, 1.5), seed=0.05)
    drawn = bootstrap(rng, reference, contender, inflate=1.0, draws=8_000)
    found = hierarchical(reference, contender)
    assert found == pytest.approx(np.quantile(drawn, [0.025, 0.975]).tolist(), abs=0.15)
    narrow = hierarchical(reference, contender, 0.5)
    assert found[0] < narrow[0] < narrow[1] < found[1]


# How often they err


def simulated(
    rng: np.random.Generator,
    seeds: tuple[int, int],
    levels: tuple[float, float],
    *,
    images: int = IMAGES,
    seed: float = 0.01,
    image: float = 0.25,
    noise: float = 0.5,
) -> tuple[np.ndarray, np.ndarray]:
    """What the seeds of two networks get right, each (S, N) bool.

    A network is right where its level, the image's ease (1), the network's own liking for the image, the
    seed's luck and some noise are together above 0; each of them is normal, with the deviation given.
    """
    ease = rng.normal(0, 1, images)
    reference, contender = (
        level
        + ease
        + rng.normal(0, image, images)
        + rng.normal(0, seed, (n, 1))
        + rng.normal(0, noise, (n, images))
        > 0
        for n, level in zip(seeds, levels, strict=True)
    )
    return reference, contender


def true_difference(
    levels: tuple[float, float], *, seed: float = 0.01, image: float = 0.25, noise: float = 0.5
) -> float:
    """In points, over all images and seeds there could be."""
    deviation = math.sqrt(1 + seed**2 + image**2 + noise**2)
    old, new = (100 * NormalDist().cdf(level / deviation) for level in levels)
    return new - old


def bootstrap(
    rng: np.random.Generator,
    reference: np.ndarray,
    contender: np.ndarray,
    *,
    inflate: float = 1,
    draws: int = 500,
) -> np.ndarray:
    """Differences in points (draws,) of a plain hierarchical bootstrap: of seeds, then of images for all."""
    hits = np.concatenate([reference, contender])  # (S, N)
    codes, counts = np.unique(hits.T @ (1 << np.arange(len(hits))), return_counts=True)
    patterns = (codes[:, None] >> np.arange(len(hits))) & 1  # (P, S)
    images = hits.shape[1]
    accuracies = rng.multinomial(images, counts / images, draws) @ patterns / images  # (draws, S)
    sides = []
    for side in (reference, contender):
        n = len(side)
        sides.append(1 / n + inflate * (rng.multinomial(n, [1 / n] * n, draws) - 1) / n)  # (draws, n)
    weights = np.concatenate([-sides[0], sides[1]], axis=1)  # (draws, S)
    return 100 * (weights * accuracies).sum(axis=1)


def test_of_equal_networks_mcnemars_test_tells_apart_one_in_twenty_at_most() -> None:
    rng = np.random.default_rng(0)
    found = rng.multinomial(IMAGES, [0.05, 0.05, 0.9], 4000)
    wrong = np.mean([mcnemar(b, c) <= ALPHA for b, c, _ in found.tolist()])
    assert 0.035 < wrong <= 0.055


def test_a_true_difference_is_found_as_often_as_the_arithmetic_says() -> None:
    """4 % against 6 % discordant: a mean of 2 standard errors and a bit."""
    rng = np.random.default_rng(0)
    found = rng.multinomial(IMAGES, [0.04, 0.06, 0.9], 4000)
    right = np.mean([verdict_of(b, c) == "better" for b, c, _ in found.tolist()])
    z = 0.02 * math.sqrt(IMAGES) / math.sqrt(0.1 - 0.02**2)
    assert right == pytest.approx(NormalDist().cdf(z - 1.96), abs=0.04)


def verdict_of(b: int, c: int) -> str:
    return "inconclusive" if mcnemar(b, c) > ALPHA else "better" if c > b else "worse"


@pytest.mark.parametrize("seeds", [(2, 2), (3, 3), (1, 3)])
def test_of_equal_networks_with_seeds_one_in_twenty_is_told_apart(seeds: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    tries = [paired(*map(Hits.of, simulated(rng, seeds, (1.4, 1.4), images=500))).p for _ in range(800)]
    assert 0.01 < np.mean(np.array(tries) <= ALPHA) < 0.07


def test_a_large_difference_is_found_with_three_seeds() -> None:
    rng = np.random.default_rng(0)
    tries = [paired(*map(Hits.of, simulated(rng, (3, 3), (1.4, 1.6)))).interval() for _ in range(100)]
    assert np.mean([verdict(interval) == "better" for interval in tries]) > 0.95


@pytest.mark.slow
@pytest.mark.parametrize("regime", ["usual", "alike", "images", "seeds"])
@pytest.mark.parametrize("seeds", [(1, 3), (2, 2), (3, 3), (5, 5), (2, 5)])
def test_intervals_cover_the_truth_as_docs_say(seeds: tuple[int, int], regime: str) -> None:
    """`docs/analysis.md` has these numbers; ``pytest -s`` prints them, the plain bootstrap's beside them."""
    spread = {
        "usual": {},
        "alike": {"seed": 0.0, "image": 0.0, "noise": 0.6},  # what differs between seeds is noise on images
        "images": {"seed": 0.005, "image": 0.5, "noise": 0.4},  # networks that like other images
        "seeds": {"seed": 0.08, "image": 0.0},  # lucky seeds, five times the usual
    }[regime]
    rng = np.random.default_rng(0)
    covered, plain, equals, truth = [], [], [], true_difference((1.4, 1.5), **spread)
    for i in range(1500):
        reference, contender = simulated(rng, seeds, (1.4, 1.5), **spread)
        low, high = paired(Hits.of(reference), Hits.of(contender)).interval()
        covered.append(low <= truth <= high)
        equals.append(paired(*map(Hits.of, simulated(rng, seeds, (1.4, 1.4), **spread))).p <= ALPHA)
        if i < 500:
            low, high = np.quantile(bootstrap(rng, reference, contender), [0.025, 0.975])
            plain.append(low <= truth <= high)
    ours, raw, wrong = (100 * float(np.mean(found)) for found in (covered, plain, equals))
    print(
        f"{regime} {seeds}: covers {ours:.1f} %, plain bootstrap {raw:.1f} %, equals told apart {wrong:.1f} %"
    )
    assert 92 <= ours <= 99.5
    assert wrong <= 7


# Several contenders


def test_holms_correction_by_hand() -> None:
    """0.005 x 4, 0.01 x 3; 0.03 x 2 is above 5 %, and 0.04, which alone would pass, fails with it."""
    found = holm([0.01, 0.04, 0.03, 0.005])
    assert [one.p for one in found] == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert [one.level for one in found] == pytest.approx([0.05 / 3, 0.05 / 2, 0.05 / 2, 0.05 / 4])
    assert holm([]) == []
    assert holm([0.04])[0] == (0.04, 0.05)
    assert [one.p for one in holm([0.9, 0.8])] == [1.0, 1.0]


def test_a_p_passes_its_own_level_exactly_where_its_corrected_one_passes() -> None:
    for ps in np.random.default_rng(0).beta(0.3, 3, (300, 5)).tolist():
        assert [p <= one.level for p, one in zip(ps, holm(ps), strict=True)] == [
            one.p <= ALPHA for one in holm(ps)
        ]
