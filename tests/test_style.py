"""What all pictures share: their files, their size, captions that fit, and looks that differ."""

import itertools
from pathlib import Path
from typing import Any

import pytest
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import TextToPath

from stmbench import style
from stmbench.style import Box


@pytest.mark.parametrize(("suffix", "start"), [(".png", b"\x89PNG"), (".svg", b"<?xml"), (".PDF", b"%PDF")])
def test_the_kinds_of_picture(suffix: str, start: bytes, tmp_path: Path) -> None:
    path = tmp_path / f"picture{suffix}"
    with style.page(path, 1.0, "What it is.") as figure:
        figure.subplots()
    assert path.read_bytes().startswith(start)


def test_other_kinds_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"A picture is a \.png, \.svg, \.pdf file, not 'picture\.doc'"):
        style.check(tmp_path / "picture.doc")
    with pytest.raises(ValueError, match=r"There is no folder .*nowhere"):
        style.check(tmp_path / "nowhere" / "picture.png")


def test_a_page_is_a_column_wide_and_has_room_for_its_caption(tmp_path: Path) -> None:
    with style.page(tmp_path / "picture.png", 1.0, "A word " * 60) as figure:
        page: Any = figure.get_figure(root=True)
    assert page.dpi == 300
    width, height = page.get_size_inches()
    assert width == style.COLUMN
    (text,) = page.subfigs[1].texts
    assert text.get_fontsize() >= 7
    box = text.get_window_extent()
    assert box.y0 >= 0
    assert box.y1 <= (height - 1.0) * page.dpi  # the drawing's inch is above
    assert box.x1 <= width * page.dpi


def test_lines_fit_and_lose_no_word() -> None:
    text = "effective receptive fields of every level " * 5
    lines = style.wrap(text.strip(), 2.0)
    assert " ".join(lines) == text.strip()
    font = FontProperties(size=style.FONT)
    widths = [TextToPath().get_text_width_height_descent(line, font, ismath=False)[0] for line in lines]
    assert all(1.0 < width / 72 <= 2.0 for width in widths[:-1])
    assert style.wrap("incomprehensibilities", 0.1) == ["incomprehensibilities"]


def test_no_two_networks_look_alike_even_without_colour() -> None:
    looks = style.looks(20)
    assert len({(look.marker, look.dashes) for look in looks}) == 20
    assert len({look.color for look in looks[:7]}) == 7


def test_a_label_covers_what_is_shared_rather_than_be_far() -> None:
    frame, spot, size = Box(0, 0, 400, 400), [(200.0, 200.0)], [(40.0, 10.0)]
    around = Box(150, 150, 250, 250)
    ((x, y, far),) = style._places(spot, size, [around], [], frame, 1.0)
    assert far > 10
    assert not style.around(200 + x, 200 + y, 20, 5).meets(around)
    ((*_, near),) = style._places(spot, size, [], [around], frame, 1.0)
    assert near <= 10


def test_labels_in_a_frame_keep_clear_of_each_other() -> None:
    spots = [(100.0 + i, 100.0 + 2 * i) for i in range(6)]
    frame = Box(0, 0, 400, 400)
    places = style._places(spots, [(30.0, 10.0)] * 6, [], [], frame, 1.0)
    boxes = [style.around(x + dx, y + dy, 15, 5) for (x, y), (dx, dy, _) in zip(spots, places, strict=True)]
    assert all(frame.holds(box) for box in boxes)
    assert not any(one.meets(other) for one, other in itertools.combinations(boxes, 2))
