"""The benchmark suites run, write what they found, and tell a regression by its ratio."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent / "benchmarks"


def suite(name: str, *arguments: str) -> str:
    command = [sys.executable, str(FOLDER / f"{name}.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_mixers_are_timed_against_plain_and_an_older_file(tmp_path: Path) -> None:
    small = ("--mixers", "halo,pool", "--levels", "4", "--scale", "micro", "--batch", "1", "--rounds", "2")
    new, old = tmp_path / "new.json", tmp_path / "old.json"
    suite("bench_mixers", *small, "-o", str(old))
    found = json.loads(old.read_text())
    assert found["suite"] == "mixers/1"
    cases = [case for case in found["cases"] if case["backend"] == "plain"]
    assert [(c["mixer"], c["mode"], c["dtype"]) for c in cases] == [
        (mixer, mode, dtype)
        for mixer in ("halo", "pool")
        for mode in ("forward", "train")
        for dtype in ("fp32", "bf16")
    ]
    assert all(case["ms"] > 0 and case["ratio"] == 1 for case in cases)
    for case in found["cases"]:
        case["linears"] /= 100
    old.write_text(json.dumps(found))
    text = suite("bench_mixers", *small, "--dtypes", "fp32", "-o", str(new), "--against", str(old))
    lines = [line for line in text.splitlines() if line.startswith("pool plain train 4 fp32")]
    assert len(lines) == 1
    assert lines[0].endswith("slower")


@pytest.mark.slow
def test_networks_are_timed_beside_each_other(tmp_path: Path) -> None:
    file = tmp_path / "networks.json"
    small = ("--scale", "micro", "--size", "32", "--batch", "2", "--rounds", "1", "--no-timm", "--profile")
    text = suite("bench_networks", "--networks", "pool", "identity", *small, "-o", str(file))
    cases = json.loads(file.read_text())["cases"]
    assert [(case["network"], case["mode"]) for case in cases] == [
        (network, mode) for mode in ("train", "inference") for network in ("pool", "identity")
    ]
    assert all(case["ms"] > 0 and case["backend"] == "plain" for case in cases)
    assert "aten::" in text
