"""Fixtures that several parts share: a tiny data set on disk and a recipe that trains on it in seconds."""

import gzip
import json
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from stmbench.recipe import Recipe, from_values
from stmbench.record import Job
from stmbench.store import NewRun

TINY = {
    "data": {"image_size": 28, "channels": 1, "mean": [0.5], "std": [0.5], "crop_pct": 1.0, "workers": 0},
    "augment": {"scale": [0.8, 1.0], "hflip": 0.5},
    "optimizer": {"lr": 2e-3},
    "schedule": {"epochs": 2, "warmup_epochs": 0},
    "train": {"batch_size": 16},
    "eval": {"batch_size": 16},
    "profile": {"batch_sizes": [1], "train_batch_size": 0, "samples": 5, "control": False},
}


@pytest.fixture(scope="session", autouse=True)
def _two_threads() -> None:
    torch.set_num_threads(min(2, torch.get_num_threads()))


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """48 training and 20 test images of four classes that differ in where they are bright, as IDX files."""
    folder = tmp_path_factory.mktemp("tiny") / "FashionMNIST" / "raw"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for prefix, count in (("train", 48), ("t10k", 20)):
        labels = np.arange(count, dtype=np.uint8) % 4
        images = rng.integers(0, 60, (count, 28, 28), dtype=np.uint8)
        for image, label in zip(images, labels, strict=True):
            y, x = divmod(int(label), 2)
            image[14 * y : 14 * y + 14, 14 * x : 14 * x + 14] += 150
        _write_idx(folder / f"{prefix}-images-idx3-ubyte.gz", images)
        _write_idx(folder / f"{prefix}-labels-idx1-ubyte.gz", labels)
    return folder


def _write_idx(path: Path, array: np.ndarray) -> None:
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    path.write_bytes(gzip.compress(header + array.tobytes(), mtime=0))


@pytest.fixture
def tiny_recipe() -> Recipe:
    return from_values(TINY, "tiny")


@pytest.fixture
def tiny_recipe_file(tmp_path: Path) -> Path:
    """The same recipe as a file, for the command line."""
    lines = []
    for section, values in TINY.items():
        lines.append(f"[{section}]")
        lines += [f"{key} = {json.dumps(value)}" for key, value in values.items()]
    path = tmp_path / "tiny.toml"
    path.write_text("\n".join(lines))
    return path


@pytest.fixture
def tiny_job(tiny_data: Path, tiny_recipe: Recipe, tmp_path: Path) -> Job:
    folder = tmp_path / "run"
    folder.mkdir()  # as the runner does
    return Job(
        mixer="dwconv",
        scale="micro",
        recipe=tiny_recipe,
        stages=("build", "train", "eval", "profile"),
        data=str(tiny_data),
        folder=folder,
    )


@pytest.fixture(scope="session")
def new_run() -> NewRun:
    """A run to be put into a results database; vary it with `dataclasses.replace`."""
    return NewRun(
        mixer="halo",
        scale="micro",
        stages=("build", "train", "eval", "profile"),
        seed=0,
        recipe_name="quick",
        recipe_digest="3f9c21aa8b10",
        recipe_values={"train": {"batch_size": 64}},
        overrides=("train.batch_size=64",),
        data_source="fashion_mini",
        data_name="fashion_mini",
        data_fingerprint="0123456789abcdef",
        device="cpu",
        hardware="Some CPU (2 cores)",
        precision="fp32",
        threads=2,
        argv=("stmbench", "run"),
        versions={"torch": "2.6.0"},
    )
