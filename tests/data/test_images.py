"""Images are decoded to RGB or grey on white, and the ones that cannot be are counted once, not fatal."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from samples import images_of, truncate, write_image

from stmbench import data
from stmbench.data import UnreadableImagesError
from stmbench.data.images import UNREADABLE, as_mode
from stmbench.recipe import Recipe


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """Two classes of 100 + 100 training and 10 + 10 validation JPEGs."""
    root = tmp_path / "many"
    for label, name in enumerate(("ant", "bee")):
        for split, count in (("train", 100), ("val", 10)):
            for i in range(count):
                write_image(root / split / name / f"{i:03d}.jpg", label)
    return root


def test_transparency_shows_white() -> None:
    clear = Image.new("RGBA", (2, 1), (255, 0, 0, 0))
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30])
    palette.info["transparency"] = 0
    for image in (clear, palette, clear.convert("LA")):
        assert as_mode(image, "RGB").getpixel((0, 0)) == (255, 255, 255)
        assert as_mode(image, "L").getpixel((0, 0)) == 255


def test_opaque_images_keep_their_colours() -> None:
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30])
    assert as_mode(palette, "RGB").getpixel((0, 0)) == (10, 20, 30)
    assert as_mode(Image.new("L", (2, 1), 7), "RGB").getpixel((1, 0)) == (7, 7, 7)
    assert as_mode(Image.new("CMYK", (2, 1)), "RGB").getpixel((0, 0)) == (255, 255, 255)
    assert as_mode(Image.new("1", (2, 1), 1), "L").getpixel((0, 0)) == 255
    half = Image.new("RGBA", (2, 1), (0, 0, 0, 128))
    assert as_mode(half, "L").getpixel((0, 0)) == 127


def test_of_16_bits_the_upper_8_count(tmp_path: Path) -> None:
    ramp = np.arange(256, dtype=np.uint16).reshape(16, 16) * 257
    Image.fromarray(ramp).save(tmp_path / "ramp.png")
    with Image.open(tmp_path / "ramp.png") as image:
        assert np.array_equal(np.asarray(as_mode(image, "L")).ravel(), np.arange(256))
    with pytest.raises(ValueError, match="no known black and white"):
        as_mode(Image.new("F", (2, 2)), "L")


def test_channels_choose_the_mode(folder: Path) -> None:
    modes = [images_of(folder, channels=channels)[0][0].mode for channels in (1, 3)]
    assert modes == ["L", "RGB"]


def test_training_takes_the_next_readable_image(folder: Path) -> None:
    for name in ("0.png", "1.png"):
        truncate(folder / "train" / "bee" / name)
    images = images_of(folder)
    assert images[4][0].tobytes() == images[6][0].tobytes()
    assert images[4][1] == 1
    assert (images.skipped, images.skipped_names()) == (2, ["bee/0.png", "bee/1.png"])


def test_the_image_after_the_last_is_the_first(folder: Path) -> None:
    truncate(folder / "train" / "cow" / "3.png")
    images = images_of(folder)
    assert images[11][1] == 0


@pytest.mark.parametrize("content", [b"", b"no image at all", b"\x89PNG\r\n\x1a\n" + bytes(40)])
def test_evaluation_marks_a_blank_image(folder: Path, content: bytes) -> None:
    (folder / "val" / "bee" / "0.png").write_bytes(content)
    images = images_of(folder, "val", channels=1, training=False)
    image, label = images[2]
    assert (label, image.mode, images.skipped) == (UNREADABLE, "L", 1)
    assert [images[i][1] for i in range(6)] == [0, 0, UNREADABLE, 1, 2, 2]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_truncated_image_is_counted_once_over_epochs_and_processes(
    many: Path, small: Callable[..., Recipe], workers: int
) -> None:
    truncate(many / "train" / "bee" / "050.jpg")
    recipe = small(f"data.workers={workers}")
    loader = data.train_loader(data.find(str(many)), recipe, device="cpu", seed=0, micro_batch=20)
    for _ in range(2):
        batches = list(loader)
        assert [len(labels) for _, labels in batches] == [20] * 10
        assert min(int(labels.min()) for _, labels in batches) == 0
    assert loader.dataset.skipped == 1
    assert loader.dataset.skipped_names() == ["bee/050.jpg"]
    loader.dataset.check_skipped()


@pytest.mark.parametrize("workers", [0, 2])
def test_more_than_one_per_cent_is_too_much(many: Path, small: Callable[..., Recipe], workers: int) -> None:
    for i in (7, 8, 9):
        truncate(many / "train" / "bee" / f"{i:03d}.jpg")
    recipe = small(f"data.workers={workers}")
    loader = data.train_loader(data.find(str(many)), recipe, device="cpu", seed=0, micro_batch=20)
    with pytest.raises(
        UnreadableImagesError, match=r"(?i)^[23] of 200 .* first is bee/00[78]\.jpg: .*trunca.*\.$"
    ):
        for _ in loader:
            pass
    with pytest.raises(UnreadableImagesError):
        loader.dataset.check_skipped()


@pytest.mark.parametrize("workers", [0, 2])
def test_no_readable_image_at_all_is_one_line(
    folder: Path, small: Callable[..., Recipe], workers: int
) -> None:
    for path in (folder / "train").rglob("*.png"):
        path.write_bytes(b"gone")
    loader = data.train_loader(
        data.find(str(folder)), small(f"data.workers={workers}"), device="cpu", seed=0, micro_batch=4
    )
    with pytest.raises(UnreadableImagesError, match=r"^\d+ of 12 images cannot be read, .*\.$") as caught:
        list(loader)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_leaves_a_hole_where_an_image_was(
    many: Path, small: Callable[..., Recipe], workers: int
) -> None:
    truncate(many / "train" / "ant" / "000.jpg")
    (many / "train").rename(many / "x")
    (many / "val").rename(many / "train")
    (many / "x").rename(many / "val")
    loader = data.eval_loader(data.find(str(many)), small(f"data.workers={workers}"), device="cpu")
    labels = torch.cat([labels for _, labels in loader])
    assert labels.tolist() == [UNREADABLE] + [0] * 99 + [1] * 100
    assert loader.dataset.skipped == 1
