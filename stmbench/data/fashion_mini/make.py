"""Makes the embedded data set `fashion-mini` from Fashion-MNIST (Xiao et al. 2017, arXiv:1708.07747).

The first 1,000 training and the first 200 test images of each class are kept, in file order. Run it as
``python -m stmbench.data.fashion_mini.make [SOURCE]``; it rewrites the four files beside it.
"""

import sys
from pathlib import Path

import numpy as np

from stmbench.data.idx import PREFIXES, read_idx, write_idx

SOURCE = Path("/usr/share/datasets/fashion-mnist")  # Debian's dataset-fashion-mnist
HERE = Path(__file__).parent
PER_CLASS = {"train": 1000, "val": 200}


def make(source: Path, target: Path) -> None:
    """Write the subset of the IDX files in `source` to `target`."""
    for split, prefix in PREFIXES.items():
        images = read_idx(source / f"{prefix}-images-idx3-ubyte.gz", axes=3)
        labels = read_idx(source / f"{prefix}-labels-idx1-ubyte.gz", axes=1)
        kept = first_of_each_class(labels, PER_CLASS[split])
        write_idx(target / f"{prefix}-images-idx3-ubyte.gz", images[kept])
        write_idx(target / f"{prefix}-labels-idx1-ubyte.gz", labels[kept])


def first_of_each_class(labels: np.ndarray, count: int) -> np.ndarray:
    """The indices of the first `count` images of each class, in rising order."""
    return np.sort(np.concatenate([np.flatnonzero(labels == label)[:count] for label in np.unique(labels)]))


if __name__ == "__main__":
    make(Path(sys.argv[1]) if len(sys.argv) > 1 else SOURCE, HERE)
