"""Halo attention eagerly on a CPU: a few images at a time, in memory that is used again.

One product of longer vectors, as `halo` has it: queries [q / sqrt(D), score of each row, of each column] and
keys [k, one-hot row, one-hot column]. Differentiable once.

Shapes: as in `halo_layout`. b images of a portion, N = b n m h, T = a b queries of a block, S keys: the c d
of a window and perhaps some spare ones, A = D + E and then 1, L = a + c - 1 or b + d - 1 offsets of an axis.
"""

import itertools
from collections.abc import Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from stmbench.mixers import attention
from stmbench.mixers.halo_layout import Layout, beyond, one_hot
from stmbench.mixers.layers import ceil_div


class ChunkedHalo(torch.autograd.Function):
    """q (B, n a, m b, C), kv (B, H, W, 2C), tables of both axes' offsets (2L, D) -> (B, n a, m b, C).

    Windows and scores are made a few images at a time, and once more in the backward pass.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, kv: Tensor, table: Tensor, layout: Layout) -> Tensor:
        ctx.save_for_backward(q, kv, table)
        ctx.layout = layout
        out = torch.empty_like(q)
        for part, scratch in _portions(_Scratch, layout, q):
            scratch.attend(q[part], kv[part], table)
            torch.bmm(scratch.p, scratch.values, out=scratch.mixed)
            layout.blocks(out[part]).copy_(scratch.blocks(scratch.mixed))
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:  # pyright: ignore
        (q, kv, table), layout = ctx.saved_tensors, ctx.layout
        D = table.shape[1]
        to_q, to_kv, to_table = torch.empty_like(q), torch.empty_like(kv), torch.zeros_like(table)
        for part, scratch in _portions(_Gradients, layout, q):
            scratch.attend(q[part], kv[part], table)
            scratch.differentiate(layout.blocks(grads[0][part]))
            scratch.fold(to_kv[part])
            to_table.addmm_(scratch.logits.t(), q[part].reshape(-1, D))
            torch.mul(scratch.blocks(scratch.to_queries[..., :D]), D**-0.5, out=layout.blocks(to_q[part]))
            to_q[part].view(-1, D).addmm_(scratch.logits, table)
        return to_q, to_kv, to_table, None


_S = TypeVar("_S", bound="_Scratch")


def _portions(make: type[_S], layout: Layout, q: Tensor) -> Iterator[tuple[slice, _S]]:
    """The portions of a batch, each with what it is computed in."""
    vector = 2 * q.shape[-1] // layout.heads + layout.ys.window + layout.xs.window  # 2 D + E
    numbers = 2 * layout.queries * layout.keys + (layout.queries + layout.keys) * vector
    scratch = None
    for part in attention.portions(q.shape[0], layout.groups * numbers * q.element_size()):
        images = q[part].shape[0]
        if scratch is None or scratch.images != images:
            scratch = make(layout, q, images)
        yield part, scratch


class _Scratch:
    """What some images are computed in, and views of it: fresh memory costs as much as computing does.

    Spare keys make each row of scores whole cache lines. They score hugely negative, by one more number of
    the longer vectors, and so weigh nothing.
    """

    def __init__(self, layout: Layout, q: Tensor, images: int) -> None:
        self.layout, self.images = layout, images
        ys, xs, heads = layout
        D, E, T, N = q.shape[-1] // heads, ys.window + xs.window, layout.queries, images * layout.groups
        spare = -layout.keys % (64 // q.element_size())
        spare = spare if 16 * spare <= layout.keys else 0
        S, A = layout.keys + spare, D + E + bool(spare)
        self.queries, self.mixed, self.p = (q.new_empty(N, T, last) for last in (A, D, S))
        self.keys, self.values = (q.new_empty(N, S, last) for last in (A, D))
        places = one_hot(ys.window, xs.window, q).flatten(0, 1)
        self.keys[..., D:] = F.pad(places, (0, A - D - E, 0, spare))
        if spare:
            self.queries[..., -1] = torch.finfo(q.dtype).min / 4
            self.keys[:, layout.keys :, -1] = 1
            self.keys[:, layout.keys :, :D] = self.values[:, layout.keys :] = 0
        self.into = self.windows(self.keys)[..., :D], self.windows(self.values)
        padded = layout.surround(q.new_zeros(images, ys.length, xs.length, 2 * q.shape[-1]))
        self.map = padded[:, ys.halo : ys.halo + ys.length, xs.halo : xs.halo + xs.length]
        self.seen = layout.windows(padded)
        rows, columns = (axis.block + axis.window - 1 for axis in (ys, xs))
        self.logits = q.new_empty(N * T, rows + columns)
        by_block = layout.blocks(self.logits.view(images, ys.number * ys.block, xs.number * xs.block, -1))
        self.slides = _slide(by_block[..., :rows], 4, ys.window), _slide(by_block[..., rows:], 5, xs.window)
        self.outside = beyond(ys, q)[0], beyond(xs, q)[1]
        self.extra = slice(D, D + ys.window), slice(D + ys.window, D + E)

    def blocks(self, x: Tensor) -> Tensor:
        """(N, a b, X) as (b, n, m, h, a, b, X), a view."""
        ys, xs, heads = self.layout
        return x.unflatten(1, (ys.block, xs.block)).unflatten(0, (self.images, ys.number, xs.number, heads))

    def windows(self, x: Tensor) -> Tensor:
        """(N, S, X) as (b, n, m, h, c, d, X), a view."""
        ys, xs, heads = self.layout
        x = x[:, : self.layout.keys].unflatten(1, (ys.window, xs.window))
        return x.unflatten(0, (self.images, ys.number, xs.number, heads))

    def attend(self, q: Tensor, kv: Tensor, table: Tensor) -> None:
        """Queries, keys, values and probabilities of some images."""
        D = table.shape[1]
        queries = self.blocks(self.queries)
        torch.mul(self.layout.blocks(q), D**-0.5, out=queries[..., :D])
        torch.mm(q.view(-1, D), table.t(), out=self.logits)
        for slide, outside, at in zip(self.slides, self.outside, self.extra, strict=True):
            torch.add(slide, outside, out=queries[..., at])
        self.map.copy_(kv)
        for into, seen in zip(self.into, self.seen, strict=True):
            into.copy_(seen)
        attention.probabilities(self.queries, self.keys, out=self.p)


class _Gradients(_Scratch):
    """What their gradients are computed in."""

    def __init__(self, layout: Layout, q: Tensor, images: int) -> None:
        super().__init__(layout, q, images)
        ys, xs, heads = layout
        self.to_queries, self.to_scores = torch.empty_like(self.queries), torch.empty_like(self.p)
        self.to_keys, self.to_values = torch.empty_like(self.values), torch.empty_like(self.values)
        # The map in tiles of a block's size. Windows begin with a block, and reach into further tiles.
        further = (ceil_div(2 * axis.halo, axis.block) for axis in (ys, xs))
        rows, columns = (axis.number + each for axis, each in zip((ys, xs), further, strict=True))
        tiles = q.new_empty(images, rows, ys.block, columns, xs.block, heads, 2, self.values.shape[-1])
        self.edges = tiles[:, ys.number :], tiles[:, :, :, xs.number :]
        self.pieces = []
        for tile, grad in zip(
            tiles.permute(6, 0, 1, 3, 5, 2, 4, 7), (self.to_keys, self.to_values), strict=True
        ):
            grad = self.windows(grad)
            for top, left in itertools.product(range(rows - ys.number + 1), range(columns - xs.number + 1)):
                y, x = top * ys.block, left * xs.block
                piece = grad[:, :, :, :, y : y + ys.block, x : x + xs.block]
                into = tile[:, top : top + ys.number, left : left + xs.number]
                self.pieces.append((into[..., : piece.shape[4], : piece.shape[5], :], piece, top + left))
        tiles = tiles.view(images, rows * ys.block, columns * xs.block, -1)
        self.folded = tiles[:, ys.halo : ys.halo + ys.length, xs.halo : xs.halo + xs.length]

    def differentiate(self, grad: Tensor) -> None:
        """Gradients of queries, keys, values and, in their place, of the scores of offsets."""
        D = grad.shape[-1]
        self.blocks(self.mixed).copy_(grad)
        attention.differentiate(self.p, self.values, self.mixed, out=(self.to_scores, self.to_values))
        torch.bmm(self.to_scores.transpose(1, 2), self.queries[..., :D], out=self.to_keys)
        torch.bmm(self.to_scores, self.keys, out=self.to_queries)
        self.logits.zero_()
        for slide, at in zip(self.slides, self.extra, strict=True):
            slide.copy_(self.blocks(self.to_queries)[..., at])

    def fold(self, out: Tensor) -> None:
        """The adjoint of windows: what all of them have for each key and value, into (b, H, W, 2C)."""
        for each in self.edges:
            each.zero_()
        for into, piece, further in self.pieces:
            into.add_(piece) if further else into.copy_(piece)
        out.copy_(self.folded)


def _slide(scores: Tensor, dim: int, window: int) -> Tensor:
    """The window's share of scores of offsets (..., L): each step along `dim` lies one offset further on."""
    first = scores.storage_offset() + scores.shape[dim] - 1
    strides = [stride - (axis == dim) for axis, stride in enumerate(scores.stride())]
    return scores.as_strided((*scores.shape[:-1], window), strides, first)
