"""Export and import: the same runs come back, to the last bit, and a file that is not whole is told."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
from filled import content, counts, fill

from stmbench.record import Measurement
from stmbench.store import NewRun, Store, merge, open_store, tables, transfer

GOLDEN = Path(__file__).parents[1] / "golden"
ODD = [math.nan, math.inf, -math.inf, -0.0, 0.1 + 0.2, 5e-324, 1.7976931348623157e308, 2.0**53 + 2]


@pytest.mark.parametrize("ending", ["jsonl", "jsonl.gz"])
def test_what_was_exported_is_imported(
    store: Store, new_url: Callable[[], str], new_run: NewRun, tmp_path: Path, ending: str
) -> None:
    run = fill(store, new_run)[0]
    for step, value in enumerate(ODD):
        store.record(run, Measurement("train", "odd", value, "é\u2028\n\"'", step=step))
    file = tmp_path / f"runs.{ending}"
    assert transfer.export(merge.runs_of(store), file) == 3
    with open_store(new_url()) as other:
        for how in ("added", "same"):
            assert {m.how for m in merge.merge(other, transfer.read(file))} == {how}
        assert content(other) == content(store)
        assert counts(other) == counts(store)
        there, back = ([m.value for m in s.measurements(run) if m.name == "odd"] for s in (store, other))
        assert [v.hex() for v in back] == [v.hex() for v in there]
        assert back == pytest.approx(ODD, rel=0, abs=0, nan_ok=True)
        assert other.summaries() == store.summaries()
        assert other.run(run).folder == store.run(run).folder


def test_the_file_is_lines_of_strict_json(tmp_path: Path, new_run: NewRun) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    file = tmp_path / "runs.jsonl"
    with open_store(str(tmp_path / "results.db")) as store:
        fill(store, new_run, 1)
        transfer.export(merge.runs_of(store), file)
    first, run, last = [json.loads(line, parse_constant=refuse) for line in file.read_text().splitlines()]
    assert first == {"format": "stmbench-runs/1", "schema": tables.SCHEMA}
    assert last == {"runs": 1}
    assert run["run"]["mixer"] == "halo"
    assert {"inf", None} <= {m["value"] for m in run["measurement"]}


@pytest.mark.parametrize("file", sorted(GOLDEN.glob("export_*.jsonl")), ids=lambda file: file.stem)
def test_an_export_of_every_schema_is_imported(store: Store, file: Path) -> None:
    [merged] = merge.merge(store, transfer.read(file))
    assert (merged.run, merged.how) == ("halo-micro-3f9c21", "added")
    assert Measurement("eval", "top1", 88.7, "%", "weights=plain") in store.measurements(merged.run)


def test_there_is_an_export_of_this_schema() -> None:
    assert (GOLDEN / f"export_{tables.SCHEMA}.jsonl").is_file()


@pytest.mark.parametrize("ending", ["jsonl", "jsonl.gz"])
@pytest.mark.parametrize("kept", [0.3, 0.9])
def test_a_file_that_was_cut_off_gives_what_it_has_and_is_told(
    tmp_path: Path, new_run: NewRun, ending: str, kept: float
) -> None:
    file, cut = tmp_path / f"runs.{ending}", tmp_path / f"cut.{ending}"
    with open_store(str(tmp_path / "results.db")) as store:
        fill(store, new_run, 6)
        transfer.export(merge.runs_of(store), file)
        whole = content(store)
    cut.write_bytes(file.read_bytes()[: int(kept * file.stat().st_size)])
    with open_store(str(tmp_path / "new.db")) as store:
        with pytest.raises(ValueError, match=r"is cut off after [0-5] runs"):
            list(merge.merge(store, transfer.read(cut)))
        there = content(store)
    assert all(there[run] == whole[run] for run in there)
    assert len(there) < 6


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,2\n", "is no export of stmbench, or damaged"),
        ('{"format": "another"}\n', "is no export of stmbench"),
        ("", "is no export of stmbench"),
        ('{"format": "stmbench-runs/1", "schema": "9999"}\n', "written by a newer stmbench"),
        ('{"format": "stmbench-runs/1", "schema": "0004"}\n{"run": {}}\n', "line 2, is no run"),
        ('{"format": "stmbench-runs/1", "schema": "0004"}\n[]\n', "line 2, is no object"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "file.jsonl"
    file.write_text(text)
    with pytest.raises(ValueError, match=message):
        list(transfer.read(file))


def test_a_compressed_file_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file.jsonl.gz").write_text("not compressed")
    with pytest.raises(ValueError, match="is no export of stmbench, or damaged"):
        list(transfer.read(tmp_path / "file.jsonl.gz"))


def test_no_file_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "runs.jsonl").write_text("precious")
    with pytest.raises(ValueError, match="is there already"):
        transfer.export([], tmp_path / "runs.jsonl")
    assert (tmp_path / "runs.jsonl").read_text() == "precious"
