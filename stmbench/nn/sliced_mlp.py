"""The MLP half of a block in eager execution on a CPU, with little kept: x + gamma * mlp(norm(x)).

Where hidden activations are large and channels few, a slice of positions goes through all of it at a time,
and its activations stay in the cache. No tensor of their full size is made: an allocator gives one that large
back to the system, which hands it out anew page by page, and that costs more than computing what it holds.
Training keeps x alone, and computes the rest again. Where channels are many and hidden activations larger
still, training keeps what goes into the GELU and computes again what comes out of it.

The same numbers as the modules give, but for rounding. Whatever needs to see the modules or their operators
(a compiler, an exporter, a counter, autocast, hooks) is left to them.
"""

from typing import Any, NamedTuple

import torch
from timm.layers.mlp import Mlp
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from stmbench.eager import column_sums, is_eager_cpu

# N positions, n of them in a slice, C channels, D hidden channels

SLICE = 4096  # positions: fewer slow the products down, more leave the cache
NARROW = 100  # channels: beyond, the product to compute again costs more than the memory traffic it saves
# Hidden numbers from which on something is gained in training. Of tensors of 16 MiB the system takes many
# back, and all from 32 MiB on.
LARGE = 2**22  # in slices, for few channels
HUGE = 2**23  # by computing the GELU again, for many

aten = torch.ops.aten


class Weights(NamedTuple):
    """The parameters of the half block."""

    norm: Tensor  # (C,)
    norm_bias: Tensor  # (C,)
    fc1: Tensor  # (D, C)
    fc1_bias: Tensor  # (D,)
    fc2: Tensor  # (C, D)
    fc2_bias: Tensor  # (C,)
    gamma: Tensor  # (C,)


def applies(x: Tensor, norm: nn.LayerNorm, mlp: Mlp) -> bool:
    """Whether `add_mlp` may compute this, and has anything to gain."""
    if not is_eager_cpu(x):  # asked first: a compiler would hold on to what it is told of sizes
        return False
    hidden = x.numel() // x.shape[-1] * len(mlp.fc1.weight)
    if torch.is_grad_enabled() and hidden < (LARGE if x.shape[-1] <= NARROW else HUGE):
        return False
    return all(_is_plain(each) for each in (norm, mlp, mlp.fc1, mlp.act, mlp.fc2))


def _is_plain(module: nn.Module) -> bool:
    """Whether it is what the block made, and not what an adapter put in its place or hooked itself to."""
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks)
    return type(module) in (nn.LayerNorm, Mlp, nn.Linear, nn.GELU) and not any(hooks)


def add_mlp(x: Tensor, norm: nn.LayerNorm, mlp: Mlp, gamma: Tensor) -> Tensor:
    """x + gamma * mlp(norm(x)), (B, H, W, C) -> (B, H, W, C); differentiable once."""
    fc1, fc2 = mlp.fc1, mlp.fc2
    assert fc1.bias is not None
    assert fc2.bias is not None
    grad = torch.is_grad_enabled()
    if grad and x.shape[-1] > NARROW:
        return torch.addcmul(x, gamma, _GeluLinear.apply(fc1(norm(x)), fc2.weight, fc2.bias))
    weights = Weights(norm.weight, norm.bias, fc1.weight, fc1.bias, fc2.weight, fc2.bias, gamma)
    rows = x.reshape(-1, x.shape[-1])  # (N, C)
    out = _AddMlp.apply(rows, norm.eps, *weights) if grad else _forward(rows, norm.eps, weights)
    return out.view_as(x)


class _GeluLinear(torch.autograd.Function):
    """linear(gelu(h)), which keeps h alone."""

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, h: Tensor, weight: Tensor, bias: Tensor
    ) -> Tensor:
        ctx.save_for_backward(h, weight)
        return F.linear(F.gelu(h), weight, bias)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, grad: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        h, weight = ctx.saved_tensors
        rows, upper = h.flatten(0, -2), grad.flatten(0, -2)  # (N, D), (N, C)
        a = F.gelu(rows)
        weight_grad = upper.t() @ a
        torch.mm(upper, weight, out=a)  # a's gradient, and then h's, in a's place
        aten.gelu_backward.grad_input(a, rows, grad_input=a)
        return a.view_as(h), weight_grad, column_sums(upper)


