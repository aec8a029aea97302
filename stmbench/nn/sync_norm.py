"""BatchNorm over the images of all processes, on CPUs as on GPUs (torch's own is for GPUs alone).

Ioffe and Szegedy 2015 (arXiv:1502.03167); across devices as in Peng et al. 2018 (arXiv:1711.07240). Means
come first and squared deviations second, in float32 or better: two sums over processes, and no difference of
large numbers.
"""

from typing import Any

import torch
from torch import Tensor, nn

from stmbench import world


class SyncBatchNorm(nn.BatchNorm2d):
    """`nn.BatchNorm2d` that in training normalises by all processes' images, as many from each."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - its name in nn.BatchNorm2d
        if not self.training:
            return super().forward(input)
        x = input.to(torch.promote_types(input.dtype, torch.float32))  # (B, C, H, W)
        count = world.size() * x.numel() // x.shape[1]
        mean = _Total.apply(x.sum((0, 2, 3))) / count  # (C)
        centred = x - mean[:, None, None]
        variance = _Total.apply(centred.square().sum((0, 2, 3))) / count  # (C)
        self._follow(mean.detach(), variance.detach() * count / (count - 1))
        scale = self.weight * (variance + self.eps).rsqrt()
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(input.dtype)

    def _follow(self, mean: Tensor, variance: Tensor) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        self.num_batches_tracked.add_(1)
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance, self.momentum)


def synchronise(model: nn.Module) -> None:
    """Let every `nn.BatchNorm2d` of the model see all processes' images; its weights and their names stay."""
    for module in model.modules():
        if type(module) is nn.BatchNorm2d and module.affine and module.track_running_stats:
            module.__class__ = SyncBatchNorm


class _Total(torch.autograd.Function):
    """The sum over processes, through which gradients flow: each gets those of all."""

    @staticmethod
    def forward(ctx: Any, numbers: Tensor) -> Tensor:
        return world.total(numbers)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return world.total(gradients[0].contiguous())
