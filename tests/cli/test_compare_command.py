"""`stmbench compare`: every line it prints, its exit codes, and two real runs, trained and compared."""

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import evaluated
import numpy as np
import pytest
from evaluated import two

from stmbench import cli
from stmbench.record import Measurement
from stmbench.store import NewRun, Store, open_store

OLD, NEW = two(both=300, only_first=5, only_second=15, neither=80)
Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def db(tmp_path: Path) -> str:
    return str(tmp_path / "stmbench.db")


@pytest.fixture
def store(db: str) -> Iterator[Store]:
    with open_store(db) as store:
        yield store


@pytest.fixture
def call(db: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """The exit code of a command, and what it prints to stdout and stderr."""
    monkeypatch.setenv("STMBENCH_DB", db)

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["stmbench", *arguments])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        out, err = capsys.readouterr()
        return int(stop.value.code or 0), out, err

    return call


@pytest.fixture
def two_runs(store: Store, new_run: NewRun) -> tuple[str, str]:
    new = dataclasses.replace(new_run, overrides=())
    halo = evaluated.add(store, new, OLD, mixer="halo")
    swin = evaluated.add(store, new, NEW, mixer="swin", precision="bf16")
    for run, latency in ((halo, 5.83), (swin, 4.08)):
        store.record(run, Measurement("build", "macs", 14e6, "MACs", "height=28,width=28"))
        store.record(run, Measurement("profile", "latency", latency, "ms", "batch=1,device=cpu"))
    store.record(swin, Measurement("profile", "disturbed", 1, "", "batch=1,device=cpu"))
    return halo, swin


def test_differences_then_the_test_then_the_verdict(call: Call, two_runs: tuple[str, str]) -> None:
    code, out, err = call("compare", "halo", "swin")
    assert (code, err) == (0, "")
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert lines == [
        "What differs",
        "halo micro swin micro",
        "configuration precision fp32 bf16",
        "architecture mixer halo swin",
        "Nothing else differs.",
        "",
        "Costs",
        "halo micro swin micro",
        "MACs 14.0 M 14.0 M (1.000x)",
        "latency! at batch=1 5.83 ms 4.08 ms (0.700x)",
        "times at device=cpu",
        "! the machine was disturbed: `stmbench show RUN` says how",
        "",
        "Top-1 on 400 test images",
        "seeds top-1 % difference interval p verdict",
        "halo micro 1 76.25 reference",
        "swin micro 1 78.75 +2.50 +0.50 to +4.75 0.041 better",
        "images answered rightly: 15 by swin micro alone, 5 by halo micro alone",
        "McNemar's exact test, interval of a paired bootstrap; one seed each: this tells two trained networks"
        " apart, not what they are made of",
        "",
        "better: swin micro than halo micro, +2.50 points, 95 % interval +0.50 to +4.75.",
    ]


def test_seeds_contenders_and_their_correction(call: Call, store: Store, new_run: NewRun) -> None:
    rng = np.random.default_rng(0)
    for mixer, level, seeds in (("halo", 0.8, 2), ("swin", 0.8, 1), ("sra", 0.2, 2)):
        for seed in range(seeds):
            evaluated.add(store, new_run, rng.random(2000) < level, mixer=mixer, seed=seed)
    code, out, _ = call("compare", "halo", "swin", "sra")
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert code == 0
    assert "seeds seed 0, 1 0 0, 1" in lines
    assert "seeds top-1 % difference interval p (Holm) verdict" in lines
    assert "means over seeds; the interval (Student's) is for other seeds and other test images" in lines
    [drawn] = [
        line for line in lines if line.startswith("hierarchical bootstrap of seeds, then images: swin ")
    ]
    assert ", sra micro -" in drawn
    assert drawn.endswith("; it covers too little where seeds vary much, and does not decide")
    assert "swin micro: one seed, taken to vary as much as the other side's" in lines
    assert "p-values and intervals are corrected for 2 comparisons (Holm)" in lines
    assert lines[-2].startswith("inconclusive: swin micro and halo micro are not told apart, ")
    assert " points, 95 % interval -" in lines[-2]
    assert lines[-1].startswith("worse: sra micro than halo micro, -")
    assert " points, 97.5 % interval -" in lines[-1]
    assert "McNemar" not in out
    assert "Costs" not in out