def _forward(x: Tensor, eps: float, weights: Weights) -> Tensor:
    out = torch.empty_like(x)
    size = _slice_size(len(x))
    hidden = x.new_empty(size, len(weights.fc1))  # (n, D)
    branch = x.new_empty(size, x.shape[1])  # (n, C)
    for part, into in zip(x.split(size), out.split(size), strict=True):
        a, y = hidden[: len(part)], branch[: len(part)]
        normed = F.layer_norm(part, part.shape[1:], weights.norm, weights.norm_bias, eps)
        torch.addmm(weights.fc1_bias, normed, weights.fc1.t(), out=a)
        aten.gelu_(a)
        torch.addmm(weights.fc2_bias, a, weights.fc2.t(), out=y)
        torch.addcmul(part, weights.gamma, y, out=into)
    return out


def _slice_size(rows: int) -> int:
    """Positions of slices of nearly the same size."""
    return max(1, -(-rows // max(1, -(-rows // SLICE))))


class _AddMlp(torch.autograd.Function):
    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, x: Tensor, eps: float, *weights: Tensor
    ) -> Tensor:
        ctx.save_for_backward(x, *weights)
        ctx.eps = eps
        return _forward(x, eps, Weights(*weights))

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, grad: Tensor
    ) -> tuple[Tensor | None, ...]:
        x, *weights = ctx.saved_tensors
        sums = _Gradients(Weights(*weights), ctx.eps)
        out = torch.empty_like(x)
        size = _slice_size(len(x))
        for part, upper, into in zip(x.split(size), grad.split(size), out.split(size), strict=True):
            torch.add(upper, sums.add(part, upper), out=into)
        return out, None, *sums.finish()


class _Gradients:
    """The gradients of the weights, gathered over slices."""

    def __init__(self, weights: Weights, eps: float) -> None:
        self.weights, self.eps = weights, eps
        self.scaled = weights.fc2 * weights.gamma[:, None]  # the two that follow each other, as one
        sums = Weights(*(torch.zeros_like(each) for each in weights))
        # A product with few rows is faster than one with few columns: (C, D), not (D, C).
        self.sums = sums._replace(fc1=sums.fc1.new_zeros(sums.fc1.shape[::-1]))

    def add(self, x: Tensor, grad: Tensor) -> Tensor:
        """Add those of a slice (n, C), and give that of its input through the branch."""
        w, sums = self.weights, self.sums
        normed, mean, scale = torch.native_layer_norm(x, x.shape[1:], w.norm, w.norm_bias, self.eps)
        h = torch.addmm(w.fc1_bias, normed, w.fc1.t())  # (n, D)
        a = F.gelu(h)
        # Of gamma * fc2, whose gradient gives those of both.
        sums.fc2.addmm_(grad.t(), a)
        sums.fc2_bias.add_(column_sums(grad))
        torch.mm(grad, self.scaled, out=a)  # a's gradient, and then h's, in a's place
        aten.gelu_backward.grad_input(a, h, grad_input=a)
        sums.fc1.addmm_(normed.t(), a)
        sums.fc1_bias.add_(column_sums(a))
        back, norm, norm_bias = aten.native_layer_norm_backward(
            torch.mm(a, w.fc1), x, x.shape[1:], mean, scale, w.norm, w.norm_bias, [True, True, True]
        )
        sums.norm.add_(norm)
        sums.norm_bias.add_(norm_bias)
        return back

    def finish(self) -> Weights:
        """The gradients of all weights, once every slice is in."""
        w, sums = self.weights, self.sums
        gamma = (sums.fc2 * w.fc2).sum(1).addcmul_(sums.fc2_bias, w.fc2_bias)
        return sums._replace(
            fc1=sums.fc1.t(),
            fc2=sums.fc2.mul_(w.gamma[:, None]),
            fc2_bias=sums.fc2_bias.mul_(w.gamma),
            gamma=gamma,
        )
