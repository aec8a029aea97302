"""Each mixer once more, as slow and obvious loops over positions, heads and keys.

An oracle takes a mixer (for its parameters alone) and x (B, H, W, C), and is differentiable.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

Position = tuple[int, int]


def positions(height: int, width: int) -> list[Position]:
    return [(y, x) for y in range(height) for x in range(width)]


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    queries: list[Position],
    sees: Callable[[Position], Iterable[Any]],
    extra: Callable[[Tensor, Position, Any, int], Tensor | float],
) -> Tensor:
    """Attention over q (queries, h, D) and k, v (keys, h, D), whose keys are named by `sees`.

    `sees(query)` lists (name, row of k and v) of the keys it sees; `extra` scores a query, key and head.
    """
    out = []
    for row, query in enumerate(queries):
        heads = []
        for head in range(q.shape[1]):
            keys = list(sees(query))
            scores = [
                q[row, head] @ k[i, head] * q.shape[2] ** -0.5 + extra(q[row, head], query, name, head)
                for name, i in keys
            ]
            weights = torch.stack(scores).softmax(0)
            heads.append(sum(weight * v[i, head] for weight, (_, i) in zip(weights, keys, strict=True)))
        out.append(torch.cat(heads))
    return torch.stack(out)


def halo(mixer: Any, x: Tensor) -> Tensor:
    images = []
    for image in x:
        height, width, dim = image.shape
        places, heads = positions(height, width), mixer.num_heads
        flat = image.reshape(-1, dim)
        q = (flat @ mixer.q.weight.T).reshape(len(places), heads, -1)
        kv = (flat @ mixer.kv.weight.T).reshape(len(places), heads, 2, dim // heads)

        def sees(query: Position, places: list[Position] = places) -> list[tuple[Position, int]]:
            side = mixer.window
            top, left = query[0] // side * side, query[1] // side * side
            return [
                ((y, x), i)
                for i, (y, x) in enumerate(places)
                if top - 3 <= y < top + side + 3 and left - 3 <= x < left + side + 3
            ]

        def extra(q: Tensor, query: Position, key: Position, head: int) -> Tensor:
            rows = mixer.height_rel[key[0] - query[0] + mixer.window + 8]
            columns = mixer.width_rel[key[1] - query[1] + mixer.window + 8]
            return q @ rows + q @ columns

        y = attend(q, kv[:, :, 0], kv[:, :, 1], places, sees, extra)
        images.append((y @ mixer.proj.weight.T + mixer.proj.bias).reshape(image.shape))
    return torch.stack(images)


def swin(mixer: Any, x: Tensor) -> Tensor:
    images = []
    for image in x:
        height, width, dim = image.shape
        places, heads = positions(height, width), mixer.num_heads
        qkv = image.reshape(-1, dim) @ mixer.qkv.weight.T + mixer.qkv.bias
        q, k, v = qkv.reshape(len(places), 3, heads, dim // heads).unbind(1)

        def window(place: Position, size: tuple[int, int] = (height, width)) -> Position:
            """Windows that start `shift` further down and right, cut off at the image's border."""
            side = mixer.window
            shifts = [mixer.shift if length > side else 0 for length in size]
            return (place[0] - shifts[0]) // side, (place[1] - shifts[1]) // side

        def sees(query: Position, places: list[Position] = places, window: Any = window) -> list[Any]:
            return [(key, i) for i, key in enumerate(places) if window(key) == window(query)]

        def extra(q: Tensor, query: Position, key: Position, head: int) -> Tensor:
            reach = mixer.window - 1
            row = (query[0] - key[0] + reach) * (2 * reach + 1) + query[1] - key[1] + reach
            return mixer.relative_position_bias_table[row, head]

        y = attend(q, k, v, places, sees, extra)
        images.append((y @ mixer.proj.weight.T + mixer.proj.bias).reshape(image.shape))
    return torch.stack(images)


