"""The control that mixes nothing: two pointwise layers, and no position ever sees another.

What a mixer adds to accuracy, and what it costs in time, is told against this one (the identity of
MetaFormer, Yu et al. 2022, arXiv:2210.13452). Departure: the projections around the other mixers are kept,
so that only the exchange between positions is missing.
"""

from torch import Tensor, nn

from stmbench.record import Macs


class Identity(nn.Module):
    """Two linear layers with nothing between them."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.proj_in = nn.Linear(dim, dim)
        self.proj_out = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        return self.proj_out(self.proj_in(x))

    def macs(self, height: int, width: int) -> Macs:
        """Multiply-accumulates of one image of `height` x `width` positions."""
        return Macs(2 * height * width * self.dim**2)
