"""Deformable convolution v3: nine modulated samples at learnt offsets, per group of 16 channels.

Wang et al. 2023, "InternImage" (arXiv:2211.05778). No departure: per group g and position p,
y_g(p) = sum_k m_gk(p) x_g(p + p_k + o_gk(p)), bilinear between pixels and zero outside the image, with the
offsets o and the weights m (a softmax over k) from a depthwise 3x3 branch. Sampled in at least float32
whatever the autocast: bfloat16 cannot tell neighbouring pixels of a large map apart.

On a CPU, `planar` takes every product with the positions last, as `grid_sample` wants them: nothing is
transposed. It samples a few images at a time, so that samples stay in the cache and are never all in memory,
and once more in the backward pass, which keeps none. Twice differentiable by `plain` alone.

Shapes: B batch, H x W positions, N = H W, C channels, G = C / 16 groups, K = 9 points; b images of a piece.
"""

import functools
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from stmbench.mixers.backends import PLAIN, Backend, BackendMixer, Call, refuses_batch_loop
from stmbench.mixers.layers import ChannelsLastConv2d
from stmbench.record import Macs

GROUP = 16  # channels that share offsets
POINTS = 9
PIECE = 16 << 20  # bytes of samples that are held at a time: what the caches of two cores hold


class DeformableConvV3(BackendMixer):
    """A 3x3 convolution whose points move and whose weights follow the content."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        if dim % GROUP:
            raise ValueError(f"dim {dim} is not a multiple of {GROUP}, the channels of a group.")
        self.dim, self.groups = dim, dim // GROUP
        self.value = nn.Linear(dim, dim)
        self.conv = ChannelsLastConv2d(dim, dim, 3, padding=1, groups=dim)
        self.norm = nn.LayerNorm(dim)
        self.offset = nn.Linear(dim, self.groups * POINTS * 2)  # (dx, dy) per point, in pixels
        self.modulation = nn.Linear(dim, self.groups * POINTS)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        return self.backend(x).run(self, x)

    def branch(self, x: Tensor) -> Tensor:
        """What offsets and weights are computed from, (B, H, W, C)."""
        return F.gelu(self.norm(self.conv(x)))

    def moves(self, scale: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Weight (3 G K, C) and bias of one product for a group's K offsets dx, K dy, K logits, and so on.

        The offsets are in pixels, or multiplied by a `scale` (2, 1) of x and y.
        """
        points = (self.groups, POINTS, -1)
        offset, modulation = ((each.weight, each.bias[:, None]) for each in (self.offset, self.modulation))
        if scale is not None:
            offset = ((each.unflatten(0, (-1, 2)) * scale).flatten(0, 1) for each in offset)
        weight, bias = (
            torch.cat([of.unflatten(0, points), by.unflatten(0, points)], 2).transpose(1, 2).flatten(0, 2)
            for of, by in zip(offset, modulation, strict=True)
        )
        return weight, bias[:, 0]

    def macs(self, height: int, width: int) -> Macs:
        """Multiply-accumulates of one image, sampling included: 4 bilinear and 1 modulation per point."""
        branch = self.dim * (9 + self.groups * POINTS * 3)
        return Macs(height * width * (2 * self.dim**2 + branch + 5 * POINTS * self.dim))


def _plain(mixer: DeformableConvV3, x: Tensor) -> Tensor:
    B, H, W, _ = x.shape
    value = mixer.value(x)
    x = mixer.branch(x)
    offset = mixer.offset(x).reshape(B, H, W, mixer.groups, POINTS, 2)
    modulation = mixer.modulation(x).reshape(B, H, W, mixer.groups, POINTS).softmax(-1)
    return mixer.proj(_sample(value, offset, modulation).to(value.dtype))


