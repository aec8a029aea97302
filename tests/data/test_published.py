"""The published protocol's images have its faults, one by one."""

import numpy as np
import pytest
import torch
from PIL import Image

from stmbench.data import Part, PublishedImages, Variant
from stmbench.data.published import VARIANTS, translated
from stmbench.recipe import Data

DATA = Data(image_size=224, interpolation="bicubic")


class OnePicture:
    """A reader of white pictures, wider than high."""

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return Image.new("RGB", (300, 256), "white"), 0

    def filename(self, index: int) -> str:
        return str(index)


def images(network: str = "halo micro 0", data: Data = DATA) -> PublishedImages:
    return PublishedImages(Part(OnePicture(), tuple(range(40))), data, network=network)


@pytest.fixture(scope="module")
def made() -> dict[tuple[str, float], torch.Tensor]:
    views, _ = images()[0]
    return {variant[:2]: view for variant, view in zip(VARIANTS, views["made"], strict=True)}


def black(view: torch.Tensor) -> float:
    return float((view == 0).all(0).float().mean())


def test_the_strengths_are_the_published_ones() -> None:
    strengths = {
        name: [v.strength for v in VARIANTS if v.transform == name]
        for name in dict.fromkeys(v.transform for v in VARIANTS)
    }
    assert strengths["translation"] == list(range(0, 65, 4))
    assert strengths["rotation_before"] == strengths["rotation_after"] == list(range(0, 91, 5))
    assert strengths["scale"][:2] == [0.2, 0.325]
    assert strengths["scale"][-1] == 1.95
    assert 0.875 not in strengths["scale"]


def test_a_translation_of_64_moves_40_and_blackens_a_fifth() -> None:
    pixels = np.zeros((256, 256), np.uint8)
    pixels[:, 1:] = 100
    pixels[:, 128] = 200
    plain, moved = translated(pixels, 224, 0, 0), translated(pixels, 224, 0, 64)
    assert (int(plain[100].argmax()), int(moved[100].argmax())) == (112, 72)
    assert (moved == 0).mean() == pytest.approx(48 / 224)
    assert (translated(pixels, 224, 0, 16) != 0).all()


def test_only_seven_directions_are_drawn_and_each_network_draws_its_own() -> None:
    data = Data(image_size=8, crop_pct=0.25)
    ramp = np.arange(32 * 32, dtype=np.uint32).reshape(32, 32) % 251
    first, second = images("halo micro 0", data), images("swin micro 0", data)
    image = Image.fromarray(ramp.astype(np.uint8)).convert("RGB")
    place = VARIANTS.index(Variant("translation", 8))
    seen = [{first.views(image, i)["made"][place].numpy().tobytes() for i in range(60)}]
    south_west = translated(np.asarray(image), 8, 8, -8).transpose(2, 0, 1).tobytes()
    assert len(seen[0]) == 7
    assert south_west not in seen[0]
    a, b, again = (
        [each.views(image, i)["made"][place] for i in range(10)]
        for each in (first, second, images("halo micro 0", data))
    )
    assert all(torch.equal(x, y) for x, y in zip(a, again, strict=True))
    assert not all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_what_is_turned_or_larger_than_the_image_is_black(
    made: dict[tuple[str, float], torch.Tensor],
) -> None:
    assert black(made["rotation_after", 45]) == pytest.approx(3 - 2 * 2**0.5, abs=0.02)
    assert 0.02 < black(made["rotation_before", 45]) < black(made["rotation_after", 45])
    assert black(made["scale", 0.95]) == 0
    assert black(made["scale", 1.95]) > 0.4
    assert black(made["translation", 64]) > 0.1


def test_no_strength_is_the_plain_crop(made: dict[tuple[str, float], torch.Tensor]) -> None:
    views, _ = images()[0]
    for name in ("translation", "rotation_before", "rotation_after"):
        assert torch.equal(made[name, 0], views["canvas"])
