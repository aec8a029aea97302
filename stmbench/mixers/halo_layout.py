"""How halo attention lays a map out: blocks of queries, and the windows of keys around them.

Shapes: B batch, H x W positions, n x m blocks of a x b queries and c x d keys, C channels, h heads,
D = C / h, E = c + d, X any numbers.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from stmbench.mixers.layers import ceil_div

BLOCK, HALO = 7, 3


class Axis(NamedTuple):
    """How blocks and windows lie along one axis of `length` positions."""

    length: int
    number: int  # of blocks
    block: int  # queries of a block
    halo: int  # further keys on each side
    full: int  # queries of a whole block, as the operator is defined

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
        return self.full + 2 * HALO if self.length >= self.full else self.length

    @property
    def pairs(self) -> int:
        """How many times a query inside the image sees a key inside the image."""

        def inside(start: int, number: int) -> int:
            return min(start + number, self.length) - max(start, 0)

        starts = range(0, self.number * self.block, self.block)
        return sum(inside(s, self.block) * inside(s - self.halo, self.window) for s in starts)


def cut_axis(length: int, block: int) -> Axis:
    if length <= block:
        return Axis(length, 1, length, 0, block)
    return Axis(length, ceil_div(length, block), block, HALO, block)


class Layout(NamedTuple):
    """How a map is cut into blocks, windows and heads."""

    ys: Axis
    xs: Axis
    heads: int

    @property
    def groups(self) -> int:
        return self.ys.number * self.xs.number * self.heads

    @property
    def queries(self) -> int:
        return self.ys.block * self.xs.block

    @property
    def keys(self) -> int:
        return self.ys.window * self.xs.window

    def pad(self, q: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, n a, m b, C)."""
        if self.ys.padding or self.xs.padding:
            return F.pad(q, (0, 0, 0, self.xs.padding, 0, self.ys.padding))
        return q

    def blocks(self, x: Tensor) -> Tensor:
        """(B, n a, m b, h X) as (B, n, m, h, a, b, X), a view."""
        ys, xs = self.ys, self.xs
        x = x.view(x.shape[0], ys.number, ys.block, xs.number, xs.block, self.heads, -1)
        return x.permute(0, 1, 3, 5, 2, 4, 6)

    def surround(self, kv: Tensor) -> Tensor:
        """(B, H, W, X) with zeros wherever windows reach outside."""
        ys, xs = self.ys, self.xs
        return F.pad(kv, (0, 0, xs.halo, xs.halo + xs.padding, ys.halo, ys.halo + ys.padding))

    def windows(self, kv: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values that each block sees, (B, n, m, h, c, d, D), views of a surrounded (B, .., 2C)."""
        ys, xs = self.ys, self.xs
        kv = kv.unfold(1, ys.window, ys.block).unfold(2, xs.window, xs.block)  # (B, n, m, 2C, c, d)
        kv = kv.reshape(kv.shape[0], ys.number, xs.number, self.heads, 2, -1, ys.window, xs.window)
        k, v = kv.permute(4, 0, 1, 2, 3, 6, 7, 5)
        return k, v

    def map(self, x: Tensor) -> Tensor:
        """(B, n m h, a b, D) as (B, n, a, m, b, h, D), a view."""
        ys, xs = self.ys, self.xs
        x = x.reshape(-1, ys.number, xs.number, self.heads, ys.block, xs.block, x.shape[-1])
        return x.permute(0, 1, 4, 2, 5, 3, 6)


def beyond(axis: Axis, like: Tensor) -> tuple[Tensor, Tensor]:
    """What is added to scores along an axis: 0 inside the image, hugely negative outside.

    For the rows of windows (n, 1, 1, 1, 1, c), and for their columns (m, 1, 1, 1, d). Finite, so that it can
    be multiplied by a zero; a quarter of the range, so that a row's, a column's and a score can be added.
    """
    first = torch.arange(axis.number, device=like.device) * axis.block - axis.halo
    position = first[:, None] + torch.arange(axis.window, device=like.device)
    outside = ((position < 0) | (position >= axis.length)).to(like.dtype) * (torch.finfo(like.dtype).min / 4)
    return outside[:, None, None, None, None], outside[:, None, None, None]


def one_hot(rows: int, columns: int, like: Tensor) -> Tensor:
    """The row and the column of each position, (c, d, E)."""
    row = torch.eye(rows, dtype=like.dtype, device=like.device)[:, None].expand(-1, columns, -1)
    column = torch.eye(columns, dtype=like.dtype, device=like.device).expand(rows, -1, -1)
    return torch.cat([row, column], -1)
