"""Halo attention: blocks of 7x7 queries, or of another size, see the keys of their block and 3 around it.

Vaswani et al. 2021, "Scaling Local Self-Attention for Parameter Efficient Visual Backbones"
(arXiv:2103.12731), in the form of Hu et al. 2022 (arXiv:2211.05781): an output projection, keys outside the
image masked out, positions scored by the unscaled query. Departures: maps that 7 does not divide are
padded at their end, and an axis not longer than a block is one block that sees the whole axis, which is
the same answer without the padding.

The score of a key's position is linear in the query and the sum of one term for its row and one for its
column. So all of attention is one product of longer vectors: queries [q / sqrt(D), score of each row, of each
column] and keys [k, one-hot row, one-hot column], without a bias or a mask for each pair, as rows and columns
outside the image score nearly -infinity. `chunked` and `augmented` live on that. `chunked` is not twice
differentiable; the others are as far as torch's attention is, `plain` anyhow.

Shapes: B batch, H x W positions, n x m blocks of a x b queries and c x d keys, C channels, h heads,
D = C / h, E = c + d, A = D + E, L = a + c - 1 or b + d - 1 offsets along an axis.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from stmbench.mixers import attention
from stmbench.mixers.backends import PLAIN, Backend, BackendMixer
from stmbench.mixers.layers import ceil_div, check_heads
from stmbench.record import Macs

BLOCK, HALO = 7, 3


class _Axis(NamedTuple):
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
    def centre(self) -> int:
        """The row of a table that scores a key at its query's own place."""
        return self.full + 3 * HALO - 1

    @property
    def pairs(self) -> int:
        """How many times a query inside the image sees a key inside the image."""

        def inside(start: int, number: int) -> int:
            return min(start + number, self.length) - max(start, 0)

        starts = range(0, self.number * self.block, self.block)
        return sum(inside(s, self.block) * inside(s - self.halo, self.window) for s in starts)


def _axis(length: int, block: int) -> _Axis:
    if length <= block:
        return _Axis(length, 1, length, 0, block)
    return _Axis(length, ceil_div(length, block), block, HALO, block)


