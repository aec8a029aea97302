"""Deformable convolution v3: nine modulated samples at learnt offsets, per group of 16 channels.

Wang et al. 2023, "InternImage" (arXiv:2211.05778). No departure: per group g and position p,
y_g(p) = sum_k m_gk(p) x_g(p + p_k + o_gk(p)), bilinear between pixels and zero outside the image, with the
offsets o and the weights m (a softmax over k) from a depthwise 3x3 branch. Plain `grid_sample`, in at least
float32 whatever the autocast: bfloat16 cannot tell neighbouring pixels of a large map apart.

Shapes: B batch, H x W positions, N = H W, C channels, G = C / 16 groups, K = 9 points.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stmbench.mixers.layers import ChannelsLastConv2d
from stmbench.record import Macs

GROUP = 16  # channels that share offsets
POINTS = 9


class DeformableConvV3(nn.Module):
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
        B, H, W, _ = x.shape
        value = self.value(x)
        x = F.gelu(self.norm(self.conv(x)))
        offset = self.offset(x).reshape(B, H, W, self.groups, POINTS, 2)
        modulation = self.modulation(x).reshape(B, H, W, self.groups, POINTS).softmax(-1)
        return self.proj(_sample(value, offset, modulation).to(value.dtype))

    def macs(self, height: int, width: int) -> Macs:
        """Multiply-accumulates of one image, sampling included: 4 bilinear and 1 modulation per point."""
        branch = self.dim * (9 + self.groups * POINTS * 3)
        return Macs(height * width * (2 * self.dim**2 + branch + 5 * POINTS * self.dim))


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
