"""Spatial-reduction attention: every position attends to keys taken from a coarser map.

Wang et al. 2021, "Pyramid Vision Transformer" (arXiv:2102.12122). Departure: a map that the reduction does
not divide is padded with zeros at the right and bottom, so that its last positions give keys too. The
learnt map of absolute positions that belongs to this family lives in the backbone's residual stream.

The reduction never overlaps, and so is one product over patches, as which `patches` takes it: its backward
pass on a CPU is a quarter shorter. It attends by ordinary products, whose backward pass there is faster than
torch's fused one, and scales the keys, which are few.

Shapes: B batch, H x W positions, N = H W, M keys, C channels, h heads, D = C / h.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from stmbench.mixers import attention
from stmbench.mixers.backends import PLAIN, Backend, BackendMixer
from stmbench.mixers.layers import ChannelsLastConv2d, ceil_div, check_heads
from stmbench.record import Macs


class SpatialReductionAttention(BackendMixer):
    """Attention whose keys and values come from a convolution with kernel and stride `reduction`."""

    def __init__(self, dim: int, *, num_heads: int, reduction: int) -> None:
        super().__init__()
        check_heads(dim, num_heads)
        self.dim, self.num_heads, self.reduction = dim, num_heads, reduction
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim)
        self.proj = nn.Linear(dim, dim)
        self.reduce = nn.Identity()
        if reduction > 1:
            conv = ChannelsLastConv2d(dim, dim, reduction, stride=reduction)
            self.reduce = nn.Sequential(conv, nn.LayerNorm(dim))

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        return self.backend(x).run(self, x)

    def macs(self, height: int, width: int) -> Macs:
        """Multiply-accumulates of one image of `height` x `width` positions; padding is reduced too."""
        n, c, r = height * width, self.dim, self.reduction
        m = ceil_div(height, r) * ceil_div(width, r)
        reduced = m * r * r if r > 1 else 0  # positions the convolution reads, each once
        padded = reduced - n if r > 1 else 0
        return Macs((2 * n + reduced + 2 * m) * c * c + 2 * n * m * c, padding=padded * c * c)


def _convolved(mixer: SpatialReductionAttention, x: Tensor) -> Tensor:
    return mixer.reduce(x)


def _patched(mixer: SpatialReductionAttention, x: Tensor) -> Tensor:
    r = mixer.reduction
    if r == 1:
        return x
    layers: Any = mixer.reduce
    conv, norm = layers
    B, H, W, C = x.shape
    x = x.reshape(B, H // r, r, W // r, r, C).transpose(2, 3).reshape(B, H // r, W // r, r * r * C)
    return norm(F.linear(x, conv.weight.permute(0, 2, 3, 1).flatten(1), conv.bias))


def _scaled_keys(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ (k * k.shape[-1] ** -0.5).transpose(-2, -1)).softmax(-1) @ v


def _attend(
    mixer: SpatialReductionAttention,
    x: Tensor,
    attend: Callable[..., Tensor],
    reduce: Callable[..., Tensor] = _convolved,
) -> Tensor:
    """By `attend(q, k, v)` of (B, h, N, D) and (B, h, M, D), and the coarser map by `reduce(mixer, x)`."""
    B, H, W, C = x.shape
    h, r = mixer.num_heads, mixer.reduction
    q = mixer.q(x).reshape(B, H * W, h, C // h).transpose(1, 2)  # (B, h, N, D)
    if H % r or W % r:
        x = F.pad(x, (0, 0, 0, -W % r, 0, -H % r))
    kv = mixer.kv(reduce(mixer, x)).reshape(B, -1, 2, h, C // h)  # (B, M, 2, h, D)
    k, v = kv.permute(2, 0, 3, 1, 4)  # each (B, h, M, D)
    x = attend(q, k, v)  # (B, h, N, D)
    return mixer.proj(x.transpose(1, 2).reshape(B, H, W, C))


SpatialReductionAttention.backends = (
    Backend(
        "patches",
        "training on a CPU, unless compiled",
        partial(_attend, attend=_scaled_keys, reduce=_patched),
        best=lambda call: call.device == "cpu" and call.grad and not call.compiling,
    ),
    Backend(
        "sdpa",
        "unless exported",
        partial(_attend, attend=attention.fused),
        best=lambda call: not call.exporting,
    ),
    Backend(PLAIN, "always", partial(_attend, attend=attention.plain)),
)