class _Layout(NamedTuple):
    """How a map is cut into blocks, windows and heads."""

    ys: _Axis
    xs: _Axis
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

    def windows(self, kv: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values that each block sees, (B, n, m, h, c, d, D), views of a padded (B, H, W, 2C)."""
        ys, xs = self.ys, self.xs
        kv = F.pad(kv, (0, 0, xs.halo, xs.halo + xs.padding, ys.halo, ys.halo + ys.padding))
        kv = kv.unfold(1, ys.window, ys.block).unfold(2, xs.window, xs.block)  # (B, n, m, 2C, c, d)
        kv = kv.reshape(kv.shape[0], ys.number, xs.number, self.heads, 2, -1, ys.window, xs.window)
        k, v = kv.permute(4, 0, 1, 2, 3, 6, 7, 5)
        return k, v

    def map(self, x: Tensor) -> Tensor:
        """(B, n m h, a b, D) as (B, n, a, m, b, h, D), a view."""
        ys, xs = self.ys, self.xs
        x = x.reshape(-1, ys.number, xs.number, self.heads, ys.block, xs.block, x.shape[-1])
        return x.permute(0, 1, 4, 2, 5, 3, 6)


class HaloAttention(BackendMixer):
    """Attention of blocks to themselves and a halo of 3 positions, with learnt relative positions.

    `window` is the side of a block: the published networks' 7, or 12 for images of 384 pixels.
    """

    def __init__(self, dim: int, *, num_heads: int, window: int = BLOCK) -> None:
        super().__init__()
        check_heads(dim, num_heads)
        self.dim, self.num_heads, self.window = dim, num_heads, window
        self.q = nn.Linear(dim, dim, bias=False)
        self.kv = nn.Linear(dim, 2 * dim, bias=False)  # per head: its keys, then its values
        self.proj = nn.Linear(dim, dim)
        # Row window + 8 + o scores a key that lies o positions after its query; shared by the heads.
        # The first six rows are of no key.
        width, rows = dim // num_heads, 2 * (window + 2 * HALO) - 1
        self.height_rel = nn.Parameter(torch.empty(rows, width))
        self.width_rel = nn.Parameter(torch.empty(rows, width))
        for table in (self.height_rel, self.width_rel):
            nn.init.trunc_normal_(table, std=width**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        return self.backend(x).run(self, x)

    def layout(self, x: Tensor) -> _Layout:
        return _Layout(_axis(x.shape[1], self.window), _axis(x.shape[2], self.window), self.num_heads)

    def positions(self, q: Tensor, layout: _Layout) -> tuple[Tensor, Tensor]:
        """Scores of rows and columns of the window, from q (B, n, m, h, a, b, D).

        (B, n, m, h, a, b, c) and (B, n, m, h, a, b, d).
        """
        ys, xs, _ = layout
        rows = F.embedding(_relative(ys, q.device), self.height_rel)  # (a, c, D)
        columns = F.embedding(_relative(xs, q.device), self.width_rel)  # (b, d, D)
        vertical = torch.einsum("...abD,acD->...abc", q, rows)
        horizontal = torch.einsum("...abD,bdD->...abd", q, columns)
        return vertical + _outside(ys, vertical)[0], horizontal + _outside(xs, horizontal)[1]

    def macs(self, height: int, width: int) -> Macs:
        """Multiply-accumulates of one image of `height` x `width` positions; padding attends too.

        Counted as the operator is defined and published: on an axis of a block or more, queries score whole
        windows and all rows of the tables. The code skips rows that no key of the window needs, and the halo
        of a single block.
        """
        ys, xs, n = _axis(height, self.window), _axis(width, self.window), height * width
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
    return key - query[:, None] + axis.centre


def _outside(axis: _Axis, like: Tensor) -> tuple[Tensor, Tensor]:
    """What is added to scores along an axis: 0 inside the image, hugely negative outside.

    For the rows of windows (n, 1, 1, 1, 1, c), and for their columns (m, 1, 1, 1, d). Finite, so that it can
    be multiplied by a zero; a quarter of the range, so that a row's, a column's and a score can be added.
    """
    first = torch.arange(axis.number, device=like.device) * axis.block - axis.halo
    position = first[:, None] + torch.arange(axis.window, device=like.device)
    outside = ((position < 0) | (position >= axis.length)).to(like.dtype) * (torch.finfo(like.dtype).min / 4)
    return outside[:, None, None, None, None], outside[:, None, None, None]


def _attend(mixer: HaloAttention, x: Tensor, attend: Callable[..., Tensor]) -> Tensor:
    """By `attend(q, k, v, rows, columns)` of (B, n m h, a b or c d, D) and scores of rows and columns."""
    B, H, W, C = x.shape
    layout = mixer.layout(x)
    q = layout.blocks(layout.pad(mixer.q(x)))
    k, v = (each.reshape(B, layout.groups, layout.keys, -1) for each in layout.windows(mixer.kv(x)))
    scores = (each.flatten(1, 3).flatten(2, 3) for each in mixer.positions(q, layout))
    out = attend(q.reshape(B, layout.groups, layout.queries, -1), k, v, *scores)
    # A real copy, not a view: its layout would depend on the kernel of attention, and export fixes views.
    out = layout.map(out).clone(memory_format=torch.contiguous_format)
    out = out.reshape(B, layout.ys.number * layout.ys.block, layout.xs.number * layout.xs.block, C)
    return mixer.proj(out[:, :H, :W])


def _biased(
    attend: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor, rows: Tensor, columns: Tensor
) -> Tensor:
    """With the scores of positions written out for each pair."""
    bias = rows[..., None] + columns[..., None, :]  # (B, n m h, a b, c, d)
    return attend(q, k, v, bias.flatten(-2))


def _flex(q: Tensor, k: Tensor, v: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """With the scores of positions looked up for each pair."""
    width = columns.shape[-1]

    def score(score: Tensor, image: Tensor, group: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return score + rows[image, group, query, key // width] + columns[image, group, query, key % width]

    return attention.flex(q, k, v, score)


def _augmented(q: Tensor, k: Tensor, v: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """As one product of longer vectors, which flash attention takes: no bias, all widths alike."""
    D, c, d = q.shape[-1], rows.shape[-1], columns.shape[-1]
    spare = -(D + c + d) % 8
    q = torch.cat([q * D**-0.5, rows, columns, q.new_zeros(*q.shape[:-1], spare)], -1)
    onehot = F.pad(_onehot(c, d, k), (0, spare)).flatten(0, 1)  # (c d, E + spare)
    k = torch.cat([k, onehot.expand(*k.shape[:-1], -1)], -1)
    v = F.pad(v, (0, c + d + spare))
    return F.scaled_dot_product_attention(q, k, v, scale=1.0)[..., :D]


def _onehot(rows: int, columns: int, like: Tensor) -> Tensor:
    """The row and the column of each position, (c, d, E)."""
    row = torch.eye(rows, dtype=like.dtype, device=like.device)[:, None].expand(-1, columns, -1)
    column = torch.eye(columns, dtype=like.dtype, device=like.device).expand(rows, -1, -1)
    return torch.cat([row, column], -1)


def _chunked(mixer: HaloAttention, x: Tensor) -> Tensor:
    H, W = x.shape[1:3]
    layout = mixer.layout(x)
    q = layout.pad(mixer.q(x))
    offsets = torch.cat([_offsets(layout.ys, mixer.height_rel), _offsets(layout.xs, mixer.width_rel)])
    out: Any = _ChunkedHalo.apply(q, mixer.kv(x), offsets.to(q.dtype), layout)
    return mixer.proj(out[:, :H, :W])


def _offsets(axis: _Axis, table: Tensor) -> Tensor:
    """The rows of a table that some query and key of a block need, (L, D)."""
    first = axis.centre - axis.halo - (axis.block - 1)
    return table[first : first + axis.block + axis.window - 1]


class _ChunkedHalo(torch.autograd.Function):
    """q (B, n a, m b, C), kv (B, H, W, 2C), tables of both axes' offsets (2L, D) -> (B, n a, m b, C).

    Windows and scores are made a few images at a time, and once more in the backward pass.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, kv: Tensor, table: Tensor, layout: _Layout) -> Tensor:
        ctx.save_for_backward(q, kv, table)
        ctx.layout = layout
        out = torch.empty_like(q)
        chunks = _Chunks(layout, q)
        for part in chunks.parts:
            queries, keys, values, _ = chunks.gather(q[part], kv[part], table)
            mixed = torch.bmm(attention.probabilities(queries, keys), values)
            layout.blocks(out[part]).copy_(mixed.view(-1, *chunks.block, mixed.shape[-1]))
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:  # pyright: ignore
        (q, kv, table), layout = ctx.saved_tensors, ctx.layout
        D = table.shape[1]
        to_q, to_kv, to_table = torch.empty_like(q), torch.empty_like(kv), torch.zeros_like(table)
        chunks = _Chunks(layout, q)
        for part in chunks.parts:
            queries, keys, values, logits = chunks.gather(q[part], kv[part], table)
            p = attention.probabilities(queries, keys)
            grad = layout.blocks(grads[0][part]).reshape(-1, layout.queries, D)
            scores, to_values = attention.differentiate(p, values, grad)
            to_keys = torch.bmm(scores.transpose(1, 2), queries[..., :D])
            _fold(to_kv[part], (to_keys, to_values), layout)
            to_queries = torch.bmm(scores, keys).view(-1, *chunks.block, keys.shape[-1])
            logits.zero_()  # read by now, and of the right size for its own gradient
            for place, at in zip(chunks.slides(logits), chunks.extra, strict=True):
                place.copy_(to_queries[..., at])
            logits = logits.view(-1, len(table))
            to_table.addmm_(logits.t(), q[part].reshape(-1, D))
            torch.mul(to_queries[..., :D], D**-0.5, out=layout.blocks(to_q[part]))
            to_q[part].view(-1, D).addmm_(logits, table)
        return to_q, to_kv, to_table, None


