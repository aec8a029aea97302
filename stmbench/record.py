"""The nouns that cross every border: a `Job` goes down into the stages, events come back up.

A stage is a function ``run(job) -> Iterator[Event]``. It neither prints nor touches the database.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from stmbench.recipe import Recipe


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One (model, recipe, seed, data) to be taken through its stages on one device."""

    mixer: str
    scale: str
    recipe: Recipe  # as it is followed: with the preprocessing that a timm model's weights ask for
    stages: tuple[str, ...]
    seed: int = 0
    data: str  # a data set's name or path; see stmbench.data
    device: str = "cpu"
    weights: str | None = None  # a checkpoint file to start from
    backend: str = ""  # that the mixers are to use; "" for the best there is
    design: str = "unified"  # what stands around the mixers; "" for a timm model
    folder: Path  # artifacts and checkpoints of the run
    ceilings: Mapping[tuple[str, str], float] = field(default_factory=dict)
    """What this machine is known to reach at most, by a measurement's name and condition."""
    asked_digest: str = ""  # the digest of the recipe as it was asked, where that is another one

    @property
    def recipe_digest(self) -> str:
        """The digest the run is known by."""
        return self.asked_digest or self.recipe.digest


@dataclass(frozen=True, slots=True)
class Measurement:
    """One number with its name, its unit and the condition it was taken under.

    `step` is the epoch of a curve's point, counted from 1; 0 for a number that is not part of a curve.
    A measurement that failed is NaN, with the `reason`.
    """

    stage: str
    name: str
    value: float
    unit: str = ""
    condition: str = ""  # see `condition`
    step: int = 0
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Macs:
    """Multiply-accumulates of an operator on one image.

    `padding` and `skipped` are each a part of `total`, and may have some in common.
    """

    total: int  # as the operator is defined: what its paper counts
    padding: int = 0  # spent on positions outside the image
    skipped: int = 0  # what our code never computes, since nothing depends on it

    @property
    def computed(self) -> int:
        """What a counter must find."""
        return self.total - self.skipped

    def __add__(self, other: "Macs") -> "Macs":
        return Macs(self.total + other.total, self.padding + other.padding, self.skipped + other.skipped)


@dataclass(frozen=True, slots=True)
class Artifact:
    """A file the stage wrote under the job's folder."""

    stage: str
    kind: str
    path: Path
    condition: str = ""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a stage is, for whoever watches; never stored."""

    stage: str
    text: str
    done: int
    total: int
    numbers: Mapping[str, float] = field(default_factory=dict)  # e.g. images/s, loss


@dataclass(frozen=True, slots=True)
class Note:
    """One line the user should read, such as a count of skipped images."""

    stage: str
    text: str


Event = Measurement | Artifact | Progress | Note


def condition(**parts: object) -> str:
    """A canonical text of what a number was measured under: ``batch=1,device=cpu``, keys sorted."""
    return ",".join(f"{key}={value}" for key, value in sorted(parts.items()))


def parts_of(text: str) -> dict[str, str]:
    """The parts of such a text, the way back: ``{"batch": "1", "device": "cpu"}``."""
    return dict(part.split("=", 1) for part in text.split(",") if "=" in part)


def without(text: str, *keys: str) -> str:
    """Such a text less some of its parts."""
    return ",".join(part for part in text.split(",") if part.partition("=")[0] not in keys)
