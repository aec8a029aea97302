"""`stmbench run --from RUN`, and what the stage probe is good for on the command line."""

import csv
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from stmbench import cli
from stmbench.store import RunRecord, open_store

Invoke = Callable[..., tuple[int, str, str]]
SMALL = ("--set", "schedule.epochs=1", "--set", "probe.neighbours=5")


@pytest.fixture
def trained(invoke: Invoke) -> RunRecord:
    """A run of dwconv in its original design, on images of 24 pixels, that kept averaged weights."""
    options = ("--set", "data.image_size=24", "--set", "train.ema_decay=0.9", *SMALL)
    code, _, err = invoke("run", "--mixer", "dwconv", "--design", "original", "--stage", "train", *options)
    assert (code, err) == (0, "")
    return newest()


def newest() -> RunRecord:
    with open_store("runs/stmbench.db", create=False) as store:
        return store.runs(limit=1)[0]


@pytest.fixture
def bare(invoke: Invoke, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Invoke:
    """The command line without the recipe and data that `invoke` gives to a run."""

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["stmbench", *arguments])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        out, err = capsys.readouterr()
        return int(stop.value.code or 0), out, err

    return call


def test_a_run_goes_on_as_the_network_it_starts_from(trained: RunRecord, bare: Invoke) -> None:
    code, out, err = bare("run", "--from", trained.id, "--stage", "probe")
    assert (code, err) == (0, "")
    run = newest()
    assert run.id != trained.id
    assert run.weights == str(trained.folder / "ema.safetensors")
    for same in ("mixer", "scale", "design", "recipe_name", "recipe_digest", "recipe_values", "overrides"):
        assert getattr(run, same) == getattr(trained, same), same
    assert (run.data_fingerprint, run.stages) == (trained.data_fingerprint, ["probe"])
    assert f"from {run.weights}" in out.replace("\n", "")
    assert "linear" in out
    with open_store("runs/stmbench.db") as store:
        found = {m.condition: m.value for m in store.measurements(run.id) if m.name == "top1"}
    assert {at.rpartition("=")[2] for at in found} == {"ema"}


def test_a_named_recipe_counts_but_images_are_prepared_as_the_weights_know_them(
    trained: RunRecord, invoke: Invoke
) -> None:
    code, _, err = invoke("run", "--from", trained.id, "--stage", "eval", "--set", "data.crop_pct=0.9")
    assert (code, err) == (0, "")
    run = newest()
    assert run.overrides == ["data.image_size=24", "data.crop_pct=0.9"]
    assert run.recipe_values["data"]["image_size"] == 24
    assert run.recipe_values["train"]["ema_decay"] == 0
    invoke("run", "--from", trained.id, "--stage", "eval", "--set", "data.image_size=28")
    assert newest().recipe_values["data"]["image_size"] == 28  # what was typed wins


def test_training_follows_the_named_recipe_alone(trained: RunRecord, invoke: Invoke) -> None:
    code, _, err = invoke("run", "--from", trained.id, "--stage", "train", *SMALL)
    assert (code, err) == (0, "")
    run = newest()
    assert run.recipe_values["data"]["image_size"] == 28
    assert run.weights == str(trained.folder / "ema.safetensors")
    assert (run.mixer, run.design) == ("dwconv", "original")


def test_what_looked_at_given_weights_hands_those_on(trained: RunRecord, bare: Invoke) -> None:
    bare("run", "--from", trained.id, "--stage", "eval")
    first = newest()
    code, _, err = bare("run", "--from", first.id, "--stage", "probe")
    assert (code, err) == (0, "")
    assert newest().weights == first.weights


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--mixer", "halo"], "--mixer halo does not go with the weights of"),
        (["--model", "timm:test_resnet"], "--model timm:test_resnet does not go with"),
        (["--scale", "tiny"], "--scale tiny does not go with"),
        (["--design", "unified"], "--design unified does not go with"),
        (["--weights", "other.pth"], "--from and --weights are two places to start from"),
    ],
)
def test_another_network_is_refused(
    trained: RunRecord, bare: Invoke, options: list[str], message: str
) -> None:
    code, _, err = bare("run", "--from", trained.id, "--stage", "probe", *options)
    assert code == 2
    assert message in " ".join(err.split())
    same = ("--mixer", "convnext", "--scale", "micro", "--design", "original")
    assert bare("run", "--from", trained.id, "--stage", "probe", "--dry-run", *same)[0] == 0


