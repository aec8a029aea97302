"""Every mixer: equal to its oracle with all gradients, any size, any precision, exact MACs."""

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
from stmbench.mixers.sra import SpatialReductionAttention
from stmbench.mixers.swin import ShiftedWindowAttention

MIXERS: dict[str, tuple[Callable[[], Any], Callable[[Any, Tensor], Tensor]]] = {
    "halo": (lambda: HaloAttention(8, num_heads=2), oracles.halo),
    "swin": (lambda: ShiftedWindowAttention(8, num_heads=2, shift=0), oracles.swin),
    "swin shifted": (lambda: ShiftedWindowAttention(8, num_heads=2, shift=3), oracles.swin),
    "sra 1": (lambda: SpatialReductionAttention(8, num_heads=2, reduction=1), oracles.sra),
    "sra 4": (lambda: SpatialReductionAttention(8, num_heads=2, reduction=4), oracles.sra),
    "dwconv": (lambda: DepthwiseConv(8), oracles.dwconv),
    "dcnv3": (lambda: DeformableConvV3(32), oracles.dcnv3),
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


# Products that `macs` declares and no counter sees, (B = 1, H, W, C): dcnv3's samples; the rows of halo's
# tables that the operator defines and the code leaves unread.
UNCOUNTED = {
    "dcnv3": lambda h, w, c: 45 * h * w * c,
    "halo": lambda h, w, c: 24 * -(-h // 7) * -(-w // 7) * 49 * c,
}


@pytest.mark.parametrize("size", [(9, 11), (14, 28), (15, 8)], ids=str)
@pytest.mark.parametrize("name", MIXERS)
def test_macs_equal_what_a_counter_counts(name: str, size: tuple[int, int]) -> None:
    mixer = make(name)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        mixer(torch.randn(1, *size, mixer.dim))
    hidden = UNCOUNTED.get(name, lambda *_: 0)(*size, mixer.dim)
    assert mixer.macs(*size) == counter.get_total_flops() // 2 + hidden


def test_heads_and_groups_must_divide_the_channels() -> None:
    with pytest.raises(ValueError, match="cannot be divided among 3 heads"):
        HaloAttention(8, num_heads=3)
    with pytest.raises(ValueError, match="not a multiple of 16"):
        DeformableConvV3(24)