class _Chunks:
    """The parts of a batch, and what each needs in the form of longer vectors."""

    def __init__(self, layout: _Layout, q: Tensor) -> None:
        ys, xs, heads = self.layout = layout
        D, E = q.shape[-1] // heads, ys.window + xs.window
        numbers = 2 * layout.queries * layout.keys + (layout.queries + layout.keys) * (2 * D + E)
        self.parts = attention.portions(q.shape[0], layout.groups * numbers * q.element_size())
        self.block = (ys.number, xs.number, heads, ys.block, xs.block)
        self.extra = slice(D, D + ys.window), slice(D + ys.window, D + E)
        self.outside = _outside(ys, q)[0], _outside(xs, q)[1]
        window = (ys.number, xs.number, heads, ys.window, xs.window)
        self.keys = q.new_empty(self.parts[0].stop, *window, D + E)
        self.keys[..., D:] = _onehot(ys.window, xs.window, q)

    def gather(self, q: Tensor, kv: Tensor, table: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Queries (N, a b, A), keys (N, c d, A), values (N, c d, D) and the scores of offsets (.., 2L)."""
        layout, D = self.layout, table.shape[1]
        queries = q.new_empty(q.shape[0], *self.block, self.keys.shape[-1])
        torch.mul(layout.blocks(q), D**-0.5, out=queries[..., :D])
        logits = (q.view(-1, D) @ table.t()).view(*q.shape[:3], -1)
        for slide, outside, at in zip(self.slides(logits), self.outside, self.extra, strict=True):
            torch.add(slide, outside, out=queries[..., at])
        k, v = layout.windows(kv)
        keys = self.keys[: q.shape[0]]
        keys[..., :D].copy_(k)
        keys = keys.view(-1, layout.keys, keys.shape[-1])
        return queries.view(-1, layout.queries, keys.shape[-1]), keys, v.reshape(-1, layout.keys, D), logits

    def slides(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Scores of offsets (b, n a, m b, h 2L) as those of a window's rows and columns, views."""
        ys, xs, _ = self.layout
        logits = self.layout.blocks(logits)  # (b, n, m, h, a, b, 2L)
        rows = ys.block + ys.window - 1
        return _slide(logits[..., :rows], 4, ys.window), _slide(logits[..., rows:], 5, xs.window)


def _slide(scores: Tensor, dim: int, window: int) -> Tensor:
    """The window's share of scores of offsets (..., L): each step along `dim` lies one offset further on."""
    first = scores.storage_offset() + scores.shape[dim] - 1
    strides = [stride - (axis == dim) for axis, stride in enumerate(scores.stride())]
    return scores.as_strided((*scores.shape[:-1], window), strides, first)


def _fold(out: Tensor, grads: tuple[Tensor, Tensor], layout: _Layout) -> None:
    """The adjoint of windows: sums over all windows (N, c d, D) of keys and values, into (b, H, W, 2C).

    The map is laid out in tiles of a block's size, some of which a window reaches into.
    """
    ys, xs, heads = layout
    further = (ceil_div(2 * axis.halo, axis.block) for axis in (ys, xs))  # tiles behind the last block
    tiles = ys.number + next(further), ys.block, xs.number + next(further), xs.block
    padded = out.new_zeros(out.shape[0], *tiles, heads, 2, out.shape[-1] // heads // 2)
    for target, grad in zip(padded.permute(6, 0, 1, 3, 5, 2, 4, 7), grads, strict=True):
        grad = grad.view(-1, ys.number, xs.number, heads, ys.window, xs.window, grad.shape[-1])
        for row in range(0, ys.window, ys.block):
            for column in range(0, xs.window, xs.block):
                piece = grad[:, :, :, :, row : row + ys.block, column : column + xs.block]
                top, left = row // ys.block, column // xs.block
                tile = target[:, top : top + ys.number, left : left + xs.number]
                tile[..., : piece.shape[4], : piece.shape[5], :].add_(piece)
    padded = padded.view(out.shape[0], tiles[0] * tiles[1], tiles[2] * tiles[3], -1)
    out.copy_(padded[:, ys.halo : ys.halo + ys.length, xs.halo : xs.halo + xs.length])


HaloAttention.backends = (
    Backend(
        "chunked",
        "eagerly on a CPU, unless the map is tiny",
        _chunked,
        attention.refuses_chunks,
        attention.best_chunked,
    ),
    # Unmeasured: flash attention takes no bias, and the kernels that take one write it out for each pair.
    Backend(
        "augmented",
        "on CUDA in bfloat16 and float16",
        partial(_attend, attend=_augmented),
        best=lambda call: call.device == "cuda" and call.dtype in attention.HALVES and not call.exporting,
    ),
    Backend(
        "flex",
        "never by itself; compiled, on a CPU without gradients",
        partial(_attend, attend=_flex),
        attention.refuses_flex,
        best=lambda call: False,
    ),
    Backend(
        "sdpa",
        "elsewhere, but not when exported, nor eagerly training on a CPU",
        partial(_attend, attend=partial(_biased, attention.fused)),
        best=attention.best_fused,
    ),
    Backend(PLAIN, "always", partial(_attend, attend=partial(_biased, attention.plain))),
)