def test_json_is_all_there_is_on_stdout(call: Call, two_runs: tuple[str, str]) -> None:
    code, out, err = call("compare", *two_runs, "--format", "json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert found["reference"] == two_runs[0]
    assert found["comparisons"][0]["verdict"] == "better"
    assert found["costs"][-1]["values"] == [5.83, 4.08]


def test_what_is_unlike_is_one_line_and_exit_code_2_unless_forced(
    call: Call, store: Store, new_run: NewRun
) -> None:
    evaluated.add(store, new_run, OLD, mixer="halo")
    swin = evaluated.add(store, new_run, NEW, mixer="swin", recipe_digest="81ab")
    code, out, err = call("compare", "halo", "swin")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("Error: Not compared: swin micro followed another recipe")
    code, out, _ = call("compare", "halo", "swin", "--force")
    assert code == 0
    assert "forced: swin micro followed another recipe than halo micro" in out
    assert "better: swin micro" in out
    (store.run(swin).folder / "predictions_plain.npz").unlink()
    code, out, _ = call("compare", "halo", "swin", "--force")
    assert code == 0
    assert "no test of swin micro against halo micro: there are no predictions." in out


def test_a_terminal_of_80_columns_is_enough(
    store: Store, two_runs: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from rich.console import Console

    from stmbench.cli import compare
    from stmbench.reading import compare as comparing

    console = Console(width=80, force_terminal=True, color_system=None, record=True)
    monkeypatch.setattr(compare, "Console", lambda: console)
    compare._show(comparing.compare(store, ["halo", "swin"]))
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= 80
    assert all(word in text for word in ("bf16", "better", "+2.50", "0.041", "78.75", "(0.700x)"))


def test_neither_command_imports_torch(db: str, two_runs: tuple[str, str]) -> None:
    code = "import sys; from stmbench.cli import app; app(sys.argv[1:], standalone_mode=False); "
    code += "sys.exit('torch' in sys.modules)"
    for command in (["compare", "halo", "swin"], ["leaderboard"]):
        done = subprocess.run(
            [sys.executable, "-c", code, *command, "--db", db], capture_output=True, text=True
        )
        assert (done.returncode, done.stderr) == (0, ""), command


def test_two_real_runs_are_compared(call: Call, tiny_data: Path, tiny_recipe_file: Path) -> None:
    """Trained and evaluated by the runner; what is compared is what the stage `eval` found."""
    options = ["--recipe", str(tiny_recipe_file), "--data", str(tiny_data), "--stage", "build,train,eval"]
    for seed in ("0", "1"):
        assert call("run", "--mixer", "identity", "--seed", seed, *options)[0] == 0
    _, out, _ = call("runs")
    runs = [line.split()[0] for line in out.splitlines()[1:]]
    code, out, _ = call("compare", *runs, "--format", "json")
    found = json.loads(out)
    assert (code, found["images"]) == (0, 20)
    unlike = [one["name"] for one in found["differences"] if one["topic"] != "environment"]
    assert unlike == ["seed"]  # whoever edits this checkout meanwhile changes the environment
    [one] = found["comparisons"]
    old, new = (side["top1"][0] for side in found["sides"])
    assert one["difference"] == pytest.approx(new - old)
    assert one["only_contender"] - one["only_reference"] == pytest.approx(20 * (new - old) / 100)
    assert (one["verdict"] == "inconclusive") == (one["p"] > 0.05)
    _, out, _ = call("leaderboard", "--format", "json")
    assert json.loads(out)[0]["top1"] == pytest.approx((old + new) / 2)
