"""A part of the validation images: which they are, and that they are the data set's own."""

from dataclasses import replace

import pytest
from samples import CLASSES, write_image

from stmbench import data
from stmbench.data import Images, Part


@pytest.mark.parametrize(
    ("count", "chosen"),
    [(0, (0, 1, 2, 3, 4, 5)), (6, (0, 1, 2, 3, 4, 5)), (9, (0, 1, 2, 3, 4, 5)), (4, (0, 1, 3, 4)), (1, (0,))],
)
def test_the_chosen_images_are_spread_over_the_data_set(tmp_path, count: int, chosen: tuple) -> None:
    for split in ("train", "val"):
        for index in range(6):
            write_image(tmp_path / split / CLASSES[index // 2] / f"{index}.png", 10 * index)
    whole = data.find(str(tmp_path))
    part, indices = data.spread(whole, count)
    assert indices == chosen
    assert isinstance(part.val, Part)
    assert (part.num_val, part.fingerprint, part.num_train) == (len(chosen), whole.fingerprint, 6)
    images = Images(part.val, channels=3, training=False)
    assert [images[i][0].getpixel((0, 0))[0] for i in range(len(images))] == [10 * i for i in chosen]
    assert [images[i][1] for i in range(len(images))] == [i // 2 for i in chosen]
    assert part.val.filename(0).endswith("0.png")


def test_a_stream_has_no_part() -> None:
    class Endless:
        def __len__(self) -> int:
            return 3

    info = replace(data.find("fashion-mini"), val=Endless())
    with pytest.raises(ValueError, match=r"fashion-mini is a stream.* name the other stages with --stage"):
        data.spread(info, 2)
