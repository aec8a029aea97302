"""What a run answered, image by image: the predictions that its stages `eval` and `probe` kept, checked.

Of plain and EMA weights it is the headline's, EMA wherever there are some, as in the leaderboard.
"""

import hashlib
import io
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stmbench.record import parts_of
from stmbench.store import RunRecord, Store
from stmbench.store.records import ArtifactRecord

if TYPE_CHECKING:
    import numpy as np

_UNREADABLE = -1  # the label of an image that could not be decoded


@dataclass(frozen=True, slots=True)
class Answers:
    """One network's answers to the N test images, in the data set's own order."""

    labels: "np.ndarray"  # (N,) int; -1 for an image that could not be decoded
    hits: "np.ndarray"  # (M,) bool, of the M images that could

    def same_images(self, other: "Answers") -> bool:
        """Whether the test images, by their labels, are the same, and the same of them could be decoded."""
        return self.labels.shape == other.labels.shape and bool((self.labels == other.labels).all())


def files(store: Store, probe: str = "") -> dict[str, ArtifactRecord]:
    """The file with the predictions of every run that was evaluated, or probed so, by its id; one query."""
    found = store.files(stage_of(probe), "predictions")
    return {run_id: file for run_id, several in found.items() if (file := headline(several, probe))}


def stage_of(probe: str) -> str:
    """The stage that asks a network itself (""), or a `linear` or `knn` probe of its features."""
    return "probe" if probe else "eval"


def headline(files: Sequence[ArtifactRecord], probe: str = "") -> ArtifactRecord | None:
    """Of a run's files the one with its answers; None if it was not evaluated, or not probed so."""
    asked = [file for file in files if (file.stage, file.kind) == (stage_of(probe), "predictions")]
    parts = [(parts_of(file.condition), file) for file in asked]
    kinds = {at.get("weights"): file for at, file in parts if at.get("probe", "") == probe}
    return kinds.get("ema") or next(iter(kinds.values()), None)


def read(run: RunRecord, file: ArtifactRecord | None, probe: str = "") -> Answers:
    """The run's answers, or those of a probe of its features.

    Raises:
        ValueError: there are none, or the file is gone, or it is not the one that the run wrote.
    """
    if file is None:
        lacking = "was not probed" if probe else "was not evaluated"
        raise ValueError(f"{run.id} has no predictions: it {lacking}.")
    path = run.folder / file.path
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ValueError(f"The predictions of {run.id} cannot be read: {path}: {error.strerror}.") from None
    if hashlib.sha256(content).hexdigest() != file.sha256:
        raise ValueError(f"{path} is no longer the file that {run.id} wrote.")
    import numpy as np  # a table of runs without predictions does not need it

    try:
        with np.load(io.BytesIO(content)) as arrays:
            labels, best = arrays["labels"], arrays["top5"][:, 0]
    except (ValueError, KeyError, IndexError, EOFError, zipfile.BadZipFile):
        raise ValueError(f"{path} does not hold labels and five best classes.") from None
    readable = labels != _UNREADABLE
    return Answers(labels, (labels == best)[readable])
