"""Effective receptive fields of networks whose answer is known, and how far their intervals are right."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from stmbench.measure import receptive
from stmbench.measure.receptive import SHARES, Field, Fields
from stmbench.mixers.halo import HaloAttention
from stmbench.mixers.swin import ShiftedWindowAttention
from stmbench.nn import create_model

SIZE = 28
DIM = 4  # of attention


def field(network: Callable[[Tensor], Tensor], stride: int = 1, size: int = SIZE, images: int = 2) -> Field:
    """The field of a network's only level."""
    fields = Fields(lambda x: [network(x)], [stride])
    fields.add(torch.rand(images, 3, size, size, generator=torch.Generator().manual_seed(0)))
    return fields.levels[0]


def support(of: Field) -> tuple[tuple[int, int], tuple[int, int]]:
    """The first and the last row, and column, that have any mass; there is none outside their rectangle."""
    rows, columns = (np.flatnonzero(of.map.any(axis)) for axis in (1, 0))
    return (rows[0], rows[-1]), (columns[0], columns[-1])


def convolution() -> nn.Conv2d:
    layer = nn.Conv2d(3, 3, 7, padding=3, bias=False)
    nn.init.constant_(layer.weight, 0.1)
    return layer


def convolutions(number: int) -> nn.Module:
    return nn.Sequential(*(convolution() for _ in range(number)))


class Attention(nn.Module):
    """An attention between positive features, with positive values and the same scores wherever it looks."""

    def __init__(self, mixer: nn.Module) -> None:
        super().__init__()
        self.embed, self.mixer = nn.Conv2d(3, DIM, 1), mixer
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                values = parameter[-DIM:] if name in ("mixer.qkv.weight", "mixer.kv.weight") else parameter
                parameter.zero_()
                values.fill_(0.1)

    def forward(self, images: Tensor) -> Tensor:
        x = self.embed(images).permute(0, 2, 3, 1)  # (B, H, W, DIM)
        return self.mixer(x).permute(0, 3, 1, 2)


def global_average(x: Tensor) -> Tensor:
    return x.mean((2, 3), keepdim=True).expand_as(x)


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_a_stack_of_k_7x7_convolutions_sees_6k_plus_1_pixels(number: int) -> None:
    reach = 3 * number
    assert support(field(convolutions(number))) == ((14 - reach, 14 + reach),) * 2


def test_one_uniform_7x7_convolution_by_hand() -> None:
    found = field(convolutions(1))
    squares = {share: estimate.value for share, estimate in found.squares().items()}
    # Of 49 equal pixels 3 x 3 are 18 %, 5 x 5 are 51 % and 7 x 7 are all.
    assert {share: square.side for share, square in squares.items()} == {20: 5, 30: 5, 50: 5, 99: 7}
    assert squares[50].area == pytest.approx(100 * 25 / SIZE**2)
    assert squares[99].area == pytest.approx(100 * 49 / SIZE**2)
    # Any pixels will do here: the fewest that are 50 % of 49 are 25, and of 99 % all 49.
    assert found.densest(50) == pytest.approx(100 * 25 / SIZE**2)
    assert found.densest(99) == pytest.approx(100 * 49 / SIZE**2)
    assert found.offset() == pytest.approx(0, abs=1e-6)


def test_two_convolutions_by_hand() -> None:
    """The field of two boxes is a product of triangles: 1, 2, ... 7, ... 2, 1 along each axis."""
    triangle = np.convolve(np.ones(7), np.ones(7))
    expected = np.zeros((SIZE, SIZE))
    expected[8:21, 8:21] = np.outer(triangle, triangle) / 49**2
    np.testing.assert_allclose(field(convolutions(2)).map, expected, rtol=1e-5, atol=1e-12)


def test_the_identity_sees_one_pixel() -> None:
    found = field(nn.Identity())
    assert support(found) == ((14, 14), (14, 14))
    for share, estimate in found.squares().items():
        assert estimate.value.side == estimate.low.side == estimate.high.side == 1
        assert estimate.value.area == found.densest(share) == pytest.approx(100 / SIZE**2)


def test_global_average_pooling_sees_all_alike() -> None:
    size = 224
    found = field(global_average, size=size)
    np.testing.assert_allclose(found.map, 1 / size**2, rtol=1e-5)
    for share, estimate in found.squares().items():
        assert share <= estimate.value.area < share + 2  # one ring more is at most 1.8 % of the image
        assert found.densest(share) == pytest.approx(share, abs=0.01)


def test_rounding_adds_no_pixel_to_a_share() -> None:
    found = field(global_average, size=60)
    assert [found.densest(share) for share in SHARES] == list(SHARES)


def test_a_7x7_window_attention_sees_exactly_its_window() -> None:
    attention = Attention(ShiftedWindowAttention(DIM, num_heads=1, shift=0))
    assert support(field(attention)) == ((14, 20), (14, 20))  # windows begin at 0, 7, 14 and 21
    assert support(field(attention, size=21)) == ((7, 13), (7, 13))
    corner = field(attention)  # of its window: there the centre pixel lies
    assert corner.offset() == pytest.approx(3 * 2**0.5)
    assert corner.squares()[50].value.side == 9  # 5 x 5 of it lie within the window, of 7 x 7
    shifted = Attention(ShiftedWindowAttention(DIM, num_heads=1, shift=3))
    assert support(field(shifted)) == ((10, 16), (10, 16))


