"""Curves and areas of answers that are known, and intervals that cover."""

import math
from pathlib import Path

import numpy as np
import pytest

from stmbench.data import Variant
from stmbench.measure.sweep import PLAIN, Answers, Number, axis, interval, numbers, resampled


def answers_of(top1: dict[Variant, list[int]], labels: list[int]) -> Answers:
    said = np.array(list(top1.values()))
    return Answers(
        variants=list(top1),
        labels=np.array(labels),
        indices=np.arange(len(labels)),
        top1=said,
        in_top5=np.ones_like(said, dtype=bool),
        cross_entropy=np.arange(said.size, dtype=np.float32).reshape(said.shape),
    )


def table(answers: Answers, references: dict[str, float]) -> dict[tuple[str, str, float | None], Number]:
    found = list(numbers(answers, references))
    keys = [(number.name, number.transform, number.strength) for number in found]
    assert len(set(keys)) == len(keys)
    return dict(zip(keys, found, strict=True))


MOVED = {
    PLAIN: [0, 1, 2, 0],  # three of four are right
    Variant("translation", 4, "E"): [0, 1, 2, 0],
    Variant("translation", 4, "W"): [0, 1, 0, 0],
    Variant("translation", 8, "E"): [0, 0, 0, 0],
    Variant("translation", 8, "W"): [0, 0, 0, 3],
}
LABELS = [0, 1, 2, 3]


def test_directions_are_averaged_and_the_worst_is_told() -> None:
    found = table(answers_of(MOVED, LABELS), {"translation": 0.0})
    values = {key: number.estimate.value for key, number in found.items()}
    assert values["top1", "none", 0.0] == values["top1", "translation", 0.0] == 75
    assert values["top1", "translation", 4] == pytest.approx(62.5)
    assert values["top1.worst", "translation", 4] == 50
    assert values["consistency", "translation", 4] == pytest.approx(87.5)
    assert values["consistency", "translation", 8] == pytest.approx(100 * (2 + 1) / 8)
    assert values["consistency", "translation", 0.0] == 100
    assert values["cross_entropy", "translation", 4] == pytest.approx(np.arange(4, 12).mean())
    assert values["top5", "translation", 8] == 100


def test_areas_are_relative_to_a_curve_that_stays() -> None:
    found = table(answers_of(MOVED, LABELS), {"translation": 0.0})
    at4, at8 = 62.5 / 75, 37.5 / 75
    top1 = found["auc.top1", "translation", None].estimate
    assert top1.value == pytest.approx((4 * (1 + at4) / 2 + 4 * (at4 + at8) / 2) / 8)
    assert top1.low is not None
    assert top1.high is not None
    assert top1.low <= top1.value <= top1.high
    consistency = found["auc.consistency", "translation", None].estimate.value
    assert consistency == pytest.approx((4 * (1 + 0.875) / 2 + 4 * (0.875 + 0.375) / 2) / 8)


def test_what_never_changes_its_mind_is_invariant() -> None:
    variants = [PLAIN, *(Variant("blur", s) for s in (0.5, 3.0)), Variant("jpeg", 20), Variant("flip", 1)]
    constant = answers_of({variant: [1] * 6 for variant in variants}, [1, 1, 0, 1, 2, 1])
    found = table(constant, {"blur": 0.0, "flip": 0.0, "noise": 0.0})
    for (name, transform, _), number in found.items():
        if name.startswith("auc"):
            assert number.estimate == pytest.approx((1, 1, 1))
        if name == "consistency":
            assert number.estimate == (100, 100, 100)
        assert transform != "noise"  # a reference of what was not asked for
    assert ("auc.top1", "jpeg", None) in found  # the plain crop is the other end of its curve


def test_an_area_relative_to_nothing_is_a_failure_with_a_reason() -> None:
    wrong = answers_of({PLAIN: [1, 1], Variant("flip", 1): [0, 1]}, [0, 0])
    found = table(wrong, {"flip": 0.0})
    number = found["auc.top1", "flip", None]
    assert math.isnan(number.estimate.value)
    assert "no plain image is right" in number.reason
    assert found["auc.consistency", "flip", None].estimate.value == pytest.approx(0.75)


def test_axes_run_away_from_the_plain_image() -> None:
    assert [axis("jpeg", 90), axis("contrast", 0.25), axis("scale", 0.3), axis("blur", 2)] == [
        10,
        0.75,
        0.3,
        2,
    ]


def test_intervals_cover_a_true_share() -> None:
    """Of 200 experiments of 150 images, about 95 % must cover; 4.5 standard deviations are allowed."""
    rng = np.random.default_rng(1)
    hits = rng.random((150, 200)) < 0.7
    draws = resampled(hits.astype(float))
    covered = [
        (low or 0) <= 0.7 <= (high or 0)
        for _, low, high in (interval(float(hits[:, i].mean()), draws[:, i]) for i in range(200))
    ]
    assert 0.88 <= np.mean(covered) <= 1.0
    assert np.std(draws[:, 0]) == pytest.approx(math.sqrt(0.21 / 150), rel=0.15)


def test_all_columns_are_drawn_together() -> None:
    column = np.random.default_rng(2).random(40)
    draws = resampled(np.stack([column, 1 - column], axis=1))
    assert draws.sum(axis=1) == pytest.approx(1)


def test_every_answer_is_kept_in_small_types(tmp_path: Path) -> None:
    answers_of(MOVED, LABELS).save(tmp_path / "kept.npz", 10)
    kept = np.load(tmp_path / "kept.npz")
    assert kept["top1"].tolist() == list(MOVED.values())
    assert kept["top1"].dtype == np.int8
    assert kept["cross_entropy"].dtype == np.float16
    assert kept["direction"].tolist() == ["", "E", "W", "E", "W"]
    assert kept["strength"].tolist() == [0, 4, 4, 8, 8]
    assert kept["transform"].tolist() == ["none"] + ["translation"] * 4
