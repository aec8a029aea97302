"""Halo attention: blocks of 7x7 queries see the 13x13 window of keys around them.

Vaswani et al. 2021, "Scaling Local Self-Attention for Parameter Efficient Visual Backbones"
(arXiv:2103.12731), in the form of Hu et al. 2022 (arXiv:2211.05781): an output projection, keys outside the
image masked out, positions scored by the unscaled query. Departures: maps that 7 does not divide are
padded at their end, and an axis not longer than a block is one block that sees the whole axis, which is
the same answer without the padding.

Shapes: B batch, H x W positions, n x m blocks of a x b queries and c x d keys, C channels, h heads,
D = C / h.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stmbench.mixers.layers import ceil_div, check_heads
from stmbench.record import Macs

BLOCK, HALO = 7, 3
WINDOW = BLOCK + 2 * HALO


class _Axis(NamedTuple):
    """How blocks and windows lie along one axis of `length` positions."""

    length: int
    number: int  # of blocks
    block: int  # queries of a block
    halo: int  # further keys on each side

    @property
    def window(self) -> int:
        return self.block + 2 * self.halo

    @property
    def padding(self) -> int:
        """Positions missing from the last block."""
        return self.number * self.block - self.length

    @property
    def published(self) -> int:
        """The window that the operator is defined with, of which the code may need less."""
        return WINDOW if self.length >= BLOCK else self.length

    @property
    def pairs(self) -> int:
        """How many times a query inside the image sees a key inside the image."""

        def inside(start: int, number: int) -> int:
            return min(start + number, self.length) - max(start, 0)

        starts = range(0, self.number * self.block, self.block)
        return sum(inside(s, self.block) * inside(s - self.halo, self.window) for s in starts)


def _axis(length: int) -> _Axis:
    if length <= BLOCK:
        return _Axis(length, 1, length, 0)
    return _Axis(length, ceil_div(length, BLOCK), BLOCK, HALO)


class HaloAttention(nn.Module):
    """Attention of 7x7 blocks to themselves and a halo of 3 positions, with learnt relative positions."""

    def __init__(self, dim: int, *, num_heads: int) -> None:
        super().__init__()
        check_heads(dim, num_heads)
        self.dim, self.num_heads = dim, num_heads
        self.q = nn.Linear(dim, dim, bias=False)
        self.kv = nn.Linear(dim, 2 * dim, bias=False)  # per head: its keys, then its values
        self.proj = nn.Linear(dim, dim)
        # Row 12 + HALO + o scores a key that lies o positions after its query; shared by the heads.
        width = dim // num_heads
        self.height_rel = nn.Parameter(torch.empty(2 * WINDOW - 1, width))
        self.width_rel = nn.Parameter(torch.empty(2 * WINDOW - 1, width))
        for table in (self.height_rel, self.width_rel):
            nn.init.trunc_normal_(table, std=width**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        B, H, W, C = x.shape
        h, D = self.num_heads, C // self.num_heads
        ys, xs = _axis(H), _axis(W)
        q = F.pad(self.q(x), (0, 0, 0, xs.padding, 0, ys.padding))
        q = q.reshape(B, ys.number, ys.block, xs.number, xs.block, h, D).permute(0, 1, 3, 5, 2, 4, 6)
        k, v = self._windows(self.kv(x), ys, xs)  # each (B, n m h, c d, D)
        bias = self._positions(q, ys, xs)  # (B, n, m, h, a, b, c, d)
        if ys.halo or xs.halo:
            bias = bias.masked_fill(~_inside(ys, xs, x.device), float("-inf"))
        queries, keys = ys.block * xs.block, ys.window * xs.window
        x = F.scaled_dot_product_attention(
            q.reshape(B, -1, queries, D), k, v, attn_mask=bias.reshape(B, -1, queries, keys)
        )  # (B, n m h, a b, D)
        x = x.reshape(B, ys.number, xs.number, h, ys.block, xs.block, D).permute(0, 1, 4, 2, 5, 3, 6)
        # A real copy, not a view: its layout would depend on the kernel of attention, and export fixes views.
        x = x.clone(memory_format=torch.contiguous_format)
        x = x.reshape(B, ys.number * ys.block, xs.number * xs.block, C)
        return self.proj(x[:, :H, :W])

    def _windows(self, kv: Tensor, ys: _Axis, xs: _Axis) -> tuple[Tensor, Tensor]:
        """The keys and values that each block sees, from (B, H, W, 2C); each (B, n m h, c d, D)."""
        B, h, D = kv.shape[0], self.num_heads, self.dim // self.num_heads
        kv = F.pad(kv, (0, 0, xs.halo, xs.halo + xs.padding, ys.halo, ys.halo + ys.padding))
        kv = kv.unfold(1, ys.window, ys.block).unfold(2, xs.window, xs.block)  # (B, n, m, 2C, c, d), a view
        kv = kv.reshape(B, ys.number, xs.number, h, 2, D, ys.window, xs.window)
        k, v = kv.permute(4, 0, 1, 2, 3, 6, 7, 5).reshape(2, B, -1, ys.window * xs.window, D)
        return k, v

    def _positions(self, q: Tensor, ys: _Axis, xs: _Axis) -> Tensor:
        """Scores of the keys' relative positions (B, n, m, h, a, b, c, d), from q (B, n, m, h, a, b, D)."""
        rows = F.embedding(_relative(ys, q.device), self.height_rel)  # (a, c, D)
        columns = F.embedding(_relative(xs, q.device), self.width_rel)  # (b, d, D)
        vertical = torch.einsum("...abD,acD->...abc", q, rows)
        horizontal = torch.einsum("...abD,bdD->...abd", q, columns)
        return vertical[..., None] + horizontal[..., None, :]

    def macs(self, height: int, width: int) -> Macs:
        """Multiply-accumulates of one image of `height` x `width` positions; padding attends too.

        Counted as the operator is defined and published: on an axis of a block or more, queries score whole
        windows and all rows of the tables. The code skips rows that no key of the window needs, and the halo
        of a single block.
        """
        ys, xs, n = _axis(height), _axis(width), height * width
        queries = ys.number * ys.block * xs.number * xs.block
        rows, columns = ys.published, xs.published
        total = queries * (2 * rows * columns + (2 * rows - 1) + (2 * columns - 1))
        computed = queries * (2 * ys.window * xs.window + ys.window + xs.window)
        # Unread rows of the tables (rows - 1 and columns - 1 for each query) are waste, but no padding.
        attention, vertical, horizontal = 2 * ys.pairs * xs.pairs, width * ys.pairs, height * xs.pairs
        inside = attention + vertical + n * (rows - 1) + horizontal + n * (columns - 1)
        return Macs(
            4 * n * self.dim**2 + total * self.dim,
            padding=(total - inside) * self.dim,
            skipped=(total - computed) * self.dim,
        )


def _relative(axis: _Axis, device: torch.device) -> Tensor:
    """The table's row for each query and key of a block, (queries, keys)."""
    query = torch.arange(axis.block, device=device)
    key = torch.arange(-axis.halo, axis.block + axis.halo, device=device)
    return key - query[:, None] + WINDOW - 1 + HALO


def _inside(ys: _Axis, xs: _Axis, device: torch.device) -> Tensor:
    """Which keys of each window lie inside the image, (n, m, 1, 1, 1, c, d)."""

    def valid(axis: _Axis) -> Tensor:  # (number, window)
        first = torch.arange(axis.number, device=device) * axis.block - axis.halo
        position = first[:, None] + torch.arange(axis.window, device=device)
        return (position >= 0) & (position < axis.length)

    return (valid(ys)[:, None, :, None] & valid(xs)[None, :, None, :])[:, :, None, None, None]
