"""Networks for measuring processes, which import this module: tiny, slow to fail, or broken on purpose."""

import os
import signal
import sys

import torch
from torch import Tensor, nn


class Tiny(nn.Module):
    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3)
        self.head = nn.Linear(4, classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.conv(images).mean((2, 3)))


class Spy(Tiny):
    """Notes how it is called."""

    seen: tuple[bool, torch.dtype, bool, bool]

    def forward(self, images: Tensor) -> Tensor:
        logits = super().forward(images)
        last = self.conv.weight.is_contiguous(memory_format=torch.channels_last)
        self.seen = (last, logits.dtype, self.training, torch.is_inference_mode_enabled())
        return logits


class Greedy(Tiny):
    def forward(self, images: Tensor) -> Tensor:
        return images.expand(2**50, *images.shape).contiguous()


class Hungry(Tiny):
    """Needs 200 MB for a moment."""

    def forward(self, images: Tensor) -> Tensor:
        torch.ones(50_000_000)
        return super().forward(images)


def killed() -> nn.Module:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def crashed() -> nn.Module:
    print("to stdout, where the answers go")
    print("the last words", file=sys.stderr, flush=True)
    os._exit(3)


def refused() -> nn.Module:
    raise ValueError("no such network\nsecond line")