def test_a_run_without_weights_or_with_others_by_now_is_refused(trained: RunRecord, bare: Invoke) -> None:
    bare("run", "--mixer", "identity", "--stage", "build")
    code, _, err = bare("run", "--from", newest().id, "--stage", "probe")
    assert code == 2
    assert "has no trained weights" in " ".join(err.split())
    assert "Unknown run" in bare("run", "--from", "nobody", "--stage", "probe")[2]
    weights = trained.folder / "ema.safetensors"
    weights.write_bytes(weights.read_bytes() + b" ")
    code, _, err = bare("run", "--from", trained.id, "--stage", "probe")
    assert code == 2
    assert f"is no longer the file that {trained.id} wrote" in " ".join(err.split())
    weights.unlink()
    assert "is gone" in bare("run", "--from", trained.id, "--stage", "probe")[2]


def test_an_interrupted_run_from_another_is_resumed(
    trained: RunRecord, bare: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    from stmbench.stages import probe

    with monkeypatch.context() as patch:
        patch.setattr(probe, "_linear", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert bare("run", "--from", trained.id, "--stage", "probe")[0] == 130
    code, _, err = bare("resume", newest().id)
    assert (code, err) == (0, "")


def test_probes_are_ranked_and_compared(invoke: Invoke) -> None:
    code, out, err = invoke("run", "--mixer", "dwconv,pool", "--stage", "train,probe", *SMALL)
    assert (code, err) == (0, "")
    assert "probe %" in out
    assert "knn %" in out
    code, out, _ = invoke("leaderboard", "--columns", "mixer,probe,knn", "--sort", "probe", "--format", "csv")
    assert code == 0
    rows = list(csv.DictReader(out.splitlines()))
    assert [row["rank"] for row in rows] == ["1", "1"]
    assert [float(row["probe"]) for row in rows] == [100, 100]
    assert all(0 <= float(row["knn"]) <= 100 for row in rows)
    for probe in ("linear", "knn"):
        code, out, err = invoke("compare", "dwconv", "pool", "--probe", probe)
        assert (code, err) == (0, "")
        assert f"Top-1 by {probe} probe on 20 test images" in out
        assert "pool micro and dwconv micro are not told apart" in out
    code, _, err = invoke("compare", "dwconv", "pool")
    assert code == 2
    assert "has no predictions: it was not evaluated" in " ".join(err.split())


def test_unlike_probes_are_not_compared(invoke: Invoke) -> None:
    invoke("run", "--mixer", "dwconv", "--stage", "train,probe", *SMALL)
    invoke("run", "--mixer", "pool", "--stage", "train,probe", *SMALL, "--set", "probe.neighbours=7")
    code, _, err = invoke("compare", "dwconv", "pool", "--probe", "knn")
    assert code == 2
    assert "pool micro was probed otherwise than dwconv micro" in " ".join(err.split())
    assert invoke("compare", "dwconv", "pool", "--probe", "linear")[0] == 0


def test_a_probe_on_other_data_learns_its_classes(trained: RunRecord, bare: Invoke, tmp_path: Path) -> None:
    from PIL import Image

    for split, count in (("train", 5), ("val", 2)):
        for label, grey in (("dark", 40), ("bright", 220)):
            for i in range(count):
                path = tmp_path / "other" / split / label / f"{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (30, 26), (grey + i,) * 3).save(path)
    options = ("--data", str(tmp_path / "other"))
    code, _, err = bare("run", "--from", trained.id, "--stage", "eval", *options)
    assert code == 2
    assert "tells 4 classes apart, other has 2" in " ".join(err.split())
    code, _, err = bare("run", "--from", trained.id, "--stage", "probe", *options)
    assert (code, err) == (0, "")
    with open_store("runs/stmbench.db") as store:
        found = {m.name: m.value for m in store.measurements(newest().id) if "probe=linear" in m.condition}
    assert (found["top1"], found["images"]) == (100, 4)