def test_a_halo_attention_sees_13x13_pixels() -> None:
    found = field(Attention(HaloAttention(DIM, num_heads=1)))
    assert support(found) == ((11, 23), (11, 23))  # its block, 14 to 20, and 3 more
    assert found.squares()[50].value.side == 13  # 10 x 10 of it lie within the window, of 13 x 13


def test_only_what_a_feature_grows_with_is_seen_and_only_active_features_count() -> None:
    layer = convolution()
    with torch.no_grad():
        layer.weight[..., :3] *= -0.1  # the left
    assert support(field(layer)) == ((11, 17), (14, 17))
    assert field(lambda x: x - 2).failure == "no positive gradient reaches the image"
    assert field(lambda x: x * torch.nan).failure == "its gradient is not finite"
    assert field(layer).failure == ""


def test_the_scale_of_the_gradient_does_not_matter_as_it_would_to_its_logarithm() -> None:
    """Why shares are of the raw map: under the customary log10(x + 1) they say what the scale says."""

    def half(of: np.ndarray) -> int:
        return int(receptive._first(np.sort(of, axis=None)[::-1].cumsum(), 50)) + 1

    network = convolutions(3)
    faint, bright = field(network), field(lambda x: 1e4 * network(x))
    assert faint.squares() == bright.squares()
    assert [faint.densest(share) for share in SHARES] == [bright.densest(share) for share in SHARES]
    raw = faint.map / faint.map.max()
    assert half(raw) == half(1e4 * raw) < half(np.log10(1e4 * raw + 1)) / 1.5


@pytest.mark.parametrize("size", [224, 448, 28, 60])
def test_each_level_of_our_backbone_looks_at_its_centre_pixel(size: int) -> None:
    """Around the identity a level sees 7, 15, 31 and 63 pixels along an axis, as many on either side."""
    torch.manual_seed(0)
    model: Any = create_model("identity", "micro", num_classes=2).eval().requires_grad_(False)
    fields = Fields(
        lambda x: model.forward_intermediates(x, intermediates_only=True),
        [info["reduction"] for info in model.feature_info],
    )
    fields.add(torch.randn(4, 3, size, size))
    for found, reach in zip(fields.levels, (3, 7, 15, 31), strict=True):
        y, x = found.centre
        assert (y, x) == (found.grid[0] // 2 * (reach + 1), found.grid[1] // 2 * (reach + 1))
        assert support(found) == (
            (max(y - reach, 0), min(y + reach, size - 1)),
            (max(x - reach, 0), min(x + reach, size - 1)),
        )
    sizes = {224: [112, 112, 112, 96], 448: [224, 224, 224, 224], 28: [12, 16, 16, 0], 60: [28, 32, 32, 32]}
    assert [found.centre[0] for found in fields.levels] == sizes[size]


def test_a_square_is_clipped_at_the_border() -> None:
    class Corner(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.mean((2, 3), keepdim=True)

    found = field(Corner(), stride=SIZE)
    assert found.centre == (0, 0)  # the only position there is
    half = found.squares()[50].value
    assert half.side == 2 * 20 - 1  # 20 x 20 of 28 x 28 pixels are 51 %
    assert half.area == pytest.approx(100 * 20**2 / SIZE**2)


def test_batches_add_up() -> None:
    images = torch.rand(6, 3, SIZE, SIZE)
    network = nn.Sequential(convolutions(2), nn.Softplus())
    whole, parts = (Fields(lambda x: [network(x)], [1]) for _ in range(2))
    whole.add(images)
    for part in images.split(4):
        parts.add(part)
    np.testing.assert_allclose(whole.levels[0].map, parts.levels[0].map, rtol=1e-5)
    assert whole.levels[0].squares() == parts.levels[0].squares()


def masses(images: int, rng: np.random.Generator) -> np.ndarray:
    """(N, R) of images that see uniform squares whose sizes and brightness vary."""
    radius = rng.gamma(6, 4, (images, 1))
    bright = rng.lognormal(0, 0.5, (images, 1))
    return bright * np.minimum(1, (2 * np.arange(100) + 1) / (2 * radius + 1)) ** 2


def test_the_interval_covers_the_radius_of_all_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """But for 99 %: few images hold what decides it (docs/analysis.md)."""
    monkeypatch.setattr(receptive, "RESAMPLES", 400)
    rng, tries = np.random.default_rng(1), 200
    everything = masses(200_000, rng).sum(0)
    shares = [share for share in SHARES if share < 99]
    true = {share: int(np.argmax(everything >= share / 100 * everything[-1])) for share in shares}
    covered = dict.fromkeys(shares, 0)
    for _ in range(tries):
        found = receptive.radii(masses(30, rng))
        for share in shares:
            value, low, high = found[share]
            assert low <= value <= high
            covered[share] += low <= true[share] <= high
    assert all(count / tries >= 0.94 for count in covered.values()), covered


def test_the_interval_shrinks_with_the_number_of_images() -> None:
    rng = np.random.default_rng(2)
    wide, narrow = (receptive.radii(masses(images, rng)) for images in (20, 2000))
    for share in SHARES:
        (_, low, high), (_, lower, higher) = wide[share], narrow[share]
        assert higher - lower < (high - low) / 2
    alike = receptive.radii(np.tile(masses(1, rng), (20, 1)))
    assert all(value == low == high for value, low, high in alike.values())


def test_the_interval_is_the_same_every_time() -> None:
    of = masses(20, np.random.default_rng(3))
    assert receptive.radii(of) == receptive.radii(of)
