"""Sweep files: what they multiply, and what a mistake in one is answered with."""

import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer

from stmbench.cli import app
from stmbench.recipe import build
from stmbench.sweep import file
from stmbench.sweep.file import Sweep, load
from stmbench.sweep.rays import Options

ROOT = Path(__file__).parents[1]


def written(folder: Path, text: str) -> str:
    path = folder / "mine.toml"
    path.write_text(text)
    return str(path)


def test_overrides_are_alternatives_and_a_grid_is_each_with_each(tmp_path: Path) -> None:
    text = """
    mixers = ["halo"]
    overrides = [[], "train.ema_decay=0.9", { optimizer.lr = 1e-3, "data.mean" = [0.5] }]
    [grid]
    "schedule.epochs" = [1, 2]
    augment.auto_augment = ["", "rand-m9"]
    """
    variants = load(written(tmp_path, text)).variants()
    assert len(variants) == 3 * 2 * 2
    assert variants[0] == ("schedule.epochs=1", 'augment.auto_augment=""')
    assert variants[4] == ("train.ema_decay=0.9", *variants[0])
    assert variants[-1] == (
        "optimizer.lr=0.001",
        "data.mean=[0.5]",
        "schedule.epochs=2",
        'augment.auto_augment="rand-m9"',
    )


def test_a_recipe_is_left_as_it_is_where_nothing_is_changed() -> None:
    assert Sweep(mixers=("halo",)).variants() == ((),)


def test_the_sweeps_that_come_with_us_are_found_by_name_and_hold() -> None:
    assert "quick" in file.names()
    for name in file.names():
        sweep = load(name)
        assert sweep.name == name
        assert file.find(name).read_text().startswith("# ")


def test_sweeps_are_packed_into_the_wheel() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    build = project["tool"]["hatch"]["build"]["targets"]
    assert build["wheel"]["force-include"]["sweeps"] == "stmbench/sweeps"
    assert "/sweeps" in build["sdist"]["include"]


MISTAKES = [
    ("mixer = ['halo']", "mine.toml: Unknown key 'mixer'. Did you mean 'mixers'?"),
    ("mixers = 'halo'", "mine.toml: mixers must be a list, not 'halo'."),
    ("mixers = ['halo']\nseeds = ['one']", "seeds must be a whole number, not 'one'."),
    ("mixers = ['halo']\nseeds = [-1]", "a seed is from 0 to 4294967295, not -1."),
    ("mixers = ['halo']\nseeds = []", "seeds is empty"),
    ("seeds = [0]", "nothing to run: name mixers"),
    ("mixers = ['halo']\noverrides = [3]", "an entry of overrides is a list of section.key=value"),
    ("mixers = ['halo']\noverrides = 'a.b=1'", "overrides must be a list, not 'a.b=1'."),
    ("mixers = ['halo']\ngrid = [1]", "grid must be a [section], not [1]."),
    ("mixers = ['halo']\n[grid]\n'optimizer.lr' = 1e-3", "grid.optimizer.lr must be a list of values"),
    ("mixers = ['halo'", "is not valid TOML"),
]


@pytest.mark.parametrize(("text", "line"), MISTAKES, ids=[line for _, line in MISTAKES])
def test_a_mistake_is_named(tmp_path: Path, text: str, line: str) -> None:
    with pytest.raises(ValueError, match=r"mine\.toml") as error:
        load(written(tmp_path, text))
    assert line in str(error.value)
    assert "\n" not in str(error.value)


def test_a_sweep_that_is_not_there_is_said_so() -> None:
    with pytest.raises(ValueError, match=r"No sweep file at absent\.toml"):
        load("absent.toml")
    with pytest.raises(ValueError, match=r"Unknown sweep 'quik'\. Did you mean 'quick'"):
        load("quik")


def test_the_examples_of_the_documentation_hold(tmp_path: Path) -> None:
    text = (ROOT / "docs/sweeps.md").read_text(encoding="utf-8")
    first, *sections = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
    assert load(written(tmp_path, first)).variants() == ((), ("schedule.epochs=8",))
    for section in sections:
        sweep: Sweep = build(Sweep, tomllib.loads(section), "")
        build(Options, sweep.ray, "")
    command: Any = typer.main.get_command(app)
    lines = re.findall(r"^stmbench sweep ([^#\n]+)", text, re.MULTILINE)
    assert lines
    for line in lines:
        command.commands["sweep"].make_context("sweep", shlex.split(line))
