"""Learnt tables of positions within windows, made for windows of another side.

Swin's tables (Liu et al. 2021, arXiv:2103.14030) are maps of the offsets between two positions of a window,
and are resized bicubically, as its authors do. Halo's (Vaswani et al. 2021, arXiv:2103.12731) are lines of
offsets, resized linearly: the farthest offset takes what the farthest one had, and 0 what 0 had.
"""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

HALO_SPARE = 6  # the first rows of halo's tables are of no offset
HALO_MARGIN = 6  # keys of a window beyond its block, along an axis


def side(state: Mapping[str, Tensor]) -> int:
    """The side of the windows that weights under our names were made for; 0 where they have none."""
    kinds = {"relative_position_bias_table": swin_side, "height_rel": halo_side}
    found = ((kinds.get(key.rpartition(".")[2]), table) for key, table in state.items())
    return next((side_of(table) for side_of, table in found if side_of), 0)


def swin_side(table: Tensor) -> int:
    """The side of the windows of a table ((2 side - 1)^2, heads)."""
    return (round(len(table) ** 0.5) + 1) // 2


def halo_side(table: Tensor) -> int:
    """The side of the blocks of a table (2 (side + 6) - 1, D)."""
    return (len(table) + 1) // 2 - HALO_MARGIN


def resize_swin(table: Tensor, rows: int) -> Tensor:
    """A table with so many rows; itself where it has them, or is no square map."""
    old, new = round(len(table) ** 0.5), round(rows**0.5)
    if len(table) == rows or old**2 != len(table):
        return table
    maps = table.t().reshape(1, -1, old, old)  # (1, heads, 2 side - 1, 2 side - 1)
    maps = F.interpolate(maps.float(), (new, new), mode="bicubic", align_corners=False)
    return maps.reshape(-1, rows).t().to(table.dtype)  # (rows, heads)


def resize_halo(table: Tensor, rows: int) -> Tensor:
    """A table with so many rows; itself where it has them."""
    if len(table) == rows:
        return table
    spare, offsets = table[:HALO_SPARE], table[HALO_SPARE:]
    lines = offsets.t()[None].float()  # (1, D, 2 side + 5)
    lines = F.interpolate(lines, rows - HALO_SPARE, mode="linear", align_corners=True)
    return torch.cat([spare, lines[0].t().to(table.dtype)])