def sra(mixer: Any, x: Tensor) -> Tensor:
    images = []
    for image in x:
        height, width, dim = image.shape
        places, heads, r = positions(height, width), mixer.num_heads, mixer.reduction
        q = (image.reshape(-1, dim) @ mixer.q.weight.T + mixer.q.bias).reshape(len(places), heads, -1)
        coarse = []
        for top in range(0, height, r):
            for left in range(0, width, r):
                if r == 1:
                    coarse.append(image[top, left])
                    continue
                conv, norm = mixer.reduce
                patch = [(y, x) for y, x in positions(r, r) if top + y < height and left + x < width]
                pooled = conv.bias + sum(conv.weight[:, :, y, x] @ image[top + y, left + x] for y, x in patch)
                coarse.append(F.layer_norm(pooled, (dim,), norm.weight, norm.bias, 1e-5))
        kv = torch.stack(coarse) @ mixer.kv.weight.T + mixer.kv.bias
        k, v = kv.reshape(len(coarse), 2, heads, dim // heads).unbind(1)
        keys = [(None, i) for i in range(len(coarse))]
        y = attend(q, k, v, places, lambda _, keys=keys: keys, lambda *_: 0.0)
        images.append((y @ mixer.proj.weight.T + mixer.proj.bias).reshape(image.shape))
    return torch.stack(images)


def depthwise(conv: Any, image: Tensor) -> Tensor:
    """A depthwise convolution of one image (H, W, C) with zeros outside."""
    height, width, _ = image.shape
    size = conv.weight.shape[-1]
    out = []
    for y, x in positions(height, width):
        total = conv.bias
        for dy, dx in positions(size, size):
            near = (y + dy - size // 2, x + dx - size // 2)
            if 0 <= near[0] < height and 0 <= near[1] < width:
                total = total + conv.weight[:, 0, dy, dx] * image[near]
        out.append(total)
    return torch.stack(out).reshape(image.shape)


def dwconv(mixer: Any, x: Tensor) -> Tensor:
    images = []
    for image in x:
        inner = depthwise(mixer.conv, image @ mixer.proj_in.weight.T + mixer.proj_in.bias)
        images.append(inner @ mixer.proj_out.weight.T + mixer.proj_out.bias)
    return torch.stack(images)


def bilinear(image: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """The image (H, W, D) between its pixels at column x and row y, zero outside."""
    height, width, _ = image.shape
    left, top = int(x.floor()), int(y.floor())
    total = image.new_zeros(image.shape[2])
    for row, column in [(top, left), (top, left + 1), (top + 1, left), (top + 1, left + 1)]:
        if 0 <= row < height and 0 <= column < width:
            total = total + (1 - (x - column).abs()) * (1 - (y - row).abs()) * image[row, column]
    return total


def dcnv3(mixer: Any, x: Tensor) -> Tensor:
    images = []
    for image in x:
        height, width, dim = image.shape
        groups = dim // 16
        value = (image @ mixer.value.weight.T + mixer.value.bias).reshape(height, width, groups, 16)
        branch = depthwise(mixer.conv, image)
        branch = F.gelu(F.layer_norm(branch, (dim,), mixer.norm.weight, mixer.norm.bias, 1e-5))
        offset = (branch @ mixer.offset.weight.T + mixer.offset.bias).reshape(height, width, groups, 9, 2)
        weight = (branch @ mixer.modulation.weight.T + mixer.modulation.bias).reshape(
            height, width, groups, 9
        )
        weight = weight.softmax(-1)
        out = []
        for row, column in positions(height, width):
            for group in range(groups):
                total = image.new_zeros(16)
                for point, (dx, dy) in enumerate((dx, dy) for dx in (-1, 0, 1) for dy in (-1, 0, 1)):
                    move = offset[row, column, group, point]
                    sample = bilinear(value[:, :, group], column + dx + move[0], row + dy + move[1])
                    total = total + weight[row, column, group, point] * sample
                out.append(total)
        mixed = torch.stack(out).reshape(height, width, dim)
        images.append(mixed @ mixer.proj.weight.T + mixer.proj.bias)
    return torch.stack(images)


def pool(mixer: Any, x: Tensor) -> Tensor:
    images = []
    for image in x:
        height, width, _ = image.shape
        inner = image @ mixer.proj_in.weight.T + mixer.proj_in.bias
        out = []
        for y, x_ in positions(height, width):
            near = [(y + dy, x_ + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
            inside = [inner[p] for p in near if 0 <= p[0] < height and 0 <= p[1] < width]
            out.append(sum(inside) / len(inside) - inner[y, x_])
        mixed = torch.stack(out).reshape(inner.shape)
        images.append(mixed @ mixer.proj_out.weight.T + mixer.proj_out.bias)
    return torch.stack(images)


def identity(mixer: Any, x: Tensor) -> Tensor:
    inner = x @ mixer.proj_in.weight.T + mixer.proj_in.bias
    return inner @ mixer.proj_out.weight.T + mixer.proj_out.bias
