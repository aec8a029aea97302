"""Shifted-window attention with a learnt bias per relative position.

Liu et al. 2021, "Swin Transformer" (arXiv:2103.14030). Departures: each axis is treated by itself, so that
an axis not longer than the window is one window of its own length, without shift; any other axis is padded
at its end to whole windows, and padded keys are masked out. Masks and biases are made anew for every size.

`copied` and `chunked` are not twice differentiable; the others are as far as torch's attention is, `plain`
anyhow.

Shapes: B batch, H x W positions, n x m windows of a x b positions, T = a b, C channels, h heads, D = C / h.
"""

import functools
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from stmbench.mixers import attention
from stmbench.mixers.backends import PLAIN, Backend, BackendMixer
from stmbench.mixers.layers import ceil_div, check_heads
from stmbench.record import Macs

WINDOW = 7  # of the published networks, for images of 224 pixels


class _Axis(NamedTuple):
    """How windows lie along one axis."""

    number: int
    window: int
    shift: int

    @property
    def size(self) -> int:
        return self.number * self.window

    def positions(self) -> np.ndarray:
        """Where each window takes its positions from, (n, a): the last one wraps around."""
        return ((np.arange(self.size) + self.shift) % self.size).reshape(self.number, self.window)


class _Layout(NamedTuple):
    """How a map is cut into windows and heads."""

    ys: _Axis
    xs: _Axis
    heads: int

    @property
    def groups(self) -> int:
        return self.ys.number * self.xs.number * self.heads

    @property
    def positions(self) -> int:
        return self.ys.window * self.xs.window

    def pad(self, x: Tensor) -> Tensor:
        """(B, H, W, X) -> (B, n a, m b, X)."""
        rows, columns = self.ys.size - x.shape[1], self.xs.size - x.shape[2]
        return F.pad(x, (0, 0, 0, columns, 0, rows)) if rows or columns else x

    def cut(self, x: Tensor, parts: int) -> Tensor:
        """(B, n a, m b, k C) -> (k, B n m h, T, D), moved and cut in one go."""
        order = torch.from_numpy(_order(self, parts)).to(x.device)  # (k, n m h T)
        first = torch.arange(x.shape[0], dtype=order.dtype, device=x.device)[:, None] * order.numel()
        rows = x.reshape(-1, x.shape[-1] // parts // self.heads)
        windows = torch.index_select(rows, 0, (order[:, None] + first).view(-1))
        return windows.view(parts, -1, self.positions, rows.shape[-1])

    def join(self, windows: Tensor, out: Tensor) -> Tensor:
        """The way back, into `out`."""
        parts, D = windows.shape[0], windows.shape[-1]
        part, place = (torch.from_numpy(each).to(out.device) for each in _places(self, parts))
        number = self.groups * self.positions  # of an image's vectors in each part
        first = torch.arange(out.shape[0], dtype=place.dtype, device=out.device)[:, None] * number
        back = part * (out.shape[0] * number) + place + first
        torch.index_select(windows.view(-1, D), 0, back.view(-1), out=out.view(-1, D))
        return out


@functools.lru_cache(maxsize=32)
def _order(layout: _Layout, parts: int) -> np.ndarray:
    """Which vector (D) of an image (n a, m b, k, h) comes where in its windows (k, n m h T)."""
    ys, xs, heads = layout
    vectors = np.arange(ys.size * xs.size * parts * heads, dtype=np.int32)
    vectors = vectors.reshape(ys.size, xs.size, parts, heads)
    windows = vectors[ys.positions()][:, :, xs.positions()]  # (n, a, m, b, k, h)
    return windows.transpose(4, 0, 2, 5, 1, 3).reshape(parts, -1)


@functools.lru_cache(maxsize=32)
def _places(layout: _Layout, parts: int) -> tuple[np.ndarray, np.ndarray]:
    """The way back: where each vector of an image lies, the part and the place within it."""
    order = _order(layout, parts)
    back = np.empty(order.size, dtype=np.int32)
    back[order.ravel()] = np.arange(order.size, dtype=np.int32)
    part, place = np.divmod(back, np.int32(order.shape[1]))
    return part, place


class ShiftedWindowAttention(BackendMixer):
    """Attention within square windows, laid out after the map is moved `shift` positions up and left."""

    def __init__(self, dim: int, *, num_heads: int, shift: int, window: int = WINDOW) -> None:
        super().__init__()
        check_heads(dim, num_heads)
        self.dim, self.num_heads, self.shift, self.window = dim, num_heads, shift, window
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        # For windows of 7, row (dy + 6) * 13 + (dx + 6) is that of a key dy above and dx left of its query.
        self.relative_position_bias_table = nn.Parameter(torch.empty((2 * window - 1) ** 2, num_heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        return self.backend(x).run(self, x)

    def layout(self, x: Tensor) -> _Layout:
        return _Layout(self._axis(x.shape[1]), self._axis(x.shape[2]), self.num_heads)

    def bias(self, height: int, width: int) -> Tensor:
        """What is added to scores: (h, T, T) or, where windows differ, (n m h, T, T)."""
        ys, xs = self._axis(height), self._axis(width)
        bias = self._bias(ys.window, xs.window)
        if ys.size > height or xs.size > width or ys.shift or xs.shift:
            bias = bias.masked_fill(~self._visible(height, width, bias.device), float("-inf"))
        return bias.flatten(0, -3)

    def _axis(self, length: int) -> _Axis:
        """The windows along an axis."""
        if length <= self.window:
            return _Axis(1, length, 0)
        return _Axis(ceil_div(length, self.window), self.window, self.shift)

    def _bias(self, a: int, b: int) -> Tensor:
        """The bias between all positions of an a x b window, (1, h, T, T)."""
        device = self.relative_position_bias_table.device
        y, x = torch.arange(a, device=device), torch.arange(b, device=device)
        rows = (y[:, None] - y + self.window - 1)[:, None, :, None]  # (a, 1, a, 1)
        columns = (x[:, None] - x + self.window - 1)[None, :, None, :]  # (1, b, 1, b)
        index = (rows * (2 * self.window - 1) + columns).reshape(a * b, a * b)
        return F.embedding(index, self.relative_position_bias_table).permute(2, 0, 1)[None]

    def _visible(self, height: int, width: int, device: torch.device) -> Tensor:
        """Which keys each query of each window sees, (n m, 1, T, T)."""
        rows = self._same_region(height, device)[:, None, :, None, :, None]  # (n, 1, a, 1, a, 1)
        columns = self._same_region(width, device)[None, :, None, :, None, :]  # (1, m, 1, b, 1, b)
        return (rows & columns).flatten(0, 1).flatten(1, 2).flatten(2, 3)[:, None]

    def _same_region(self, length: int, device: torch.device) -> Tensor:
        """Which positions of each window along one axis may meet, (n, a, a).

        A shifted map wraps around: the last window holds positions of both ends, which are no neighbours.
        Padding is a region of its own rather than unseen by all, so that no query is left without a key.
        """
        number, window, shift = self._axis(length)
        position = torch.arange(number * window, device=device)  # in the shifted map
        wrapped = position >= number * window - shift
        padding = ((position + shift) % (number * window)) >= length
        region = (2 * wrapped + padding).reshape(number, window)
        return region[:, :, None] == region[:, None, :]

    def macs(self, height: int, width: int) -> Macs:
        """Multiply-accumulates of one image of `height` x `width` positions; padding attends too."""
        c, n = self.dim, height * width
        (rows, a, _), (columns, b, _) = self._axis(height), self._axis(width)
        scores = rows * columns * (a * b) ** 2
        padded = scores - self._pairs(height) * self._pairs(width)
        return Macs(4 * n * c * c + 2 * scores * c, padding=2 * padded * c)

    def _pairs(self, length: int) -> int:
        """How often two positions of the image share a window along an axis of `length`."""
        number, window, shift = self._axis(length)
        size = window * number
        inside = [(position + shift) % size < length for position in range(size)]  # in the shifted map
        return sum(sum(inside[first : first + window]) ** 2 for first in range(0, size, window))


def _attend(mixer: ShiftedWindowAttention, x: Tensor, attend: Callable[..., Tensor]) -> Tensor:
    """By `attend(q, k, v, bias)` of (B, n m h, T, D) and a bias (1, n m h, T, T)."""
    B, H, W, C = x.shape
    ys, xs, h = layout = mixer.layout(x)
    (n, a, down), (m, b, right) = ys, xs
    qkv = layout.pad(mixer.qkv(x))  # (B, n a, m b, 3C)
    if down or right:
        qkv = qkv.roll((-down, -right), (1, 2))
    qkv = qkv.reshape(B, n, a, m, b, 3, h, C // h).permute(5, 0, 1, 3, 6, 2, 4, 7)
    q, k, v = qkv.reshape(3, B, layout.groups, layout.positions, C // h)
    bias = mixer.bias(H, W)
    out = attend(q, k, v, bias.repeat(layout.groups // bias.shape[0], 1, 1)[None])
    out = out.reshape(B, n, m, h, a, b, C // h).permute(0, 1, 4, 2, 5, 3, 6)
    # A real copy, not a view: its layout would depend on the kernel of attention, and export fixes views.
    out = out.clone(memory_format=torch.contiguous_format).reshape(B, ys.size, xs.size, C)
    if down or right:
        out = out.roll((down, right), (1, 2))
    return mixer.proj(out[:, :H, :W])


def _copied(mixer: ShiftedWindowAttention, x: Tensor) -> Tensor:
    H, W = x.shape[1:3]
    layout = mixer.layout(x)
    out: Any = _CopiedSwin.apply(layout.pad(mixer.qkv(x)), mixer.bias(H, W), layout)
    return mixer.proj(out[:, :H, :W])


class _CopiedSwin(torch.autograd.Function):
    """qkv (B, n a, m b, 3C), bias (h or n m h, T, T) -> (B, n a, m b, C).

    A shifted map is cut where it lies, and never moved. Keeps windows and probabilities.
    """

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, bias: Tensor, layout: _Layout) -> Tensor:
        q, k, v = windows = layout.cut(qkv, 3)
        p = attention.probabilities(q, k, scale=q.shape[-1] ** -0.5, bias=bias)
        ctx.save_for_backward(windows, p)
        ctx.layout, ctx.bias = layout, bias.shape
        return layout.join(torch.bmm(p, v)[None], qkv.new_empty(*qkv.shape[:3], qkv.shape[3] // 3))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:  # pyright: ignore
        (windows, p), layout = ctx.saved_tensors, ctx.layout
        to_windows, scores = _differentiate(windows, p, layout.cut(grads[0], 1)[0])
        to_qkv = grads[0].new_empty(*grads[0].shape[:3], 3 * grads[0].shape[3])
        return layout.join(to_windows, to_qkv), scores.view(-1, *ctx.bias).sum(0), None


def _differentiate(windows: Tensor, p: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of windows (3, N, T, D) and their scores (N, T, T), from that of what they mix (N, T, D)."""
    q, k, v = windows
    to_q, to_k, to_v = to_windows = torch.empty_like(windows)
    scores = torch.empty_like(p)
    attention.differentiate(p, v, grad, out=(scores, to_v))
    scale = q.shape[-1] ** -0.5
    attention.scaled(scores, k, scale, out=to_q)
    attention.scaled(scores.transpose(1, 2), q, scale, out=to_k)
    return to_windows, scores


def _flex(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    bias = bias[0]

    def score(score: Tensor, image: Tensor, group: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return score + bias[group, query, key]

    return attention.flex(q, k, v, score)


def _chunked(mixer: ShiftedWindowAttention, x: Tensor) -> Tensor:
    H, W = x.shape[1:3]
    layout = mixer.layout(x)
    qkv = layout.pad(mixer.qkv(x))
    out: Any = _ChunkedSwin.apply(qkv, mixer.bias(H, W).to(qkv.dtype), layout)
    return mixer.proj(out[:, :H, :W])


class _ChunkedSwin(torch.autograd.Function):
    """qkv (B, n a, m b, 3C), bias (h or n m h, T, T) -> (B, n a, m b, C).

    Windows and scores are made a few images at a time, and once more in the backward pass.
    """

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, bias: Tensor, layout: _Layout) -> Tensor:
        ctx.save_for_backward(qkv, bias)
        ctx.layout = layout
        out = qkv.new_empty(*qkv.shape[:3], qkv.shape[3] // 3)
        for part in _parts(layout, qkv):
            q, k, v = layout.cut(qkv[part], 3)
            q, k, v = (each.view(-1, *bias.shape[:2], each.shape[-1]) for each in (q, k, v))
            mixed = attention.fused(q, k, v, bias[None])
            layout.join(mixed.reshape(1, -1, *mixed.shape[2:]), out[part])
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:  # pyright: ignore
        (qkv, bias), layout = ctx.saved_tensors, ctx.layout
        to_qkv, to_bias = torch.empty_like(qkv), torch.zeros_like(bias)
        for part in _parts(layout, qkv):
            q, k, _ = windows = layout.cut(qkv[part], 3)
            p = attention.probabilities(q, k, scale=q.shape[-1] ** -0.5, bias=bias)
            to_windows, scores = _differentiate(windows, p, layout.cut(grads[0][part], 1)[0])
            to_bias += scores.view(-1, *bias.shape).sum(0)
            layout.join(to_windows, to_qkv[part])
        return to_qkv, to_bias, None


def _parts(layout: _Layout, qkv: Tensor) -> list[slice]:
    T = layout.positions
    numbers = layout.groups * 2 * T * T + 3 * qkv[0].numel()
    return attention.portions(qkv.shape[0], numbers * qkv.element_size())


ShiftedWindowAttention.backends = (
    Backend(
        "copied",
        "training, eagerly on a CPU in float32",
        _copied,
        lambda call: "it is not compiled" if call.compiling else "",
        lambda call: call.device == "cpu" and call.grad and call.dtype not in attention.HALVES,
    ),
    Backend(
        "chunked",
        "inference, eagerly on a CPU in float32, unless the map is tiny",
        _chunked,
        attention.refuses_chunks,
        # Training takes longer than by `copied`, but less memory: to be forced where that counts.
        lambda call: attention.best_chunked(call) and call.dtype not in attention.HALVES,
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
        partial(_attend, attend=attention.fused),
        best=attention.best_fused,
    ),
    Backend(PLAIN, "always", partial(_attend, attend=attention.plain)),
)
