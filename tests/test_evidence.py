"""What a run is recognised by: all that decides its result, and nothing else."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from stmbench import evidence, plan
from stmbench.plan import Request


def _request(tiny_recipe_file: Path, tiny_data: Path, **changes: Any) -> Request:
    given: dict[str, Any] = {
        "mixer": "dwconv",
        "scale": None,
        "recipe_name": str(tiny_recipe_file),
        "overrides": [],
        "stage": "build,train,eval",
        "seed": 0,
        "data": str(tiny_data),
        "device": "cpu",
        "weights": None,
    }
    return plan.request(**(given | changes))


@pytest.fixture
def asked(tiny_recipe_file: Path, tiny_data: Path) -> Request:
    return _request(tiny_recipe_file, tiny_data)


def _fingerprint(asked: Request) -> str:
    return evidence.fingerprint(asked, asked.mixers[0])


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 1},
        {"scale": "tiny"},
        {"mixer": "pool"},
        {"backend": "plain"},
        {"overrides": ["optimizer.lr=0.1"]},
        {"overrides": ["profile.samples=6"]},
        {"overrides": ["train.precision='bf16'"]},
        {"data": "fashion-mini"},
    ],
)
def test_what_decides_a_result_changes_it(
    asked: Request, tiny_recipe_file: Path, tiny_data: Path, changes: dict[str, Any]
) -> None:
    assert _fingerprint(_request(tiny_recipe_file, tiny_data, **changes)) != _fingerprint(asked)


def test_neither_stages_nor_names_nor_places_change_it(
    asked: Request, tiny_recipe_file: Path, tiny_data: Path
) -> None:
    renamed = tiny_recipe_file.rename(tiny_recipe_file.with_name("other.toml"))
    overrides = [f"data.source='{tiny_data}'", "data.workers=3", "data.cache=none"]
    same = _request(renamed, tiny_data, stage="train", overrides=overrides)
    assert _fingerprint(same) == _fingerprint(asked) == evidence.gather(asked, "dwconv").fingerprint


def test_the_weights_it_starts_from_count_by_their_content(asked: Request, tmp_path: Path) -> None:
    found = []
    for name, value in (("a", 1.0), ("b", 1.0), ("c", 2.0)):
        save_file({"weight": torch.full((2,), value)}, tmp_path / name)
        found.append(_fingerprint(dataclasses.replace(asked, weights=str(tmp_path / name))))
    assert found[0] == found[1] != found[2]
    assert _fingerprint(asked) not in found


def test_our_own_code_counts(asked: Request, monkeypatch: pytest.MonkeyPatch) -> None:
    before = _fingerprint(asked)
    assert evidence.gather(asked, "dwconv").versions["sources"] == evidence.sources("dwconv")
    monkeypatch.setattr(evidence, "sources", lambda _: "changed")
    assert _fingerprint(asked) != before


def test_a_plug_ins_code_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    source = tmp_path / "plugged_mixer.py"
    monkeypatch.syspath_prepend(str(tmp_path))
    row = dataclasses.replace(evidence.catalog.mixer("pool"), name="plugged", target="plugged_mixer:Mixer")
    monkeypatch.setattr(evidence.catalog, "mixer", lambda _: row)
    found = []
    for text in ("A = 1", "A = 2"):
        source.write_text(text)
        evidence.sources.cache_clear()
        found.append(evidence.sources("plugged"))
    evidence.sources.cache_clear()
    assert found[0] != found[1]
