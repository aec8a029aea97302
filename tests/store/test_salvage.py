"""A database whose pages were overwritten: what is safe is said right, and all that is left is copied."""

import dataclasses
import random
import sqlite3
from collections import defaultdict
from pathlib import Path

import pytest
from filled import content, fill

from stmbench.record import Measurement
from stmbench.store import NewRun, merge, open_store, pages, rows, salvage, source
from stmbench.store.rows import WholeRun

RUNS = 200
PAGE = 4096
RUBBISH = {
    "random": lambda page: random.Random(0).randbytes(PAGE),
    "zeros": lambda page: bytes(PAGE),
    "half": lambda page: page[: PAGE // 2] + random.Random(0).randbytes(PAGE // 2),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, new_run: NewRun) -> Path:
    """A database of hundreds of runs, in one file."""
    path = tmp_path_factory.mktemp("whole") / "results.db"
    values = {"train": {"batch_size": 64}, "note": "x" * 300}
    new = dataclasses.replace(new_run, recipe_values=values)
    with open_store(str(path)) as store, pytest.MonkeyPatch.context() as patch:
        patch.setattr("secrets.token_hex", lambda _: "ffffffff")
        fill(store, new, 1, epochs=20)
        [first] = merge.runs_of(store)
        with store._write() as connection:
            for i in range(RUNS):
                run_id = f"halo-micro-{i:08x}"
                run = dataclasses.replace(first, run={**first.run, "id": run_id, "seed": i})
                rows.write(connection, run, run_id)
    return path


@pytest.fixture(scope="module")
def truth(whole: Path) -> dict[str, WholeRun]:
    with source.reading(str(whole)) as store:
        return content(store)


@pytest.fixture(scope="module")
def leaves(whole: Path) -> dict[str, list[int]]:
    """The pages of each table and index but their topmost ones, from 0, found by overwriting them."""
    found = defaultdict(list)
    connection = sqlite3.connect(whole)
    try:
        query = "SELECT name, pageno FROM dbstat WHERE pagetype = 'leaf' ORDER BY pageno"
        for name, number in connection.execute(query):
            found[name].append(number - 1)
    except sqlite3.OperationalError:
        pytest.skip("this SQLite does not tell which page is whose")
    finally:
        connection.close()
    return found


def _damaged(whole: Path, target: Path, numbers: list[int], kind: str = "random") -> Path:
    content = bytearray(whole.read_bytes())
    for number in numbers:
        at = slice(number * PAGE, (number + 1) * PAGE)
        content[at] = RUBBISH[kind](bytes(content[at]))
    target.write_bytes(content)
    return target


def _salvaged(path: Path) -> tuple[salvage.Damage, dict[str, WholeRun]]:
    """What is said, and what is copied, which is in order itself."""
    copy = path.with_name("copy.db")
    before = path.read_bytes()
    damage = salvage.examine(path, copy)
    assert path.read_bytes() == before
    assert pages.complaints(copy) == []
    with source.reading(str(copy)) as store:
        assert {summary.run for summary in store.summaries()} <= set(damage.safe)
        return damage, content(store)


def _middle(numbers: list[int], count: int = 1) -> list[int]:
    start = len(numbers) // 2
    return numbers[start : start + count]


def test_a_sound_file_is_safe(whole: Path, truth: dict[str, WholeRun], tmp_path: Path) -> None:
    assert pages.complaints(whole) == []
    damage, copied = _salvaged(_damaged(whole, tmp_path / "results.db", []))
    assert (set(damage.safe), damage.lost, damage.unnamed) == (set(truth), {}, [])
    assert copied == truth


@pytest.mark.parametrize(
    ("table", "kind"),
    [
        ("run", "random"),
        ("run", "half"),
        ("stage", "zeros"),
        ("measurement", "random"),
        ("measurement", "half"),
        ("artifact", "zeros"),
    ],
)
def test_safe_runs_are_whole_and_damaged_ones_are_named(
    whole: Path,
    truth: dict[str, WholeRun],
    leaves: dict[str, list[int]],
    tmp_path: Path,
    table: str,
    kind: str,
) -> None:
    path = _damaged(whole, tmp_path / "results.db", _middle(leaves[table]), kind)
    assert pages.complaints(path)
    damage, copied = _salvaged(path)
    assert {*damage.safe, *damage.lost} == set(copied) == set(truth)
    assert {run: copied[run] for run in damage.safe} == {run: truth[run] for run in damage.safe}
    assert damage.lost
    assert len(damage.safe) > 0.6 * RUNS
    assert all(copied[run] != truth[run] for run in damage.lost) or kind == "half"
    assert damage.unnamed == []


@pytest.mark.parametrize("index", ["sqlite_autoindex_run_1", "run_created"])
def test_an_index_takes_nothing_with_it(
    whole: Path, truth: dict[str, WholeRun], leaves: dict[str, list[int]], tmp_path: Path, index: str
) -> None:
    path = _damaged(whole, tmp_path / "results.db", _middle(leaves[index]))
    assert pages.complaints(path)
    damage, copied = _salvaged(path)
    assert (set(damage.safe), damage.lost) == (set(truth), {})
    assert copied == truth


def test_what_was_lost_is_told(
    whole: Path, truth: dict[str, WholeRun], leaves: dict[str, list[int]], tmp_path: Path
) -> None:
    told = {
        "run": "its own row",
        "stage": "stage train",
        "artifact": "file answers.npz",
        "measurement": "numbers of",
    }
    for table, text in told.items():
        path = _damaged(whole, tmp_path / f"{table}.db", _middle(leaves[table]))
        damage = salvage.examine(path)
        assert any(text in line for lost in damage.lost.values() for line in lost), table


def test_a_run_that_lost_numbers_can_be_resumed(
    whole: Path, truth: dict[str, WholeRun], leaves: dict[str, list[int]], tmp_path: Path
) -> None:
    damage, copied = _salvaged(_damaged(whole, tmp_path / "results.db", _middle(leaves["measurement"])))
    for run_id in damage.lost:
        run, was = copied[run_id], truth[run_id]
        assert run.run["state"] == "interrupted"
        assert run.run["reason"].startswith("salvaged from a damaged database without numbers of stage")
        assert "interrupted" in {stage["state"] for stage in run.stage}
        assert all(row in was.measurement for row in run.measurement)
    assert sum(len(copied[run].measurement) for run in damage.lost) > 0


def test_numbers_whose_run_is_lost_are_kept(
    whole: Path, truth: dict[str, WholeRun], leaves: dict[str, list[int]], tmp_path: Path
) -> None:
    damage, copied = _salvaged(_damaged(whole, tmp_path / "results.db", _middle(leaves["run"])))
    for run_id in damage.lost:
        run = copied[run_id]
        began = min(stage["started"] for stage in run.stage)
        assert (run.run["state"], run.run["mixer"], run.run["created"]) == ("failed", "", began)
        assert (run.measurement, run.artifact) == (truth[run_id].measurement, truth[run_id].artifact)


def test_several_pages_at_once_never_make_a_damaged_run_safe(
    whole: Path, truth: dict[str, WholeRun], leaves: dict[str, list[int]], tmp_path: Path
) -> None:
    rng = random.Random(1)
    tables = [number for name in ("run", "stage", "measurement", "artifact") for number in leaves[name]]
    for trial in range(8):
        path = _damaged(whole, tmp_path / f"{trial}.db", rng.sample(tables, 4), rng.choice(list(RUBBISH)))
        damage = salvage.Damage()
        left = {run.id: dataclasses.replace(run, folder=Path()) for run in salvage.salvage(path, damage)}
        assert damage.unnamed == []
        assert set(left) == set(truth)
        assert all(left[run] == truth[run] for run in damage.safe)


@pytest.mark.parametrize("page", [39, 82, 109])
def test_a_search_that_goes_astray_makes_no_run_safe(
    whole: Path, truth: dict[str, WholeRun], leaves: dict[str, list[int]], tmp_path: Path, page: int
) -> None:
    """In these pages, half rubbish, SQLite looks for rows in the wrong half, and finds none, and no error."""
    damage = salvage.Damage()
    path = _damaged(whole, tmp_path / "results.db", [leaves["measurement"][page]], "half")
    left = {run.id: dataclasses.replace(run, folder=Path()) for run in salvage.salvage(path, damage)}
    assert damage.lost
    assert all(left[run] == truth[run] for run in damage.safe)


def test_a_key_that_changed_in_the_table_is_known_from_its_index(
    whole: Path, leaves: dict[str, list[int]], tmp_path: Path
) -> None:
    at = _middle(leaves["stage"])[0] * PAGE
    content = whole.read_bytes()
    page = content[at : at + PAGE]
    start = page.index(b"halo-micro-")
    run_id = page[start : start + 19]
    path = tmp_path / "results.db"
    path.write_bytes(content[:at] + page.replace(run_id, run_id[:-1] + b"x", 1) + content[at + PAGE :])
    lost = salvage.examine(path).lost
    assert set(lost) == {run_id.decode()}
    assert lost[run_id.decode()][0].startswith("stage ")


def test_rows_that_nothing_names_are_told(whole: Path, leaves: dict[str, list[int]], tmp_path: Path) -> None:
    both = _middle(leaves["artifact"]) + leaves["sqlite_autoindex_artifact_1"]
    assert salvage.examine(_damaged(whole, tmp_path / "results.db", both)).unnamed == ["artifact"]


def test_opening_a_damaged_file_names_what_to_do(
    whole: Path, leaves: dict[str, list[int]], tmp_path: Path
) -> None:
    path = _damaged(whole, tmp_path / "results.db", leaves["run"] + leaves["measurement"])
    message = (
        rf"{path} is damaged \(database disk image is malformed\): `stmbench db check --db {path}` says which"
    )
    with open_store(str(path)) as store:
        with pytest.raises(OSError, match=message):
            store.runs()
        with pytest.raises(OSError, match=message):
            store.headline(["eval"], ["top1"])


def test_text_that_is_none_is_damage_too(tmp_path: Path, new_run: NewRun) -> None:
    path = tmp_path / "results.db"
    with open_store(str(path)) as store:
        first, second = fill(store, new_run, 2)
    connection = sqlite3.connect(path)
    connection.execute("UPDATE run SET hardware = CAST(x'ff00fe' AS TEXT) WHERE id = ?", (first,))
    connection.execute("UPDATE measurement SET value = 'word' WHERE run = ? AND name = 'top1'", (second,))
    connection.commit()
    connection.close()
    with open_store(str(path)) as store, pytest.raises(OSError, match=r"is damaged .*`stmbench db check"):
        store.run(first)
    damage = salvage.examine(path)
    assert damage.lost == {
        first: ["its own row (recipe, data, environment)"],
        second: ["numbers of stage eval"],
    }


def test_a_file_whose_tables_cannot_be_read(whole: Path, tmp_path: Path) -> None:
    path = tmp_path / "results.db"
    path.write_bytes(b"rubbish" * 10_000)
    with pytest.raises(OSError, match="Not even the list of tables"):
        salvage.examine(path)


def test_a_database_of_an_older_schema_is_salvaged(tmp_path: Path) -> None:
    golden = Path(__file__).parents[1] / "golden" / "schema_0001.db"
    salvage.examine(golden, tmp_path / "copy.db")
    with source.reading(str(tmp_path / "copy.db")) as store:
        [run] = store.runs()
        assert Measurement("eval", "top1", 88.7, "%", "weights=plain") in store.measurements(run.id)
        assert run.folder == golden.parent / run.id
