"""The unified block: a mixer and an MLP, each normalised before, scaled and dropped after, and added.

Hu et al. 2022 (arXiv:2211.05781), with the layer scale of Touvron et al. 2021 (arXiv:2103.17239) and the
stochastic depth of Huang et al. 2016 (arXiv:1603.09382). Activations are (B, H, W, C) throughout.
"""

from collections.abc import Callable
from typing import Any

import torch
from timm.layers.drop import DropPath
from timm.layers.mlp import Mlp
from torch import Tensor, nn

from stmbench.eager import is_eager_cpu
from stmbench.nn import sliced_mlp
from stmbench.record import Macs

LAYER_SCALE = 1e-6


class Residual(nn.Module):
    """A block of residual branches around a mixer and an MLP, each scaled per channel and dropped per image.

    What is dropped is drawn per image, as timm's DropPath does. In eager execution on a CPU dropped images
    are not computed: a mixer treats every image by itself.
    """

    mixer: Any  # a module that maps (B, H, W, C) to itself and declares macs(height, width)

    def __init__(self, dim: int, mlp_ratio: int, drop_path: float) -> None:
        super().__init__()
        self.dim, self.hidden = dim, dim * mlp_ratio
        self.drop_path = DropPath(drop_path)

    def _dropped(self, x: Tensor, gamma: Tensor, add: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """`add(x, gamma)` where an image's branch is kept, with gamma / (1 - rate), and x where it is not."""
        rate = self.drop_path.drop_prob or 0.0
        if not (self.training and rate):
            return add(x, gamma)
        keep = x.new_empty(len(x), 1, 1, 1).bernoulli_(1 - rate)
        if rate < 1:
            gamma = gamma / (1 - rate)
        if not is_eager_cpu(x):
            return add(x, keep * gamma)  # (B, 1, 1, C): nothing here waits for the device
        kept = keep.view(-1).nonzero().squeeze(1)
        if len(kept) == len(x):
            return add(x, gamma)
        if not len(kept):  # an optimizer tells a gradient of zero from none
            return add(x, keep * gamma)
        return x.index_copy(0, kept, add(x.index_select(0, kept), gamma))

    def mlp_macs(self, height: int, width: int) -> Macs:
        """Multiply-accumulates of the MLP for one image; the mixer declares its own."""
        return Macs(2 * height * width * self.dim * self.hidden)


class Block(Residual):
    """x += drop(gamma1 * mixer(norm1(x))), then x += drop(gamma2 * mlp(norm2(x))).

    Without `layer_scale` the gammas are 1.
    """

    def __init__(
        self,
        dim: int,
        mixer: nn.Module,
        *,
        mlp_ratio: int,
        norm_eps: float,
        drop_path: float,
        layer_scale: bool = True,
    ) -> None:
        super().__init__(dim, mlp_ratio, drop_path)
        self.norm1 = nn.LayerNorm(dim, eps=norm_eps)
        self.mixer = mixer
        self.gamma1 = _scale(dim, layer_scale)
        self.norm2 = nn.LayerNorm(dim, eps=norm_eps)
        self.mlp = Mlp(dim, self.hidden)
        self.gamma2 = _scale(dim, layer_scale)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        x = self._dropped(x, self.gamma1, self._add_mixer)
        return self._dropped(x, self.gamma2, self._add_mlp)

    def _add_mixer(self, x: Tensor, scale: Tensor) -> Tensor:
        return torch.addcmul(x, scale, self.mixer(self.norm1(x)))

    def _add_mlp(self, x: Tensor, scale: Tensor) -> Tensor:
        if scale.ndim == 1 and sliced_mlp.applies(x, self.norm2, self.mlp):
            return sliced_mlp.add_mlp(x, self.norm2, self.mlp, scale)
        return torch.addcmul(x, scale, self.mlp(self.norm2(x)))


def _scale(dim: int, learnt: bool) -> Tensor:
    return (
        nn.Parameter(torch.full((dim,), LAYER_SCALE))
        if learnt
        else nn.Buffer(torch.ones(dim), persistent=False)
    )
