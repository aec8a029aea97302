"""Depthwise convolution between two pointwise ones.

The spatial operator of ConvNeXt (Liu et al. 2022, arXiv:2201.03545) as the mixer of the unified backbone
(Hu et al. 2022, arXiv:2211.05781): pointwise, depthwise 7x7, pointwise, all with bias and nothing between
them. A pointwise convolution on channels-last activations is a linear layer, and is one here.

On a CPU, `correlate` takes the gradient of the weight as what it is: the correlation of each channel with
its gradient, that is a depthwise convolution whose kernel is the gradient. It runs as fast as the forward
pass; the library's own does 16 times the work for any kernel larger than 3x3. Twice differentiable by `plain`
alone. On a GPU channels-last against NCHW is not measured: there is the ordinary call.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from stmbench.mixers.backends import PLAIN, Backend, BackendMixer, refuses_batch_loop
from stmbench.mixers.layers import ChannelsLastConv2d
from stmbench.record import Macs


class DepthwiseConv(BackendMixer):
    """Mix each channel with its neighbourhood of `kernel` x `kernel`, zeros outside the image.

    Without `projections` it is the depthwise convolution alone, as in ConvNeXt's own block.
    """

    def __init__(self, dim: int, *, kernel: int = 7, projections: bool = True) -> None:
        super().__init__()
        if kernel < 1 or kernel % 2 == 0:
            raise ValueError(f"kernel {kernel} has no centre: give an odd one.")
        self.dim, self.kernel = dim, kernel
        self.proj_in = nn.Linear(dim, dim) if projections else nn.Identity()
        self.conv = ChannelsLastConv2d(dim, dim, kernel, padding=kernel // 2, groups=dim)
        self.proj_out = nn.Linear(dim, dim) if projections else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        return self.proj_out(self.backend(x).run(self, self.proj_in(x)))

    def macs(self, height: int, width: int) -> Macs:
        """Multiply-accumulates of one image of `height` x `width` positions."""
        projections = 2 * self.dim if isinstance(self.proj_in, nn.Linear) else 0
        return Macs(height * width * self.dim * (projections + self.kernel**2))


def _correlate(mixer: DepthwiseConv, x: Tensor) -> Tensor:
    if mixer.kernel <= 3:  # for which the library's is good
        return mixer.conv(x)
    out: Any = _Correlate.apply(x.permute(0, 3, 1, 2), mixer.conv.weight, mixer.conv.bias)
    return out.permute(0, 2, 3, 1)


class _Correlate(torch.autograd.Function):
    """A depthwise convolution of (B, C, H, W), channels-last, by a weight (C, 1, K, K) and a bias (C)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return F.conv2d(x, weight, bias, padding=weight.shape[-1] // 2, groups=len(weight))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # pyright: ignore
        x, weight = ctx.saved_tensors
        grad = grads[0].contiguous(memory_format=torch.channels_last)
        C, K = len(weight), weight.shape[-1]
        with torch.autocast("cpu", enabled=False):
            to_x = F.conv2d(grad, weight.to(grad.dtype).flip(2, 3), padding=K // 2, groups=C)
            to_weight = torch.zeros_like(weight)
            for image, kernel in zip(x.to(grad.dtype), grad, strict=True):
                # (1, C, H, W) by (C, 1, H, W), K / 2 around: K x K ways to lay one on the other.
                to_weight += F.conv2d(image[None], kernel[:, None], padding=K // 2, groups=C).transpose(0, 1)
            to_bias = grad.permute(0, 2, 3, 1).reshape(-1, C).sum(0)
        return to_x.to(x.dtype), to_weight, to_bias.to(weight.dtype)


DepthwiseConv.backends = (
    Backend(
        "correlate",
        "training on a CPU, not compiled",
        _correlate,
        refuses_batch_loop,
        lambda call: call.grad and call.dtype != torch.float64,
    ),
    Backend(PLAIN, "always", lambda mixer, x: mixer.conv(x)),
)
