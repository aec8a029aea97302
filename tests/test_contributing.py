"""The mixer that CONTRIBUTING adds is one: its code runs and its row is a row."""

import re
from pathlib import Path
from typing import Any

import torch

from stmbench import catalog
from stmbench.record import Macs

TEXT = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text(encoding="utf-8")


def test_the_example_mixer_keeps_the_contract() -> None:
    module, row = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    names: dict[str, Any] = {}
    exec(module, names)
    listed: catalog.Mixer = eval(row, dict(vars(catalog)))
    mixer = names[listed.target.partition(":")[2]](32)
    for height, width in ((7, 5), (1, 1)):
        x = torch.randn(2, height, width, 32)
        assert mixer(x).shape == x.shape
        assert mixer.macs(height, width) == Macs(2 * height * width * 32 * 32)
