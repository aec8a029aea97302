"""Networks whose equivariance is known: convolutions, strides, and functions of the absolute position."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from stmbench.measure.equivariance import CELLS, Comparison, Level, Result, features_of, levels_of

SIZE = 32


class Features(nn.Module):
    """A network of one level."""

    def __init__(self, layers: nn.Module, reduction: int) -> None:
        super().__init__()
        self.layers = layers
        self.feature_info = [{"reduction": reduction}]

    def forward_intermediates(self, x: Tensor, *, intermediates_only: bool, output_fmt: str) -> list[Tensor]:
        assert intermediates_only
        assert output_fmt == "NCHW"
        return [self.layers(x)]


class Places(nn.Module):
    """Says where it is, and nothing of the image."""

    def forward(self, x: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        return torch.randn(1, 16, *x.shape[2:], generator=generator).expand(len(x), -1, -1, -1)


class Overall(nn.Module):
    """Says the same of the image everywhere."""

    def forward(self, x: Tensor) -> Tensor:
        return x[..., 8:-8, 8:-8].mean((2, 3), keepdim=True).round(decimals=0).expand_as(x)


def convolutions(*strides: int) -> nn.Sequential:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for stride in strides:
        layers += [nn.Conv2d(3 if not layers else 8, 8, 3, stride, padding=1), nn.GELU()]
    return nn.Sequential(*layers)


def results_of(
    layers: nn.Module, reduction: int, *, size: int = SIZE, batches: int = 1, count: int = 6
) -> dict[float, Result]:
    model = Features(layers, reduction).eval()
    features = features_of(model)
    with torch.inference_mode():
        comparison = Comparison(levels_of(model, features, torch.zeros(1, 3, size, size)), size)
        side = size + 2 * comparison.margin
        canvases = torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(1))
        canvases = (
            nn.functional.avg_pool2d(canvases, 3, 1, 1) * 3 + torch.arange(float(count))[:, None, None, None]
        )
        for part in canvases.chunk(batches):
            comparison.add(part, features)
    return {result.cells: result for result in comparison.results(np.ones(count, dtype=bool))}


def values_of(layers: nn.Module, reduction: int, **options: int) -> dict[float, float]:
    return {
        cells: result.estimate.value for cells, result in results_of(layers, reduction, **options).items()
    }


def test_convolutions_of_stride_1_move_with_the_image() -> None:
    values = values_of(convolutions(1, 1, 1), 1)
    assert list(values) == [1.0, 2.0]  # fractions of a pixel are not measured
    assert list(values.values()) == pytest.approx([1.0, 1.0], abs=1e-5)


def test_strides_move_with_whole_steps_alone() -> None:
    values = values_of(convolutions(2, 2), 4)
    assert list(values) == list(CELLS)
    assert [values[1.0], values[2.0]] == pytest.approx([1.0, 1.0], abs=1e-5)
    assert all(0.1 < values[cells] < 0.95 for cells in (0.25, 0.5, 0.75))


def test_features_that_only_know_their_place_do_not_move() -> None:
    values = values_of(Places(), 1)
    assert all(abs(value) < 0.1 for value in values.values())


def test_features_that_do_not_vary_in_place_move_with_anything() -> None:
    values = values_of(Overall(), 1)
    assert list(values.values()) == pytest.approx([1.0, 1.0], abs=1e-4)


def test_a_mean_that_features_share_counts_for_nothing() -> None:
    class Raised(Places):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + 1000 * torch.arange(16.0).view(1, 16, 1, 1)

    values = values_of(Raised(), 1)
    assert all(abs(value) < 0.1 for value in values.values())


def test_batches_make_no_difference_and_intervals_hold_the_value() -> None:
    one, three = (results_of(convolutions(2, 2), 4, batches=batches) for batches in (1, 3))
    for cells, result in one.items():
        assert three[cells].estimate == pytest.approx(result.estimate, abs=1e-5)
        value, low, high = result.estimate
        assert low is not None
        assert high is not None
        assert low - 1e-6 <= value <= high + 1e-6


def test_images_that_do_not_count_change_nothing() -> None:
    model = Features(convolutions(2, 2), 4).eval()
    features = features_of(model)
    with torch.inference_mode():
        comparison = Comparison(levels_of(model, features, torch.zeros(1, 3, SIZE, SIZE)), SIZE)
        side = SIZE + 2 * comparison.margin
        canvases = torch.randn(6, 3, side, side, generator=torch.Generator().manual_seed(1))
        comparison.add(canvases, features)
        fewer = Comparison(comparison.levels, SIZE)
        fewer.add(canvases[:4], features)
    some = np.array([True] * 4 + [False] * 2)
    for left, right in zip(comparison.results(some), fewer.results(some[:4]), strict=True):
        assert left.estimate == pytest.approx(right.estimate, abs=1e-5)


def test_a_map_without_an_interior_is_a_failure_with_a_reason() -> None:
    found = results_of(convolutions(2, 2, 2), 8, size=28)  # 4x4 cells
    assert [cells for cells, result in found.items() if math.isnan(result.estimate.value)] == [2.0]
    assert found[2.0].reason == "a map of 4x4 cells has no interior left"
    assert found[1.0].estimate.value == pytest.approx(1.0, abs=1e-5)
    assert Level(32, 1, 1).pixels() == {}


def test_features_that_do_not_vary_at_all_are_a_failure_with_a_reason() -> None:
    class Silent(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.zeros_like(x)

    for result in results_of(Silent(), 1).values():
        assert math.isnan(result.estimate.value)
        assert result.reason == "features that do not vary"


def test_a_network_that_hands_out_no_features_says_so() -> None:
    with pytest.raises(ValueError, match="hands out no features"):
        features_of(nn.Linear(2, 2))

    class Vague(Features):
        def __init__(self) -> None:
            super().__init__(nn.Identity(), 1)
            self.feature_info = []

    model = Vague()
    with pytest.raises(ValueError, match="cannot be compared"):
        levels_of(model, features_of(model), torch.zeros(1, 3, 8, 8))
