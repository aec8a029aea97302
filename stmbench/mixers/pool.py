"""The control without weights: the mean of the 3x3 neighbourhood minus the position itself.

Yu et al. 2022, "MetaFormer Is Actually What You Need for Vision" (arXiv:2111.11418); the mean leaves out
what lies outside the image. Departure: the projections around the other mixers are kept.
"""

from torch import Tensor, nn
from torch.nn import functional as F

from stmbench.record import Macs

KERNEL = 3


class Pool(nn.Module):
    """Average pooling minus its input, between two linear layers."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.proj_in = nn.Linear(dim, dim)
        self.proj_out = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        x = self.proj_in(x)
        mean = F.avg_pool2d(x.permute(0, 3, 1, 2), KERNEL, 1, KERNEL // 2, count_include_pad=False)
        return self.proj_out(mean.permute(0, 2, 3, 1) - x)

    def macs(self, height: int, width: int) -> Macs:
        """Multiply-accumulates of one image of `height` x `width` positions; a mean is additions."""
        return Macs(2 * height * width * self.dim**2)
