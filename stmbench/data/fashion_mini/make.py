"""Makes the embedded data set `fashion-mini` from Fashion-MNIST (Xiao et al. 2017, arXiv:1708.07747).

The first 1,000 training and the first 200 test images of each class are kept, in file order. Run it as
``python -m stmbench.data.fashion_mini.make [SOURCE]``; it rewrites the four files beside it.
"""

import sys
from pathlib import Path

import numpy as np

from stmbench.data.idx import PREFIXES, read_idx, write_idx

SOURCE = Path("/usr/share/datasets/fashion-mnist")  # Debian's dataset-fashion-mnist
PER_CLASS = {"train": 1000, "val": 200}


def subset(source: Path) -> dict[str, np.ndarray]:
    """The values of the four files by file name, chosen from the full set in the folder `source`."""
    files = {}
    for split, prefix in PREFIXES.items():
        names = f"{prefix}-images-idx3-ubyte.gz", f"{prefix}-labels-idx1-ubyte.gz"
        images, labels = read_idx(source / names[0], axes=3), read_idx(source / names[1], axes=1)
        kept = first_of_each_class(labels, PER_CLASS[split])
        files |= {names[0]: images[kept], names[1]: labels[kept]}
    return files


def first_of_each_class(labels: np.ndarray, count: int) -> np.ndarray:
    """The indices of the first `count` images of each class, in rising order."""
    return np.sort(np.concatenate([np.flatnonzero(labels == label)[:count] for label in np.unique(labels)]))


if __name__ == "__main__":
    for name, values in subset(Path(sys.argv[1]) if len(sys.argv) > 1 else SOURCE).items():
        write_idx(Path(__file__).with_name(name), values)
