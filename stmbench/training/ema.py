"""The exponential moving average of a network's weights, through timm (Wightman 2019)."""

import torch
from timm.utils.model_ema import ModelEmaV3
from torch import nn


class Ema(ModelEmaV3):
    """timm's average, but for what is averaged being looked up once: that costs more than the averaging."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        super().__init__(model, decay)
        # Aliases: optimizers and load_state_dict write into the same memory.
        pairs = [*zip(self.module.state_dict().values(), model.state_dict().values(), strict=True)]
        self.counters = [(own, other) for own, other in pairs if not own.is_floating_point()]
        self.means, self.values = zip(*(pair for pair in pairs if pair[0].is_floating_point()), strict=True)

    def apply_update_(self, model: nn.Module, decay: float) -> None:
        torch._foreach_lerp_(self.means, self.values, weight=1 - decay)
        for own, other in self.counters:
            own.copy_(other)
