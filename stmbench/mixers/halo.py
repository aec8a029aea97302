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
D = C / h, E = c + d, L = a + c - 1 or b + d - 1 offsets along an axis.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stmbench.mixers import attention
from stmbench.mixers.backends import PLAIN, Backend, BackendMixer
from stmbench.mixers.halo_chunked import ChunkedHalo
from stmbench.mixers.halo_layout import BLOCK, HALO, Axis, Layout, beyond, cut_axis, one_hot
from stmbench.mixers.layers import check_heads
from stmbench.record import Macs


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

    def layout(self, x: Tensor) -> Layout:
        return Layout(cut_axis(x.shape[1], self.window), cut_axis(x.shape[2], self.window), self.num_heads)

    def positions(self, q: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
        """Scores of rows and columns of the window, from q (B, n, m, h, a, b, D).

        (B, n, m, h, a, b, c) and (B, n, m, h, a, b, d).
        """
        ys, xs, _ = layout
        rows = F.embedding(_relative(ys, q.device), self.height_rel)  # (a, c, D)
        columns = F.embedding(_relative(xs, q.device), self.width_rel)  # (b, d, D)
        vertical = torch.einsum("...abD,acD->...abc", q, rows)
        horizontal = torch.einsum("...abD,bdD->...abd", q, columns)
        return vertical + beyond(ys, vertical)[0], horizontal + beyond(xs, horizontal)[1]

    def macs(self, height: int, width: int) -> Macs:
        """Multiply-accumulates of one image of `height` x `width` positions; padding attends too.

        Counted as the operator is defined and published: on an axis of a block or more, queries score whole
        windows and all rows of the tables. The code skips rows that no key of the window needs, and the halo
        of a single block.
        """
        ys, xs, n = cut_axis(height, self.window), cut_axis(width, self.window), height * width
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


def _relative(axis: Axis, device: torch.device) -> Tensor:
    """The table's row for each query and key of a block, (queries, keys)."""
    query = torch.arange(axis.block, device=device)
    key = torch.arange(-axis.halo, axis.block + axis.halo, device=device)
    return key - query[:, None] + _centre(axis)


def _centre(axis: Axis) -> int:
    """The row of a table that scores a key at its query's own place."""
    # A function: dynamo of torch 2.6 adds no property of a tuple with symbols to a tensor.
    return axis.full + 3 * HALO - 1


def _attend(mixer: HaloAttention, x: Tensor, attend: Callable[..., Tensor]) -> Tensor:
    """By `attend(q, k, v, rows, columns)` of (B, n m h, a b or c d, D) and scores of rows and columns."""
    B, H, W, C = x.shape
    layout = mixer.layout(x)
    q = layout.blocks(layout.pad(mixer.q(x)))
    k, v = (
        each.reshape(B, layout.groups, layout.keys, -1)
        for each in layout.windows(layout.surround(mixer.kv(x)))
    )
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
    places = F.pad(one_hot(c, d, k), (0, spare)).flatten(0, 1)  # (c d, E + spare)
    k = torch.cat([k, places.expand(*k.shape[:-1], -1)], -1)
    v = F.pad(v, (0, c + d + spare))
    return F.scaled_dot_product_attention(q, k, v, scale=1.0)[..., :D]


def _chunked(mixer: HaloAttention, x: Tensor) -> Tensor:
    H, W = x.shape[1:3]
    layout = mixer.layout(x)
    q = layout.pad(mixer.q(x))
    offsets = torch.cat([_offsets(layout.ys, mixer.height_rel), _offsets(layout.xs, mixer.width_rel)])
    out: Any = ChunkedHalo.apply(q, mixer.kv(x), offsets.to(q.dtype), layout)
    return mixer.proj(out[:, :H, :W])


def _offsets(axis: Axis, table: Tensor) -> Tensor:
    """The rows of a table that some query and key of a block need, (L, D)."""
    first = _centre(axis) - axis.halo - (axis.block - 1)
    return table[first : first + axis.block + axis.window - 1]


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
