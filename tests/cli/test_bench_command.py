"""`stmbench bench`: what it prints, and with what exit code it ends."""

import functools
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from typer.testing import CliRunner
from typer.testing import Result as Outcome

from stmbench import bench
from stmbench.bench import Contender, Result, Row
from stmbench.cli import app
from stmbench.measure.statistics import Ratio
from stmbench.record import Progress

Invoke = Callable[..., Outcome]


@pytest.fixture
def invoke(monkeypatch: pytest.MonkeyPatch) -> Invoke:
    """Run the command with what each contender after the first is found to be: a ratio, or a reason."""

    def invoke(
        *arguments: str, found: Sequence[Ratio | str] = (), reference: str = "", **more: Any
    ) -> Outcome:
        def run(asked: Sequence[Contender], groups: int) -> Iterator[Progress | Result]:
            yield Progress("bench", "bench", 0, groups)
            yield result(asked, groups, found, reference, **more)

        monkeypatch.setattr(bench, "run", run)
        return CliRunner().invoke(app, ["bench", "--device", "cpu", *arguments])

    return invoke


def result(
    asked: Sequence[Contender], groups: int, found: Sequence[Ratio | str], reference: str, **more: Any
) -> Result:
    row = functools.partial(Row, seconds=0.0123, log_ratios=(), backend=more.pop("backend", "plain"))
    rows = [row(contender=asked[0], ratio=None, reason=reference)]
    for contender, each in zip(asked[1:], found, strict=True):
        failed = isinstance(each, str)
        rows.append(row(contender=contender, ratio=None if failed else each, reason=each if failed else ""))
    shared = {
        "set_aside": 0,
        "others": 0.0,
        "hardware": "Some CPU",
        "threads": 2,
        "versions": {"torch": "2.6"},
    }
    return Result(rows=tuple(rows), groups=groups, **(shared | more))


SLOWER, FASTER, EQUAL = Ratio(1.1, 1.06, 1.15), Ratio(0.8, 0.75, 0.85), Ratio(1.0, 0.97, 1.03)


def test_the_table(invoke: Invoke) -> None:
    names = ("halo", "swin", "dwconv", "halo@precision=bf16", "sra")
    outcome = invoke(*names, found=[SLOWER, FASTER, EQUAL, "Out of memory"])
    assert outcome.exit_code == 0
    head, *lines = outcome.stdout.splitlines()
    assert head.split() == ["contender", "time", "ratio", "95", "%", "verdict"]
    assert [line.split()[0] for line in lines[:5]] == list(names)
    assert [line.split()[-1] for line in lines[:4]] == ["reference", "slower", "faster", "inconclusive"]
    assert "12.3 ms" in lines[1]
    assert "1.100  1.060\N{EN DASH}1.150" in lines[1]
    assert lines[4].endswith("Out of memory")
    assert "inference at batch 1 of 3x224x224, Some CPU [cpu], 2 threads" in lines[5]
    assert len(lines) == 6


def test_the_backend_is_shown_where_any_is_not_plain(invoke: Invoke) -> None:
    outcome = invoke("halo@backend=plain", "halo", found=[FASTER], backend="sdpa+plain")
    head, first, *_ = outcome.stdout.splitlines()
    assert head.split()[:2] == ["contender", "backend"]
    assert first.split()[:2] == ["halo@backend=plain", "sdpa+plain"]
    outcome = invoke("halo@backend=plain", "halo", "--format", "json", found=[FASTER], backend="sdpa+plain")
    first, second = json.loads(outcome.stdout)["contenders"]
    assert (first["backend"], first["forced"], second["forced"]) == ("sdpa+plain", "plain", "")


def test_a_restless_machine_is_told_of(invoke: Invoke) -> None:
    text = invoke("halo", "swin", found=[EQUAL], set_aside=3, others=0.4).stdout
    assert "3 more of each were set aside" in text
    assert "other programs took 40 % of the CPU" in text


def test_json_is_all_there_is_on_stdout(invoke: Invoke) -> None:
    outcome = invoke("halo", "swin@scale=tiny", "--format", "json", "--pairs", "8", found=[SLOWER])
    record = json.loads(outcome.stdout)
    assert (record["protocol"], record["reference"], record["groups"]) == ("bench/1", "halo", 8)
    halo, swin = record["contenders"]
    assert (halo["verdict"], halo["ratio"], halo["seconds"]) == (None, None, 0.0123)
    assert (swin["network"], swin["scale"], swin["precision"]) == ("swin", "tiny", "fp32")
    assert (swin["verdict"], swin["low"]) == ("slower", 1.06)


@pytest.mark.parametrize(
    ("limit", "found", "code"),
    [
        ("5%", SLOWER, 1),
        ("5 %", SLOWER, 1),
        ("6%", SLOWER, 0),  # its interval begins at 1.06
        ("5%", EQUAL, 0),
        ("5%", FASTER, 0),
        ("5%", "Out of memory", 1),
        ("", SLOWER, 0),
        ("", "Out of memory", 1),  # nothing was compared
    ],
)
def test_a_limit_for_ci(invoke: Invoke, limit: str, found: Ratio | str, code: int) -> None:
    option = ["--fail-if-slower", limit] if limit else []
    outcome = invoke("halo", "swin", *option, found=[found])
    assert outcome.exit_code == code
    assert bool(outcome.stderr) == bool(code and limit)
    if code and isinstance(found, Ratio):
        assert (
            outcome.stderr == "swin is more than 5 % slower than halo: 1.100 times as long, at least 1.060.\n"
        )


@pytest.mark.parametrize("limit", ["5", "0.05", "a lot", "-5%", "%", "nan%", "inf%"])
def test_a_limit_is_a_percentage(invoke: Invoke, limit: str) -> None:
    outcome = invoke("halo", "swin", f"--fail-if-slower={limit}", found=[EQUAL])
    assert isinstance(outcome.exception, ValueError)
    assert f"--fail-if-slower takes a share such as 5%, not '{limit}'." in str(outcome.exception)


def test_a_failed_reference_is_a_failure(invoke: Invoke) -> None:
    assert invoke("halo", "swin", found=[""], reference="Out of memory").exit_code == 1


def test_what_cannot_be_asked(invoke: Invoke) -> None:
    assert invoke("halo", "swin", "--pairs", "5").exit_code == 2
    outcome = invoke("halo", "hallo")
    assert isinstance(outcome.exception, ValueError)
    assert "Did you mean 'halo'?" in str(outcome.exception)


def test_ctrl_c(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(asked: Sequence[Contender], groups: int) -> Iterator[Progress]:
        yield Progress("bench", "bench", 0, groups)
        raise KeyboardInterrupt

    monkeypatch.setattr(bench, "run", run)
    outcome = CliRunner().invoke(app, ["bench", "halo", "swin", "--device", "cpu"])
    assert (outcome.exit_code, outcome.stdout, outcome.stderr) == (130, "", "Stopped.\n")
