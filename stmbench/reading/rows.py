"""What a leaderboard consists of: groups of rows, and both as flat records of raw numbers."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from stmbench.reading.columns import Column, Number


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One network's numbers, means over its seeds; None where there is none."""

    rank: int | None  # by the chosen column, from 1; None without a value there
    tied: bool = False  # whether others have this rank
    mixer: str
    scale: str
    design: str  # what stands around its mixers; "" for a timm model
    weights: str  # the checkpoint it started from, if any
    backend: str  # that its mixers were forced to; "" for the best there is
    parameters: float | None
    macs: float | None
    latency: float | None  # ms
    throughput: float | None  # images/s, at the best batch
    disturbed: bool  # some of its times were taken while the machine was disturbed
    top1: float | None  # per cent
    top1_low: float | None  # 95 % interval
    top1_high: float | None
    top1_sd: float | None  # over seeds; None for one
    images: float | None  # test images behind top1
    seeds: int
    runs: tuple[str, ...]  # ids of the runs the numbers are from
    more: dict[str, Number] = field(default_factory=dict)  # of the group's `columns`, by their texts

    def value(self, column: str) -> Any:
        """Its value in one of `COLUMNS`, or of its group's `columns`."""
        if column in COLUMNS:
            return getattr(self, column)
        return self.more[column].value if column in self.more else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Rows that may be compared, best first, and what they have in common."""

    recipe: str
    recipe_digest: str
    data: str
    data_fingerprint: str
    device: str
    hardware: str
    precision: str
    latency_condition: str
    throughput_condition: str
    ranked_by: str = "top1"  # a column
    paired: bool = True  # whether ties by top1 were looked for image by image
    columns: tuple[Column, ...] = ()  # beside those that every row has
    notes: tuple[str, ...] = ()
    rows: tuple[Row, ...]

    @property
    def detects(self) -> bool:
        """Whether its networks are detectors, known by their AP."""
        return any(name in row.more for row in self.rows for name in DETECTION)


DETECTION = ("box_ap", "mask_ap")
"""Measurements that detectors are known by, the first ranks them; columns of every group of theirs."""
COLUMNS = tuple(each.name for each in dataclasses.fields(Row) if each.name != "more")
SHARED = tuple(
    each.name for each in dataclasses.fields(Group) if each.name not in ("columns", "notes", "rows")
)
_NUMBERS = (
    "parameters",
    "macs",
    "latency",
    "throughput",
    "top1",
    "top1_low",
    "top1_high",
    "top1_sd",
    "images",
)
_TYPES = (
    dict.fromkeys((*SHARED, *COLUMNS), str)
    | dict.fromkeys(_NUMBERS, float)
    | dict.fromkeys(("rank", "seeds"), int)
    | dict.fromkeys(("tied", "disturbed", "paired"), bool)
    | {"runs": list}
)
NAMES = {
    "params": "parameters",
    "MACs": "macs",
    "images/s": "throughput",
    "top-1": "top1",
    "95 %": "interval",
    "box AP": "box_ap",
    "mask AP": "mask_ap",
}
"""Other names of columns: what heads them."""


def types(groups: Sequence[Group]) -> dict[str, type]:
    """What the records of these groups have, in order, and the types of the values that are there."""
    more = {name: kind for group in groups for column in group.columns for name, kind in column.types}
    return _TYPES | more


def records(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """One flat record of raw numbers per row, with the columns of its group."""
    return [
        {name: getattr(group, name) for name in SHARED}
        | {name: getattr(row, name) for name in COLUMNS}
        | {name: value for column in group.columns for name, value in column.record(row.more).items()}
        for group in groups
        for row in group.rows
    ]
