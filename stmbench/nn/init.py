"""How every network starts."""

from torch import nn


def init_weights(module: nn.Module) -> None:
    """Truncated normal with std 0.02 for every convolution and linear layer, mixers' included; biases 0."""
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
