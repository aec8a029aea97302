"""Shifted-window attention with a learnt bias per relative position.

Liu et al. 2021, "Swin Transformer" (arXiv:2103.14030). Departures: each axis is treated by itself, so that
an axis not longer than the window is one window of its own length, without shift; any other axis is padded
at its end to whole windows, and padded keys are masked out. Masks and biases are made anew for every size.

Shapes: B batch, H x W positions, n x m windows of a x b positions, T = a b, C channels, h heads, D = C / h.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stmbench.mixers.layers import ceil_div, check_heads
from stmbench.record import Macs

WINDOW = 7


class ShiftedWindowAttention(nn.Module):
    """Attention within 7x7 windows, laid out after the map is moved `shift` positions up and left."""

    def __init__(self, dim: int, *, num_heads: int, shift: int) -> None:
        super().__init__()
        check_heads(dim, num_heads)
        self.dim, self.num_heads, self.shift = dim, num_heads, shift
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        # Row (dy + 6) * 13 + (dx + 6) is the bias of a key dy above and dx to the left of its query.
        self.relative_position_bias_table = nn.Parameter(torch.empty((2 * WINDOW - 1) ** 2, num_heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        B, H, W, C = x.shape
        h, D = self.num_heads, C // self.num_heads
        (a, n, down), (b, m, right) = self._windows(H), self._windows(W)
        qkv = self.qkv(x)  # (B, H, W, 3C)
        if padded := n * a > H or m * b > W:
            qkv = F.pad(qkv, (0, 0, 0, m * b - W, 0, n * a - H))
        if shifted := down > 0 or right > 0:
            qkv = qkv.roll((-down, -right), (1, 2))
        qkv = qkv.reshape(B, n, a, m, b, 3, h, D).permute(5, 0, 1, 3, 6, 2, 4, 7)
        q, k, v = qkv.reshape(3, B, n * m * h, a * b, D)  # each (B, n m h, T, D)
        bias = self._bias(a, b)  # (1, h, T, T)
        if padded or shifted:
            bias = bias.masked_fill(~self._visible(H, W, x.device), float("-inf")).flatten(0, 1)[None]
        elif n * m > 1:
            bias = bias.repeat(1, n * m, 1, 1)  # (1, n m h, T, T)
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype))
        x = x.reshape(B, n, m, h, a, b, D).permute(0, 1, 4, 2, 5, 3, 6)
        # A real copy, not a view: its layout would depend on the kernel of attention, and export fixes views.
        x = x.clone(memory_format=torch.contiguous_format).reshape(B, n * a, m * b, C)
        if shifted:
            x = x.roll((down, right), (1, 2))
        return self.proj(x[:, :H, :W])

    def _windows(self, length: int) -> tuple[int, int, int]:
        """Size, number and shift of the windows along an axis."""
        if length <= WINDOW:
            return length, 1, 0
        return WINDOW, ceil_div(length, WINDOW), self.shift

    def _bias(self, a: int, b: int) -> Tensor:
        """The bias between all positions of an a x b window, (1, h, T, T)."""
        device = self.relative_position_bias_table.device
        y, x = torch.arange(a, device=device), torch.arange(b, device=device)
        rows = (y[:, None] - y + WINDOW - 1)[:, None, :, None]  # (a, 1, a, 1)
        columns = (x[:, None] - x + WINDOW - 1)[None, :, None, :]  # (1, b, 1, b)
        index = (rows * (2 * WINDOW - 1) + columns).reshape(a * b, a * b)
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
        window, number, shift = self._windows(length)
        position = torch.arange(number * window, device=device)  # in the shifted map
        wrapped = position >= number * window - shift
        padding = ((position + shift) % (number * window)) >= length
        region = (2 * wrapped + padding).reshape(number, window)
        return region[:, :, None] == region[:, None, :]

    def macs(self, height: int, width: int) -> Macs:
        """Multiply-accumulates of one image of `height` x `width` positions; padding attends too."""
        c, n = self.dim, height * width
        (a, rows, _), (b, columns, _) = self._windows(height), self._windows(width)
        scores = rows * columns * (a * b) ** 2
        padded = scores - self._pairs(height) * self._pairs(width)
        return Macs(4 * n * c * c + 2 * scores * c, padding=2 * padded * c)

    def _pairs(self, length: int) -> int:
        """How often two positions of the image share a window along an axis of `length`."""
        window, number, shift = self._windows(length)
        size = window * number
        inside = [(position + shift) % size < length for position in range(size)]  # in the shifted map
        return sum(sum(inside[first : first + window]) ** 2 for first in range(0, size, window))
