"""Eager execution on a CPU: when it is that, and what is faster there."""

import torch
from torch import Tensor


def is_eager_cpu(x: Tensor) -> bool:
    """Whether operators run on a CPU right away, with nobody to trace, transform, cast or count them."""
    return (
        x.device.type == "cpu"
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and not torch.is_autocast_enabled("cpu")
        and not torch._C._len_torch_dispatch_stack()
        and not torch._C._are_functorch_transforms_active()
    )


def column_sums(x: Tensor) -> Tensor:
    """(N, C) -> (C), as a product, which is faster than a sum."""
    return torch.mv(x.t(), x.new_ones(len(x)))
