"""What the database hands out: one frozen dataclass per kind of row. Times are aware and in UTC."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple

State = Literal["running", "done", "failed", "interrupted"]


@dataclass(frozen=True, slots=True, kw_only=True)
class NewRun:
    """What is known of a run before it starts: its job, and the evidence of how it was made."""

    mixer: str
    scale: str
    stages: Sequence[str]
    seed: int
    recipe_name: str
    recipe_digest: str
    recipe_values: Mapping[str, Any]  # Recipe.values()
    overrides: Sequence[str] = ()  # of --set
    data_source: str  # as given to --data, or the recipe's
    data_name: str
    data_fingerprint: str
    weights: str = ""  # the checkpoint file the run started from, if any
    weights_sha256: str = ""
    preprocessing: Mapping[str, Any] = field(default_factory=dict)  # a model's own, in the recipe's terms
    backend: str = ""  # that its mixers were forced to; "" for the best there is
    design: str = "unified"  # what stands around its mixers; "" for a timm model
    device: str  # cpu, cuda or mps
    hardware: str  # model of the CPU or GPU; rows of the leaderboard share it
    precision: str  # fp32, bf16 or fp16
    threads: int
    argv: Sequence[str] = ()
    git_commit: str = ""
    git_dirty: bool = False
    versions: Mapping[str, str]  # of Python, torch, CUDA, timm, the driver, and a digest of our sources
    fingerprint: str = ""  # of all that decides its result: see `evidence.fingerprint`


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord(NewRun):
    """A run as it stands. One whose process is gone reads `interrupted`, whatever it last wrote."""

    id: str
    state: State
    reason: str  # why it failed or was interrupted
    created: datetime
    updated: datetime  # last change of its state or a stage's
    heartbeat: datetime
    folder: Path  # absolute
    host: str
    pid: int
    boot_id: str
    process_started: float  # seconds since the machine's start; since 1970 where that is unknown


@dataclass(frozen=True, slots=True)
class StageRecord:
    """One stage of a run. A stage taken up again after an interruption starts anew."""

    name: str
    state: State
    started: datetime
    ended: datetime | None
    reason: str


@dataclass(frozen=True, slots=True)
class ArtifactRecord:
    """A file in a run's folder."""

    stage: str
    kind: str
    condition: str
    path: Path  # relative to the run's folder
    bytes: int
    sha256: str


class Summary(NamedTuple):
    """What a leaderboard reads of a finished run, its times taken in one way; None where there is none.

    Two runs are of one `network`, or under one `protocol`, if these digests are equal.
    """

    run: str
    network: str
    protocol: str
    seed: int
    latency_condition: str  # "" without a latency
    throughput_condition: str
    parameters: float | None
    macs: float | None
    latency: float | None  # ms
    throughput: float | None  # images/s, at the best batch
    disturbed: float | None  # 1 if any of its times was taken while the machine was disturbed
    top1: float | None  # per cent
    images: float | None  # test images behind top1


class StageTime(NamedTuple):
    """How long a finished stage took, of which kind of run."""

    mixer: str
    scale: str
    design: str
    recipe_name: str
    recipe_digest: str
    data_fingerprint: str
    hardware: str
    epochs: int  # of its recipe
    stage: str
    seconds: float
