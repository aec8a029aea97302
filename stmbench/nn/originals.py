"""What stands around the mixer in the original networks, where the unified backbone has parts of its own.

Liu et al. 2021, "Swin Transformer" (arXiv:2103.14030): patches of 4x4 pixels, patch merging, blocks without a
layer scale, a LayerNorm before the pooling. Liu et al. 2022, "A ConvNet for the 2020s" (arXiv:2201.03545):
2x2 patches between levels, one residual branch per block, a LayerNorm after the pooling. Wang et al. 2022,
"PVT v2" (arXiv:2106.13797): overlapping patches, of 7x7 pixels and of 3x3 positions between levels, no layer
scale and no maps of positions, which a depthwise convolution in the MLP stands for.

Departure: what is not a whole number of patches is padded with zeros at its end, so that any size may be fed.
"""

from typing import Any

import torch
from timm.layers.mlp import Mlp
from torch import Tensor, nn
from torch.nn import functional as F

from stmbench.nn.block import LAYER_SCALE, Block, Residual
from stmbench.nn.heads import BaseHead
from stmbench.record import Macs


class Patches(nn.Conv2d):
    """Each patch of `size` x `size` positions to one, (B, H, W, C) -> (B, ceil(H/size), ceil(W/size), C')."""

    def __init__(self, in_channels: int, out_channels: int, size: int) -> None:
        super().__init__(in_channels, out_channels, size, stride=size)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - its name in nn.Conv2d
        x = pad_to_whole(input, self.stride[0])
        return super().forward(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class PatchStem(nn.Module):
    """A projection of patches and a LayerNorm, (B, H, W, 3) -> (B, ceil(H/4), ceil(W/4), C).

    The patches are 4x4 and lie side by side, or with `overlap` 7x7 and four pixels apart.
    """

    first_conv = "first"

    def __init__(self, in_channels: int, dim: int, *, overlap: bool, eps: float) -> None:
        super().__init__()
        self.overlap = overlap
        self.first = (
            nn.Conv2d(in_channels, dim, 7, stride=4, padding=3) if overlap else Patches(in_channels, dim, 4)
        )
        self.norm = nn.LayerNorm(dim, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        if self.overlap:
            return self.norm(self.first(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))
        return self.norm(self.first(x))

    def macs(self, height: int, width: int) -> Macs:
        """Multiply-accumulates of one image of `height` x `width` pixels."""
        return Macs(-(-height // 4) * -(-width // 4) * self.first.weight.numel())


class PatchMerging(nn.Module):
    """Two by two neighbours side by side in one vector, a LayerNorm and a projection: Swin's downsampling.

    (B, H, W, C) -> (B, ceil(H/2), ceil(W/2), C').
    """

    def __init__(self, in_dim: int, dim: int, *, eps: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * in_dim, eps=eps)
        self.reduction = nn.Linear(4 * in_dim, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = pad_to_whole(x, 2)
        x = x.unflatten(2, (-1, 2)).unflatten(1, (-1, 2))  # (B, H/2, 2, W/2, 2, C)
        return self.reduction(self.norm(x.permute(0, 1, 3, 4, 2, 5).flatten(3)))  # of (B, H/2, W/2, 4C)

    def macs(self, height: int, width: int) -> Macs:
        """Multiply-accumulates of one image that comes out as `height` x `width` positions."""
        return Macs(height * width * self.reduction.weight.numel())


class NormPatches(nn.Module):
    """A LayerNorm and a projection of 2x2 patches: ConvNeXt's downsampling.

    (B, H, W, C) -> (B, ceil(H/2), ceil(W/2), C').
    """

    def __init__(self, in_dim: int, dim: int, *, eps: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(in_dim, eps=eps)
        self.conv = Patches(in_dim, dim, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.norm(x))

    def macs(self, height: int, width: int) -> Macs:
        """Multiply-accumulates of one image that comes out as `height` x `width` positions."""
        return Macs(height * width * self.conv.weight.numel())


class SingleBlock(Residual):
    """x += drop(gamma * mlp(norm(mixer(x)))): ConvNeXt's block, with one residual branch."""

    def __init__(
        self, dim: int, mixer: nn.Module, *, mlp_ratio: int, norm_eps: float, drop_path: float
    ) -> None:
        super().__init__(dim, mlp_ratio, drop_path)
        self.mixer = mixer
        self.norm = nn.LayerNorm(dim, eps=norm_eps)
        self.mlp = Mlp(dim, self.hidden)
        self.gamma = nn.Parameter(torch.full((dim,), LAYER_SCALE))

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        return self._dropped(x, self.gamma, self._add)

    def _add(self, x: Tensor, scale: Tensor) -> Tensor:
        return torch.addcmul(x, scale, self.mlp(self.norm(self.mixer(x))))


class ConvMlp(nn.Module):
    """An MLP with a depthwise 3x3 convolution before its GELU, (B, H, W, C) -> (B, H, W, C)."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.conv = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(self.fc1(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return self.fc2(self.act(x))


class ConvMlpBlock(Block):
    """x += drop(mixer(norm1(x))), then x += drop(mlp(norm2(x))), its MLP convolutional: PVT v2's block."""

    def __init__(self, dim: int, mixer: nn.Module, **options: Any) -> None:
        super().__init__(dim, mixer, layer_scale=False, **options)
        self.mlp = ConvMlp(dim, self.hidden)

    def mlp_macs(self, height: int, width: int) -> Macs:
        return super().mlp_macs(height, width) + Macs(height * width * 9 * self.hidden)


class PooledHead(BaseHead):
    """Pooling and a linear classifier of features in NCHW, a LayerNorm `before` or `after` the pooling."""

    def __init__(
        self, dim: int, num_classes: int, global_pool: str, drop_rate: float, *, norm: str, eps: float
    ) -> None:
        super().__init__(dim, drop_rate)
        assert norm in ("before", "after", "")
        self.place = norm
        self.norm = nn.LayerNorm(dim, eps=eps) if norm else nn.Identity()
        self.reset(num_classes, global_pool)

    def reset(self, num_classes: int, global_pool: str) -> None:
        if self.place == "after" and global_pool == "catavgmax":
            raise ValueError("This head normalises what it has pooled, once: set global_pool='avg' or 'max'.")
        super().reset(num_classes, global_pool)

    def forward(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        if self.place == "before" or not self.global_pool.pool_type:
            x = self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        x = self.global_pool(x)
        if self.place == "after" and self.global_pool.pool_type:
            x = self.norm(x)
        x = F.dropout(x, self.drop_rate, self.training)
        return x if pre_logits else self.fc(x)

    def macs(self, height: int, width: int) -> Macs:
        """Multiply-accumulates of one image, whatever its size."""
        return Macs(self.fc.weight.numel() if isinstance(self.fc, nn.Linear) else 0)


def pad_to_whole(x: Tensor, size: int) -> Tensor:
    """(B, H, W, C) with zeros at the ends of H and W up to multiples of `size`."""
    rows, columns = -x.shape[1] % size, -x.shape[2] % size
    return F.pad(x, (0, 0, 0, columns, 0, rows)) if rows or columns else x
