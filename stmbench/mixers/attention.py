"""Softmax attention as the windowed mixers share it: in ordinary operators, fused, and in place.

The products of one head are small and its scores are many, so that on a CPU time goes into moving scores
about rather than into making them. A backend by the name of `chunked` therefore works in place on buffers
that fit a cache: it takes a few images at a time (`portions`), keeps nothing but its inputs for the backward
pass, and makes the scores again there.

Shapes: N batch, windows and heads together, T queries, S keys, D channels of a head.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from stmbench.mixers.backends import Call
from stmbench.mixers.layers import ceil_div

HALVES = (torch.bfloat16, torch.float16)

# Bytes of scratch at a time: more falls out of the caches, and beyond 32 MiB each buffer is fresh pages.
SCRATCH = 16 * 2**20


def plain(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(D) + bias) v for (..., T, D) and (..., S, D), bias as broadcast to (..., T, S)."""
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    return (scores if bias is None else scores + bias).softmax(-1) @ v


def fused(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """The same by scaled_dot_product_attention."""
    return F.scaled_dot_product_attention(q, k, v, attn_mask=None if bias is None else bias.to(q.dtype))


def flex(q: Tensor, k: Tensor, v: Tensor, score: Callable[..., Tensor]) -> Tensor:
    """The same by FlexAttention, where score(score, batch, head, query, key) takes the place of a bias."""
    # Half a second that only its users should wait for.
    from torch.nn.attention.flex_attention import flex_attention

    out: Any = flex_attention(q, k, v, score_mod=score)
    return out


def refuses_flex(call: Call) -> str:
    if not call.compiling:
        return "it is fused only under torch.compile"
    if call.exporting:
        return "it is not exported"
    return "it has no backward pass on a CPU" if call.device == "cpu" and call.grad else ""


def refuses_chunks(call: Call) -> str:
    return "it divides the batch in Python, which is not compiled" if call.compiling else ""


def best_chunked(call: Call) -> bool:
    """Where it was measured to win, in time or in memory, with that many positions or more."""
    B, H, W, _ = call.shape
    return call.device == "cpu" and not call.compiling and B * H * W >= 512


def best_fused(call: Call) -> bool:
    """Not in eager training on a CPU: torch's backward pass there is slower than that of the products."""
    trains = call.grad and call.device == "cpu" and not call.compiling
    return not (trains or call.exporting)


def portions(batch: int, bytes_each: int) -> list[slice]:
    """The images of a batch, divided evenly into portions of at most about SCRATCH bytes."""
    number = ceil_div(batch, max(1, SCRATCH // bytes_each))
    step = ceil_div(batch, max(1, number))
    return [slice(start, start + step) for start in range(0, batch, step)]


def probabilities(
    q: Tensor, k: Tensor, *, scale: float = 1.0, bias: Tensor | None = None, out: Tensor | None = None
) -> Tensor:
    """softmax(scale q k^T + bias) of (N, T, D) and (N, S, D); the bias (n, T, S) repeats every n rows."""
    scores = scaled(q, k.transpose(1, 2), scale, out=out)
    if bias is not None:
        scores.view(-1, *bias.shape).add_(bias)
    return torch.softmax(scores, -1, out=scores)


def scaled(x: Tensor, y: Tensor, scale: float, *, out: Tensor | None = None) -> Tensor:
    """scale x y of (N, T, X) and (N, X, S), scaled by the product itself."""
    if out is None:
        out = x.new_empty(*x.shape[:2], y.shape[2])
    return torch.baddbmm(out, x, y, beta=0, alpha=scale, out=out)  # added to itself: anything else is copied


def differentiate(p: Tensor, v: Tensor, grad: Tensor, *, out: tuple[Tensor, Tensor]) -> None:
    """Gradients of the scores (N, T, S) and of v (N, S, D), from that of p v (N, T, D)."""
    to_scores, to_v = out
    torch.bmm(grad, v.transpose(1, 2), out=to_scores)
    torch.ops.aten._softmax_backward_data.out(to_scores, p, -1, p.dtype, grad_input=to_scores)
    torch.bmm(p.transpose(1, 2), grad, out=to_v)
