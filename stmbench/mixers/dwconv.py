"""Depthwise convolution between two pointwise ones.

The spatial operator of ConvNeXt (Liu et al. 2022, arXiv:2201.03545) as the mixer of the unified backbone
(Hu et al. 2022, arXiv:2211.05781): pointwise, depthwise 7x7, pointwise, all with bias and nothing between
them. A pointwise convolution on channels-last activations is a linear layer, and is one here.
"""

from torch import Tensor, nn

from stmbench.mixers.layers import ChannelsLastConv2d
from stmbench.record import Macs

KERNEL = 7


class DepthwiseConv(nn.Module):
    """Mix each channel with its 7x7 neighbourhood, zeros outside the image."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.proj_in = nn.Linear(dim, dim)
        self.conv = ChannelsLastConv2d(dim, dim, KERNEL, padding=KERNEL // 2, groups=dim)
        self.proj_out = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        return self.proj_out(self.conv(self.proj_in(x)))

    def macs(self, height: int, width: int) -> Macs:
        """Multiply-accumulates of one image of `height` x `width` positions."""
        return Macs(height * width * self.dim * (2 * self.dim + KERNEL**2))
