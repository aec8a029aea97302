"""Merging: every run once, nothing lost and nothing doubled, between databases of both kinds."""

import dataclasses
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from filled import content, counts, fill
from sqlalchemy import update

from stmbench.record import Measurement
from stmbench.store import NewRun, Store, database, merge, open_store, source, tables

GOLDEN = Path(__file__).parents[1] / "golden"
GOLDEN_RUN = "halo-micro-3f9c21"


@pytest.fixture(params=["sqlite", "postgres"])
def other(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    """The database to merge from; together with `store`, each kind into each."""
    url = str(tmp_path / "other" / "other.db")
    if request.param == "postgres":
        url = request.getfixturevalue("new_postgres")()
    with open_store(url) as store:
        store.folder = tmp_path / "other"
        yield store


@pytest.fixture
def store(url: str, tmp_path: Path) -> Iterator[Store]:
    with open_store(url) as store:
        store.folder = tmp_path / "here"
        yield store


def _merge(store: Store, other: Store, **options: bool) -> dict[str, str]:
    return {m.run: m.how for m in merge.merge(store, merge.runs_of(other), **options)}


def _set(store: Store, run_id: str, **values: object) -> None:
    with store._write() as connection:
        connection.execute(update(tables.run).where(tables.run.c.id == run_id).values(**values))


def test_every_run_is_there_once_and_whole(store: Store, other: Store, new_run: NewRun) -> None:
    ours, theirs = fill(store, new_run), fill(other, dataclasses.replace(new_run, mixer="swin"))
    before = [counts(store), counts(other)]
    both = content(store) | content(other)
    assert _merge(store, other) == dict.fromkeys(theirs, "added")
    for _ in range(2):  # a second time it changes nothing
        assert content(store) == both
        assert counts(store) == {name: sum(count[name] for count in before) for name in before[0]}
        assert {s.run for s in store.summaries()} == {*ours, *theirs}
        assert store.summaries(theirs) == other.summaries(theirs)
        assert _merge(store, other) == dict.fromkeys(theirs, "same")
    assert counts(other) == before[1]


def test_another_run_with_the_same_id_is_kept_beside_it(
    store: Store, other: Store, new_run: NewRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("secrets.token_hex", lambda _: "0" * 8)
    [ours], [theirs] = fill(store, new_run, 1), fill(other, new_run, 1)
    assert ours == theirs
    before = content(store)[ours]
    [own] = _merge(store, other, copy_files=True)
    assert content(store)[ours] == before
    assert content(store)[own].measurement == content(other)[theirs].measurement
    assert (store.run(own).folder, store.run(ours).folder) == (store.folder / own, store.folder / ours)
    assert _merge(store, other) == {own: "same"}
    assert [summary.run for summary in store.summaries()] == [ours, own]


def test_files_stay_where_they_are_and_are_found(store: Store, other: Store, new_run: NewRun) -> None:
    [run] = fill(other, new_run, 1)
    _merge(store, other)
    [file] = store.artifacts(run)
    assert store.run(run).folder == other.folder / run
    assert (store.run(run).folder / file.path).read_bytes() == b"answers 0"


def test_files_are_copied_when_asked(store: Store, other: Store, new_run: NewRun) -> None:
    [run] = fill(other, new_run, 1)
    _merge(store, other)
    assert _merge(store, other, copy_files=True) == {run: "same"}
    assert store.run(run).folder == store.folder / run
    shutil.rmtree(other.folder / run)
    assert (store.run(run).folder / "answers.npz").read_bytes() == b"answers 0"
    assert _merge(store, other, copy_files=True) == {run: "same"}
    assert store.run(run).folder == store.folder / run
    assert [p.name for p in store.folder.iterdir() if p.is_dir()] == [run]


def test_files_that_are_gone_are_told(store: Store, other: Store, new_run: NewRun) -> None:
    [run] = fill(other, new_run, 1)
    shutil.rmtree(other.folder / run)
    [merged] = merge.merge(store, merge.runs_of(other), copy_files=True)
    assert (merged.how, merged.without_files) == ("added", True)
    assert store.run(run).folder == other.folder / run


def test_runs_in_one_folder_move_with_it(tmp_path: Path, new_run: NewRun) -> None:
    with open_store(str(tmp_path / "runs" / "a.db")) as a, open_store(str(tmp_path / "runs" / "b.db")) as b:
        [run] = fill(a, new_run, 1)
        _merge(b, a, copy_files=True)
    (tmp_path / "runs").rename(tmp_path / "moved")
    with open_store(str(tmp_path / "moved" / "b.db")) as b:
        assert (b.run(run).folder / "answers.npz").is_file()


@pytest.mark.parametrize("theirs_is_better", [True, False])
@pytest.mark.parametrize("why", ["done", "newer", "longer"])
def test_of_two_versions_the_more_complete_is_kept(
    store: Store, other: Store, new_run: NewRun, why: str, theirs_is_better: bool
) -> None:
    [run] = fill(other, new_run, 1)
    _merge(store, other)
    worse, better = (store, other) if theirs_is_better else (other, store)
    updated = other.run(run).updated
    if why == "done":  # though the other was changed later
        _set(worse, run, state="failed", updated=updated + timedelta(hours=1))
    elif why == "newer":
        _set(better, run, updated=updated + timedelta(hours=1))
        worse.record(run, Measurement("eval", "more", 1.0))
    else:
        better.record(run, Measurement("eval", "more", 1.0))
    wanted = content(better)
    assert _merge(store, other) == {run: "replaced" if theirs_is_better else "kept"}
    assert content(store) == wanted
    assert _merge(store, other) == {run: "same" if theirs_is_better else "kept"}
    assert len(store.summaries([run])) == 1


def test_files_of_a_version_that_is_given_up_are_kept_aside(
    tmp_path: Path, store: Store, other: Store, new_run: NewRun
) -> None:
    [run] = fill(other, new_run, 1)
    _merge(store, other, copy_files=True)
    other.record(run, Measurement("eval", "more", 1.0))
    (store.folder / run / "mine.txt").write_text("precious")
    assert _merge(store, other, copy_files=True) == {run: "replaced"}
    assert (store.folder / f"{run}.replaced-1" / "mine.txt").read_text() == "precious"
    assert [p.name for p in (store.folder / run).iterdir()] == ["answers.npz"]


def test_an_interrupted_merge_is_completed_by_another(store: Store, other: Store, new_run: NewRun) -> None:
    ids = fill(other, new_run)

    def broken() -> Iterator[merge.WholeRun]:
        for run in merge.runs_of(other):
            if run.id == ids[2]:
                raise KeyboardInterrupt
            if run.id == ids[1]:  # fails in the midst of its transaction
                yield dataclasses.replace(run, artifact=[{**run.artifact[0], "sha256": None}])
            yield run

    with pytest.raises(Exception, match="sha256"):
        list(merge.merge(store, broken()))
    assert set(content(store)) == {ids[0]}
    assert _merge(store, other) == {ids[0]: "same", ids[1]: "added", ids[2]: "added"}
    assert content(store) == content(other)


@pytest.mark.parametrize("text", ["x" * 256, "zero \0 byte"])
def test_what_a_server_cannot_hold_is_told(
    tmp_path: Path, new_postgres: Callable[[], str], new_run: NewRun, text: str
) -> None:
    with open_store(str(tmp_path / "a.db")) as other, open_store(new_postgres()) as store:
        runs = fill(other, new_run, 2)
        other.record(runs[1], Measurement("eval", "top1", 1.0, condition=text))
        with pytest.raises(ValueError, match=rf"Run {runs[1]} cannot be taken in, .* cannot hold a value: "):
            _merge(store, other)
        assert [run.id for run in store.runs()] == [runs[0]]


def test_a_database_is_not_merged_into_itself(tmp_path: Path, new_postgres: Callable[[], str]) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    url = new_postgres()
    with open_store(str(tmp_path / "results.db")) as store, open_store(url) as server:
        for other in (tmp_path / "results.db", tmp_path / "link" / "results.db"):
            with pytest.raises(ValueError, match="is the database to merge into"):
                merge.refuse_itself(str(other), store)
        merge.refuse_itself(str(tmp_path / "another.db"), store)
        with pytest.raises(ValueError, match="is the database to merge into"):
            merge.refuse_itself(url, server)
        merge.refuse_itself(url, store)


@pytest.mark.parametrize("schema", sorted(p.stem.removeprefix("schema_") for p in GOLDEN.glob("schema_*.db")))
def test_a_source_of_every_schema_is_merged_and_not_changed(
    tmp_path: Path, store: Store, new_run: NewRun, schema: str
) -> None:
    path = Path(shutil.copy(GOLDEN / f"schema_{schema}.db", tmp_path / "old.db"))
    before = path.read_bytes()
    for how in ("added", "same"):
        with source.reading(str(path)) as other:
            assert _merge(store, other) == {GOLDEN_RUN: how}
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.glob("old*")] == ["old.db"]
    assert Measurement("eval", "top1", 88.7, "%", "weights=plain") in store.measurements(GOLDEN_RUN)
    assert [summary.top1 for summary in store.summaries()] == [88.7]
    assert store.run(GOLDEN_RUN).folder == tmp_path / GOLDEN_RUN


def test_sources_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "new.db"
    open_store(str(path)).close()
    connection = sqlite3.connect(path)
    connection.execute("UPDATE stmbench_version SET version_num = '9999'")
    connection.commit()
    connection.close()
    (tmp_path / "empty.db").touch()
    for name, message in {"new": "newer stmbench", "none": "no such file", "empty": "holds none"}.items():
        with pytest.raises(ValueError, match=message), source.reading(str(tmp_path / f"{name}.db")):
            pass


def test_a_server_of_an_older_schema_is_not_changed(new_postgres: Callable[[], str]) -> None:
    url = new_postgres()
    with open_store(url) as store, store._write() as connection:
        connection.execute(update(tables.version).values(version_num="0003"))
    with pytest.raises(ValueError, match="`stmbench db upgrade --db postgresql"), source.reading(url):
        pass
    engine = database.connect(database.parse_url(url))
    assert database.schema_of(engine) == "0003"
    engine.dispose()
