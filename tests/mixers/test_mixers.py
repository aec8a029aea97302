"""Every mixer: equal to its oracle with all gradients, any size, any precision, exact MACs."""

import itertools
from collections.abc import Callable
from typing import Any

import oracles
import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from stmbench.mixers.dcnv3 import DeformableConvV3
from stmbench.mixers.dwconv import DepthwiseConv
from stmbench.mixers.halo import HaloAttention
from stmbench.mixers.identity import Identity
from stmbench.mixers.pool import Pool
from stmbench.mixers.sra import SpatialReductionAttention
from stmbench.mixers.swin import ShiftedWindowAttention

MIXERS: dict[str, tuple[Callable[[], Any], Callable[[Any, Tensor], Tensor]]] = {
    "halo": (lambda: HaloAttention(8, num_heads=2), oracles.halo),
    "swin": (lambda: ShiftedWindowAttention(8, num_heads=2, shift=0), oracles.swin),
    "swin shifted": (lambda: ShiftedWindowAttention(8, num_heads=2, shift=3), oracles.swin),
    "halo 4": (lambda: HaloAttention(8, num_heads=2, window=4), oracles.halo),
    "swin 4": (lambda: ShiftedWindowAttention(8, num_heads=2, shift=2, window=4), oracles.swin),
    "sra 1": (lambda: SpatialReductionAttention(8, num_heads=2, reduction=1), oracles.sra),
    "sra 4": (lambda: SpatialReductionAttention(8, num_heads=2, reduction=4), oracles.sra),
    "dwconv": (lambda: DepthwiseConv(8), oracles.dwconv),
    "dcnv3": (lambda: DeformableConvV3(32), oracles.dcnv3),
    "pool": (lambda: Pool(8), oracles.pool),
    "identity": (lambda: Identity(8), oracles.identity),
}
SIZES = [(1, 1), (3, 5), (5, 11), (15, 8)]


def randomize(module: nn.Module) -> None:
    """Parameters of about 0.5, so that none is without effect and offsets reach other pixels."""
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5)


