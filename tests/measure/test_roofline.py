"""The roofline picture: what it is drawn from, what it says, and that labels keep clear of each other."""

import itertools
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.text import Text

from stmbench.measure import roofline
from stmbench.measure.roofline import Ceilings, Point
from stmbench.record import Measurement, condition
from stmbench.style import Box

CEILINGS = Ceilings(9e9, {"fp32": 60e9})


def at(batch: int = 64, precision: str = "fp32", **more: object) -> str:
    return condition(batch=batch, execution="eager", precision=precision, size=28, **more)


def profile(intensity: float = 10.0, share: float = 25.0, where: str = "") -> list[Measurement]:
    where = where or at()
    return [
        Measurement("profile", "ceiling.copy", 9e9, "bytes/s", "threads=2"),
        Measurement("profile", "ceiling.matmul", 60e9, "MACs/s", "precision=fp32,threads=2"),
        Measurement("profile", "intensity", intensity, "MACs/byte", where),
        Measurement("profile", "matmul_share", share, "%", where),
    ]


def test_a_point_is_its_share_of_the_ceiling() -> None:
    points, ceilings = roofline.read("halo micro", profile(intensity=10, share=25))
    assert points == [Point("halo micro", at(), 10, 15e9)]
    assert ceilings == CEILINGS


def test_what_was_not_measured_is_no_point() -> None:
    failed = Measurement("profile", "matmul_share", float("nan"), "%", at(512), reason="Out of memory")
    intensity = Measurement("profile", "intensity", 12.0, "MACs/byte", at(512))
    points, _ = roofline.read("halo micro", [*profile(), intensity, failed])
    assert [point.condition for point in points] == [at()]
    assert roofline.read("halo micro", []) == ([], None)


def test_the_best_batch_of_each_way_is_chosen() -> None:
    points = [
        Point(network, at(batch, precision), 10, rate)
        for network, batch, precision, rate in (
            ("halo", 1, "fp32", 1e9),
            ("halo", 64, "fp32", 3e9),
            ("halo", 256, "fp32", 2e9),
            ("halo", 1, "bf16", 5e9),
            ("swin", 1, "fp32", 4e9),
        )
    ]
    assert sorted(point.rate for point in roofline.best(points)) == [3e9, 4e9, 5e9]


@pytest.mark.parametrize(("suffix", "start"), [(".png", b"\x89PNG"), (".svg", b"<?xml"), (".pdf", b"%PDF")])
def test_the_kinds_of_picture(suffix: str, start: bytes, tmp_path: Path) -> None:
    path = tmp_path / f"roofline{suffix}"
    roofline.draw([Point("halo micro", at(), 10, 15e9)], CEILINGS, path, "Some CPU")
    assert path.read_bytes().startswith(start)


def test_another_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"A picture is a \.png, \.svg, \.pdf file, not 'roofline\.doc'"):
        roofline.draw([Point("halo", at(), 10, 1e9)], CEILINGS, tmp_path / "roofline.doc", "Some CPU")
    with pytest.raises(ValueError, match=r"There is no folder .*nowhere"):
        roofline.check(tmp_path / "nowhere" / "roofline.png")


def written(
    points: list[Point], ceilings: Ceilings, monkeypatch: pytest.MonkeyPatch, path: Path
) -> list[Text]:
    """The texts in the frame of the picture, as drawn: labels of points, and the slope's name."""
    kept: list[Axes] = []
    draw = roofline._points

    def keep(axes: Axes, *rest: object) -> None:
        draw(axes, *rest)  # pyright: ignore[reportArgumentType]
        kept.append(axes)

    monkeypatch.setattr(roofline, "_points", keep)
    roofline.draw(points, ceilings, path, "Some CPU")
    return list(kept[0].texts)


def crowd(seed: int, count: int = 7) -> list[Point]:
    rng = np.random.default_rng(seed)
    x, y = 10 * np.exp(rng.normal(0, 0.2, count)), 12e9 * np.exp(rng.normal(0, 0.3, count))
    return [Point(f"mixer{i} micro", at(), *spot) for i, spot in enumerate(zip(x, y, strict=True))]


@pytest.mark.parametrize("seed", range(4))
def test_labels_keep_clear_of_each_other(seed: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    texts = written(crowd(seed), CEILINGS, monkeypatch, tmp_path / "roofline.png")
    assert len(texts) == 8
    for one, other in itertools.combinations(texts, 2):
        # Of the text alone: an annotation's own extent contains the line that ties it to its mark
        a, b = (Box(*Text.get_window_extent(text).extents) for text in (one, other))
        assert not a.meets(b), (one.get_text(), other.get_text())


def test_what_all_share_is_said_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    points = [
        Point("halo micro", at(8, format="contiguous"), 9, 9e9),
        Point("halo micro", at(64, format="channels_last"), 12, 15e9),
    ]
    texts = written(points, CEILINGS, monkeypatch, tmp_path / "roofline.png")
    labels = {text.get_text() for text in texts}
    assert {"halo micro, batch 8, contiguous", "halo micro, batch 64, channels_last"} < labels
    assert "copy: 9 GB/s" in labels
    axes: Any = texts[0].axes
    assert axes.get_title() == "execution eager, precision fp32, size 28"


def test_reading_and_drawing_need_no_torch() -> None:
    code = (
        "import sys; import stmbench.measure.roofline, matplotlib.figure; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
