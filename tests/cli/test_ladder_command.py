"""`stmbench ladder`, and the commands on weights and recipes beside it, with real training."""

import re
from collections.abc import Callable
from pathlib import Path

from stmbench.store import open_store

Invoke = Callable[..., tuple[int, str, str]]


def test_a_ladder_is_climbed_once(invoke: Invoke, tiny_data: Path, tiny_recipe_file: Path) -> None:
    own = tiny_recipe_file.with_name("own.toml")
    own.write_text(tiny_recipe_file.read_text().replace("lr = 0.002", "lr = 0.001"))
    options = ("--mixer", "sra", "--recipe", str(tiny_recipe_file), "--original-recipe", str(own))
    options += ("--data", str(tiny_data), "--stage", "build,train,eval")
    code, out, err = invoke("ladder", *options)
    assert (code, err) == (0, "")
    designs = ["original", "depths", "stem", "downsampling", "block", "head", "unified"]
    rungs = re.findall(r"^(\w+(?: \(\w+\))?) +([\d.]+ M)", out, re.MULTILINE)
    assert [name for name, _ in rungs] == [*designs[:-1], "unified (position)", "recipe"]
    assert rungs[0][1] != rungs[-2][1] == rungs[-1][1]
    assert out.count("inconclusive") + out.count("better") + out.count("worse") == 7
    assert f"The last step changes the recipe alone: all rungs above it were trained by {own}" in out
    assert f"it by {tiny_recipe_file} (`stmbench recipes diff {own} {tiny_recipe_file}`)." in out
    with open_store("runs/stmbench.db") as store:
        found = {(run.design, run.recipe_name): run for run in store.runs()}
        assert len(store.runs()) == 8
    assert found.keys() == {(design, "own") for design in designs} | {("unified", "tiny")}
    original = found["original", "own"]
    code, out, _ = invoke("ladder", *options)
    assert (code, out.count("done already")) == (0, 8)
    assert "original" in invoke("show", original.id)[1]
    code, out, _ = invoke("weights", "inspect", f"runs/{original.id}/plain.safetensors")
    assert (code, "sra micro (original)" in out) == (0, True)
    code, out, _ = invoke("reproduce", original.id)
    assert (code, "the same, bit for bit" in out) == (0, True)


def test_a_failed_rung_ends_the_ladder_in_one_line(
    invoke: Invoke, tiny_data: Path, tiny_recipe_file: Path
) -> None:
    options = ("--mixer", "sra", "--recipe", str(tiny_recipe_file), "--data", str(tiny_data))
    code, _, err = invoke("ladder", *options, "--stage", "build,train,eval", "--set", "optimizer.lr=1e30")
    assert code == 1
    assert err.count("Error:") == 7
    code, out, err = invoke("ladder", *options, "--stage", "build,train,eval", "--set", "optimizer.lr=1e30")
    assert (code, out.count("failed already")) == (1, 7)
    assert "not all rungs are there" in err


def test_recipes_are_read_and_compared(invoke: Invoke) -> None:
    assert "imagenet_fair" in invoke("recipes")[1]
    assert "batch_size = 64" in invoke("recipes", "show", "quick")[1]
    code, out, _ = invoke("recipes", "diff", "imagenet_attention", "imagenet_fair")
    assert code == 0
    assert re.search(r"model\.drop_path +null +0\.2", out)
    assert re.search(r'optimizer\.decay_positions +\["halo", "sra"\] +\[\]', out)
    code, _, err = invoke("recipes", "diff", "quick", "quik")
    assert (code, "Did you mean 'quick'?" in err) == (2, True)