def make(name: str) -> Any:
    torch.manual_seed(0)
    mixer = MIXERS[name][0]()
    randomize(mixer)
    return mixer


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("name", MIXERS)
def test_output_and_every_gradient_equal_the_oracle(name: str, size: tuple[int, int]) -> None:
    mixer = make(name).double()
    x = torch.randn(1, *size, mixer.dim, dtype=torch.float64, requires_grad=True)
    leaves = [x, *mixer.parameters()]
    out, want = mixer(x), MIXERS[name][1](mixer, x)
    direction = torch.randn_like(out)
    got = [out, *torch.autograd.grad(out, leaves, direction, allow_unused=True)]
    expected = [want, *torch.autograd.grad(want, leaves, direction, allow_unused=True)]
    for ours, theirs in zip(got, expected, strict=True):
        ours, theirs = (torch.zeros(()) if each is None else each for each in (ours, theirs))
        assert (ours - theirs).abs().max() <= 1e-10 * max(1.0, float(theirs.detach().abs().max()))


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("name", MIXERS)
def test_images_do_not_mix_and_stay_channels_last(name: str, size: tuple[int, int]) -> None:
    mixer = make(name)
    x = torch.randn(3, *size, mixer.dim)
    out = mixer(x)
    assert out.shape == x.shape
    assert out.is_contiguous()
    torch.testing.assert_close(out[1:2], mixer(x[1:2]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", MIXERS)
def test_autocast_is_close_to_float32(name: str, dtype: torch.dtype) -> None:
    mixer = make(name)
    for parameter in mixer.parameters():
        parameter.data *= 0.4
    x = torch.randn(2, 9, 11, mixer.dim)
    with torch.autocast("cpu", dtype):
        out = mixer(x)
    out.sum().backward()
    assert out.dtype == dtype
    want = mixer(x)
    assert (out - want).abs().max() < 0.05 * want.std()
    assert all(parameter.grad.isfinite().all() for parameter in mixer.parameters())


@pytest.mark.parametrize("size", [(9, 11), (14, 28), (15, 8), (7, 7), (7, 20), (5, 11), (1, 1)], ids=str)
@pytest.mark.parametrize("name", MIXERS)
def test_macs_equal_what_a_counter_counts(name: str, size: tuple[int, int]) -> None:
    mixer = make(name)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        mixer(torch.randn(1, *size, mixer.dim))
    samples = 45 * size[0] * size[1] * mixer.dim if name == "dcnv3" else 0  # which torch does not count
    assert mixer.macs(*size).computed == counter.get_total_flops() // 2 + samples


def halo_window(size: int) -> int:
    return 13 if size >= 7 else size


def halo_padding(height: int, width: int, dim: int) -> int:
    """Score by score: attention, then the tables of positions, of whose rows some belong to no key."""
    rows, columns, spent = halo_window(height), halo_window(width), 0
    reach = [(n, min(n, 7), 3 if n >= 7 else 0) for n in (height, width)]
    blocks = [[range(start, start + block) for start in range(0, n, block)] for n, block, _ in reach]
    for ys, xs in itertools.product(*blocks):
        near = [
            range(own[0] - far, own[-1] + far + 1) for own, (_, _, far) in zip((ys, xs), reach, strict=True)
        ]
        for y, x in itertools.product(ys, xs):
            outside = [
                [key not in range(n) for key in keys] for keys, n in zip(near, (height, width), strict=True)
            ]
            if y >= height or x >= width:
                spent += 2 * rows * columns + (2 * rows - 1) + (2 * columns - 1)
            else:
                spent += (
                    2 * sum(a or b for a, b in itertools.product(*outside))
                    + sum(outside[0])
                    + sum(outside[1])
                )
    return spent * dim


def swin_padding(height: int, width: int, dim: int, shift: int) -> int:
    """Pair by pair, on the map as it lies when it is cut into windows."""
    inside = torch.zeros([n if n <= 7 else -(-n // 7) * 7 for n in (height, width)], dtype=torch.bool)
    inside[:height, :width] = True
    inside = inside.roll([-shift if n > 7 else 0 for n in (height, width)], (0, 1))
    windows = [w for rows in inside.split(7) for w in rows.split(7, 1)]
    return 2 * dim * sum(w.numel() ** 2 - int(w.sum()) ** 2 for w in windows)


@pytest.mark.parametrize("size", [(9, 11), (14, 28), (15, 8), (7, 7), (7, 20), (5, 11), (1, 1)], ids=str)
def test_padding_is_what_lies_outside_the_image(size: tuple[int, int]) -> None:
    height, width = size
    assert make("halo").macs(*size).padding == halo_padding(*size, 8)
    for name, shift in (("swin", 0), ("swin shifted", 3)):
        assert make(name).macs(*size).padding == swin_padding(*size, 8, shift)
    whole = -(-height // 4) * -(-width // 4) * 16
    assert make("sra 4").macs(*size).padding == (whole - height * width) * 8 * 8
    for name in ("sra 1", "dwconv", "dcnv3", "pool", "identity"):
        assert (make(name).macs(*size).padding, make(name).macs(*size).skipped) == (0, 0)


def test_published_totals_are_those_of_whole_windows_and_tables() -> None:
    mixer = HaloAttention(8, num_heads=2)
    for side, windows in ((7, 1), (14, 4), (56, 64)):
        scores = windows * 49 * (2 * 13 * 13 + 2 * 25) * 8
        assert mixer.macs(side, side).total == 4 * side**2 * 8**2 + scores


def test_heads_and_groups_must_divide_the_channels() -> None:
    with pytest.raises(ValueError, match="cannot be divided among 3 heads"):
        HaloAttention(8, num_heads=3)
    with pytest.raises(ValueError, match="not a multiple of 16"):
        DeformableConvV3(24)
