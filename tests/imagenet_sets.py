"""ImageNet and its other test sets in small: all class folders, and tiny images that say what to answer."""

import dataclasses
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from stmbench.data import robustness
from stmbench.data.robustness import ALEXNET_ERRORS, PUBLISHED, SEVERITIES

SYNSETS = robustness._synsets("imagenet")
A, R = robustness._synsets("imagenet_a"), robustness._synsets("imagenet_r")
NUMBERS = tuple(map(str, range(1000)))  # ImageNet-V2's folders


class Answers(nn.Module):
    """Answers what the upper left pixel says; of two labels as far from it, the lower one first."""

    def forward(self, images: Tensor) -> Tensor:
        high, low = (images[:, :2, 0, 0] * 255 / 8).round().unbind(1)  # (B,)
        distance = torch.arange(1000) - (32 * high + low)[:, None]  # (B, 1000)
        return -distance.abs() - 0.25 * (distance > 0)


def write(path: Path, centre: int, edge: int = 0) -> None:
    """8x8 pixels that say one answer in the middle 4x4, where a crop to one half looks, and one around."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", (8, 8), _colour(edge))
    image.paste(_colour(centre), (2, 2, 6, 6))
    image.save(path)


def _colour(answer: int) -> tuple[int, int, int]:
    high, low = divmod(answer, 32)
    return 8 * high, 8 * low, 0


def label(name: str) -> int:
    """Of a class folder."""
    return int(name) if name.isdigit() else SYNSETS.index(name)


def fill(root: Path, names: Iterable[str], answer: Callable[[int], int], *, whole: bool = False) -> Path:
    """An image in each class folder, which says an answer in its centre (if `whole`, around it)."""
    for name in names:
        said = answer(label(name))
        write(root / name / "0.png", 0 if whole else said, said if whole else 0)
    return root


def imagenet(root: Path) -> Path:
    """Class folders of ImageNet, with one and the same image in each."""
    write(root / "image.png", 0)
    for split in ("train", "val"):
        for name in SYNSETS:
            (root / split / name).mkdir(parents=True)
            os.link(root / "image.png", root / split / name / "0.png")
    return root


def corrupted(root: Path, of: Mapping[str, Path], names: Iterable[str] = ALEXNET_ERRORS) -> Path:
    """ImageNet-C made of links: of each corruption the folder with its severities, "" for all others."""
    for name in names:
        for severity in SEVERITIES:
            (root / name).mkdir(parents=True, exist_ok=True)
            (root / name / str(severity)).symlink_to(of.get(name, of[""]) / str(severity))
    return root


def publish(monkeypatch: pytest.MonkeyPatch, **changed: dict[str, object]) -> None:
    """Let sets have been published otherwise: ``publish(monkeypatch, a={"images": 200})``."""
    for name, values in changed.items():
        monkeypatch.setitem(PUBLISHED, name, dataclasses.replace(PUBLISHED[name], **values))  # pyright: ignore
