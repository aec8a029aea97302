"""The ImageNet recipes, started against a small folder in ImageNet's layout: an epoch with all on."""

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stmbench import cli
from stmbench.store import open_store

# A small batch, a short run; everything else is the recipe's.
SHORT = (
    "train.batch_size=8", "train.device_batch_size=4", "schedule.epochs=1", "schedule.warmup_epochs=0",
    "eval.batch_size=4", "data.workers=2",
)  # fmt: skip


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of photographs' sizes, as ImageNet's lists have them."""
    root = tmp_path_factory.mktemp("imagenet")
    rng = np.random.default_rng(0)
    (root / "meta").mkdir()
    for split, count in (("train", 18), ("val", 5)):
        lines = []
        for i in range(count):
            name = f"n0144076{i % 2}/{split}_{i}.JPEG"
            path = root / split / name
            path.parent.mkdir(parents=True, exist_ok=True)
            noise = rng.integers(
                0, 256, (int(rng.integers(90, 400)), int(rng.integers(90, 400)), 3), np.uint8
            )
            Image.fromarray(noise).save(path)
            lines.append(f"{name} {i % 2}")
        (root / "meta" / f"{split}.txt").write_text("\n".join(lines))
    return root


@pytest.mark.parametrize("recipe", ["imagenet_attention", "imagenet_fair"])
def test_an_epoch_of_the_imagenet_recipe(
    imagenet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recipe: str
) -> None:
    monkeypatch.chdir(tmp_path)
    overrides = [word for text in SHORT for word in ("--set", text)]
    arguments = ["--mixer", "swin", "--scale", "micro", "--stage", "train,eval", "--device", "cpu"]
    command = ["stmbench", "run", "--recipe", recipe, "--data", str(imagenet), *arguments, *overrides]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert not stop.value.code
    with open_store("runs/stmbench.db", create=False) as store:
        (run,) = store.runs()
        numbers = {(m.stage, m.name, m.condition): m.value for m in store.measurements(run.id)}
    assert run.state == "done"
    assert numbers["train", "updates", ""] == 2  # 18 images, in batches of 8
    assert numbers["train", "accumulation", ""] == 2
    assert numbers["train", "loader_images_per_second", ""] > 0
    assert 0 <= numbers["train", "data_wait", ""] <= 100
    assert numbers["eval", "images", "weights=ema"] == 5
    assert numbers["eval", "images", "weights=plain"] == 5
