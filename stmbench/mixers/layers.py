"""Small layers that several mixers share."""

from torch import Tensor, nn


class ChannelsLastConv2d(nn.Conv2d):
    """A convolution on (B, H, W, C), which it sees as NCHW in channels_last memory format: no copy."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - its name in nn.Conv2d
        return super().forward(input.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


def ceil_div(length: int, divisor: int) -> int:
    """`length` / `divisor`, rounded up."""
    return -(-length // divisor)


def check_heads(dim: int, num_heads: int) -> None:
    """ValueError unless the channels divide evenly among the heads."""
    if num_heads < 1 or dim % num_heads:
        raise ValueError(f"dim {dim} cannot be divided among {num_heads} heads.")