def _sample(value: Tensor, offset: Tensor, modulation: Tensor) -> Tensor:
    """Weighted sum of nine bilinear samples, (B, H, W, C), in at least float32.

    Takes values (B, H, W, C), offsets (B, H, W, G, K, 2) in pixels and weights (B, H, W, G, K).
    """
    B, H, W, C = value.shape
    G = offset.shape[3]
    dtype = torch.promote_types(value.dtype, torch.float32)
    with torch.autocast(value.device.type, enabled=False):
        value, offset, modulation = value.to(dtype), offset.to(dtype), modulation.to(dtype)
        # grid_sample puts the centre of pixel i of n at (2 i + 1) / n - 1.
        size = torch.stack([offset.new_full((), W), offset.new_full((), H)])
        grid = (2 * (_grid(H, W, offset) + offset) + 1) / size - 1
        grid = grid.permute(0, 3, 4, 1, 2, 5).reshape(B * G, POINTS, H * W, 2)
        image = value.reshape(B, H, W, G, C // G).permute(0, 3, 4, 1, 2).reshape(B * G, C // G, H, W)
        samples = F.grid_sample(image, grid, align_corners=False)  # (B G, C / G, K, N)
        weights = modulation.permute(0, 3, 4, 1, 2).reshape(B * G, 1, POINTS, H * W)
        mixed = (samples * weights).sum(2)  # (B G, C / G, N)
        return mixed.reshape(B, G, C // G, H, W).permute(0, 3, 4, 1, 2).reshape(B, H, W, C)


def _grid(height: int, width: int, like: Tensor) -> Tensor:
    """Where the nine points of each position lie before they move, (H, W, 1, K, 2) as (x, y), x-major."""
    near = torch.arange(-1, 2, device=like.device, dtype=like.dtype)
    points = torch.stack(torch.meshgrid(near, near, indexing="ij"), -1).reshape(POINTS, 2)
    ys = torch.arange(height, device=like.device, dtype=like.dtype)
    xs = torch.arange(width, device=like.device, dtype=like.dtype)
    centres = torch.stack(torch.meshgrid(xs, ys, indexing="xy"), -1)  # (H, W, 2)
    return centres[:, :, None, None] + points


def _planar(mixer: DeformableConvV3, x: Tensor) -> Tensor:
    B, H, W, C = x.shape
    weight, bias = mixer.moves(x.new_tensor([[2 / W], [2 / H]]))  # as grid_sample counts
    value = torch.addmm(mixer.value.bias[:, None], mixer.value.weight, x.reshape(-1, C).t())  # (C, B N)
    moves = torch.addmm(bias[:, None], weight, mixer.branch(x).reshape(-1, C).t())  # (3 G K, B N)
    value, moves = (each.reshape(mixer.groups, -1, B, H * W) for each in (value, moves))
    mixed: Any = _PlanarSample.apply(value, moves, H, W)
    return mixer.proj(mixed.reshape(C, -1).t()).reshape(B, H, W, C)


class _PlanarSample(torch.autograd.Function):
    """Values (G, C / G, B, N), offsets and logits (G, 3 K, B, N) -> weighted sums (G, C / G, B, N).

    Offsets are in the coordinates of grid_sample, in which the image reaches from -1 to 1.
    """

    @staticmethod
    def forward(ctx: Any, value: Tensor, moves: Tensor, H: int, W: int) -> Tensor:  # noqa: N803
        ctx.save_for_backward(value, moves)
        ctx.size = H, W
        mixed = torch.empty_like(value)
        for piece, image, grid, weights in _pieces(value, moves, H, W):
            sums = _dot(_samples(image, grid), weights[:, None], 2)
            _cut(mixed, piece).copy_(sums.reshape(-1, len(value), GROUP, H * W))
        return mixed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:  # pyright: ignore
        value, moves = ctx.saved_tensors
        H, W = ctx.size
        G, _, _, N = value.shape
        to_value, to_moves = torch.empty_like(value), torch.empty_like(moves)
        to_offset, to_logits = to_moves.split([2 * POINTS, POINTS], 1)
        for piece, image, grid, weights in _pieces(value, moves, H, W):
            near = _cut(grads[0], piece).to(grid.dtype).reshape(-1, GROUP, 1, N)
            samples = _samples(image, grid)
            inner = _dot(samples, near, 1).mul_(weights)  # (b G, K, N)
            logits = torch.addcmul(inner, weights, inner.sum(1, keepdim=True), value=-1)
            torch.mul(near, weights[:, None], out=samples)
            to_image, to_grid = torch.ops.aten.grid_sampler_2d_backward(
                samples.flatten(2)[:, :, None], image, grid, 0, 0, False, [True, True]
            )
            _cut(to_value, piece).copy_(to_image.reshape(-1, G, GROUP, N))
            _cut(to_logits, piece).copy_(logits.reshape(-1, G, POINTS, N))
            to_grid = to_grid.reshape(-1, G, POINTS, N, 2).movedim(-1, 2)
            _cut(to_offset, piece).unflatten(2, (2, POINTS)).copy_(to_grid)
        return to_value, to_moves, None, None


def _pieces(
    value: Tensor, moves: Tensor, height: int, width: int
) -> Iterator[tuple[slice, Tensor, Tensor, Tensor]]:
    """Some images at a time: which, (b G, C / G, H, W), their grid (b G, 1, K N, 2), weights (b G, K, N)."""
    G, _, B, N = value.shape
    dtype = torch.promote_types(value.dtype, torch.float32)
    places = torch.from_numpy(_places(height, width, str(dtype).removeprefix("torch."))).to(value.device)
    # grid_sample is parallel over images and groups.
    images = max(1, PIECE // (POINTS * G * GROUP * N * dtype.itemsize), torch.get_num_threads() // G)
    for start in range(0, B, images):
        piece = slice(start, start + images)
        image = _cut(value, piece).to(dtype).reshape(-1, GROUP, height, width)
        offset, logits = _cut(moves, piece).to(dtype).split([2 * POINTS, POINTS], 2)
        # grid_sample takes x and y from planes as well.
        grid = (offset.unflatten(2, (2, POINTS)) + places).reshape(-1, 1, 2, POINTS * N)
        yield piece, image, grid.transpose(2, 3), logits.softmax(2).reshape(-1, POINTS, N)


@functools.lru_cache(maxsize=16)  # of images for detection one is 5 MB
def _places(height: int, width: int, dtype: str) -> np.ndarray:
    """Where the points of each position lie before they move, (2, K, N), as grid_sample counts.

    It puts the centre of pixel i of n at (2 i + 1) / n - 1.
    """
    near = np.arange(-1, 2)
    y, x = np.divmod(np.arange(height * width), width)
    x, y = x + np.repeat(near, 3)[:, None], y + np.tile(near, 3)[:, None]
    return np.stack([(2 * x + 1) / width - 1, (2 * y + 1) / height - 1]).astype(dtype)


def _samples(image: Tensor, grid: Tensor) -> Tensor:
    """(b G, C / G, K, N), taken as one row, with which grid_sample is faster than with one per point."""
    return F.grid_sample(image, grid, align_corners=False).reshape(*image.shape[:2], POINTS, -1)


def _dot(x: Tensor, y: Tensor, dim: int) -> Tensor:
    """The sum of x y along a dimension; their product, of the size of all samples, is never written."""
    pairs = zip(x.unbind(dim), y.unbind(dim), strict=True)
    total = torch.mul(*next(pairs))
    for pair in pairs:
        total.addcmul_(*pair)
    return total


def _cut(planes: Tensor, piece: slice) -> Tensor:
    """A view of some images of planes (G, D, B, N), as (b, G, D, N)."""
    return planes[:, :, piece].permute(2, 0, 1, 3)


def _triton(mixer: DeformableConvV3, x: Tensor) -> Tensor:
    mixed = torch.ops.stmbench.dcnv3(mixer.value(x), F.linear(mixer.branch(x), *mixer.moves()))
    return mixer.proj(mixed)


def _no_triton(call: Call) -> str:
    interpreted = call.device == "cpu" and os.environ.get("TRITON_INTERPRET") == "1"
    if call.device != "cuda" and not interpreted:
        return "it is for an NVIDIA GPU"
    if call.exporting:
        return "it is not exported"
    if call.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"not in {str(call.dtype).removeprefix('torch.')}"
    return _runs_not(call.device)


@torch.compiler.assume_constant_result
def _runs_not(device: str) -> str:
    return _tried(device)


@functools.cache
def _tried(device: str) -> str:
    """Why Triton does not run on this machine, or ""; imports the kernels, which registers them."""
    try:
        from stmbench.mixers import dcnv3_triton

        dcnv3_triton.trial(device)
    except Exception as error:
        # Whatever a compiler, a driver or an old GPU may raise; the plain path then answers.
        return f"Triton does not run here: {repr(error).splitlines()[0][:200]}"
    return ""


DeformableConvV3.backends = (
    Backend(
        "triton",
        "on an NVIDIA GPU, where Triton runs",
        _triton,
        _no_triton,
        lambda call: call.device == "cuda",
    ),
    Backend("planar", "on a CPU, not compiled", _planar, refuses_batch_loop),
    Backend(PLAIN, "always: grid_sample, which compiles and exports", _plain),
)
