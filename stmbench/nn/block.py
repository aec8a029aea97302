"""The unified block: a mixer and an MLP, each normalised before, scaled and dropped after, and added.

Hu et al. 2022 (arXiv:2211.05781), with the layer scale of Touvron et al. 2021 (arXiv:2103.17239) and the
stochastic depth of Huang et al. 2016 (arXiv:1603.09382). Activations are (B, H, W, C) throughout.
"""

from typing import Any

import torch
from timm.layers.drop import DropPath
from timm.layers.mlp import Mlp
from torch import Tensor, nn

from stmbench.record import Macs

LAYER_SCALE = 1e-6


class Block(nn.Module):
    """x += drop(gamma1 * mixer(norm1(x))), then x += drop(gamma2 * mlp(norm2(x)))."""

    mixer: Any  # a module that maps (B, H, W, C) to itself and declares macs(height, width)

    def __init__(
        self, dim: int, mixer: nn.Module, *, mlp_ratio: int, norm_eps: float, drop_path: float
    ) -> None:
        super().__init__()
        self.dim, self.hidden = dim, dim * mlp_ratio
        self.norm1 = nn.LayerNorm(dim, eps=norm_eps)
        self.mixer = mixer
        self.gamma1 = nn.Parameter(torch.full((dim,), LAYER_SCALE))
        self.norm2 = nn.LayerNorm(dim, eps=norm_eps)
        self.mlp = Mlp(dim, self.hidden)
        self.gamma2 = nn.Parameter(torch.full((dim,), LAYER_SCALE))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        x = x + self.drop_path(self.gamma1 * self.mixer(self.norm1(x)))
        return x + self.drop_path(self.gamma2 * self.mlp(self.norm2(x)))

    def mlp_macs(self, height: int, width: int) -> Macs:
        """Multiply-accumulates of the MLP for one image; the mixer declares its own."""
        return Macs(2 * height * width * self.dim * self.hidden)
