"""What every results database must do, whichever it is, and what concurrent writers may rely on."""

import dataclasses
import hashlib
import math
import os
import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psutil
import pytest
from sqlalchemy import text, update

from stmbench.record import Artifact, Measurement
from stmbench.store import NewRun, Store, open_store, tables


def _set(store: Store, run_id: str, **values: object) -> None:
    """Change a run's row behind the store's back."""
    with store._write() as connection:
        connection.execute(update(tables.run).where(tables.run.c.id == run_id).values(**values))


# What goes in comes out


def test_a_run_comes_back_as_it_was_given(store: Store, new_run: NewRun) -> None:
    run = store.run(store.create_run(new_run).id)
    for field in dataclasses.fields(NewRun):
        given, found = getattr(new_run, field.name), getattr(run, field.name)
        assert found == (list(given) if isinstance(given, tuple) else given), field.name
    assert run.id.startswith("halo-micro-")
    assert run.folder == store.folder / run.id
    assert (run.state, run.reason, run.pid) == ("running", "", os.getpid())
    assert timedelta(0) <= datetime.now(UTC) - run.created < timedelta(minutes=1)


def test_run_ids_are_unique(store: Store, new_run: NewRun, monkeypatch: pytest.MonkeyPatch) -> None:
    draws = iter(["aaaaaa", "aaaaaa", "bbbbbb"])
    monkeypatch.setattr("secrets.token_hex", lambda _: next(draws))
    assert [store.create_run(new_run).id for _ in range(2)] == ["halo-micro-aaaaaa", "halo-micro-bbbbbb"]


def test_a_measurement_written_again_is_replaced(store: Store, new_run: NewRun) -> None:
    run = store.create_run(new_run).id
    store.record(run, Measurement("train", "loss", 2.0, step=1))
    store.record(run, Measurement("train", "loss", 1.5, step=1))
    store.record(run, Measurement("train", "loss", 1.0, step=2))
    store.record(run, Measurement("eval", "top1", 88.7, "%", "weights=plain"))
    store.record(run, Measurement("eval", "top1", 89.1, "%", "weights=ema"))
    assert store.measurements(run) == [
        Measurement("eval", "top1", 89.1, "%", "weights=ema"),
        Measurement("eval", "top1", 88.7, "%", "weights=plain"),
        Measurement("train", "loss", 1.5, step=1),
        Measurement("train", "loss", 1.0, step=2),
    ]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 0.1 + 0.2, 1e300, 93_327_336])
def test_a_value_keeps_every_bit(store: Store, new_run: NewRun, value: float) -> None:
    run = store.create_run(new_run).id
    store.record(run, Measurement("train", "loss", value))
    assert store.measurements(run)[0].value == pytest.approx(value, rel=0, abs=0, nan_ok=True)


def test_measurements_follow_the_order_of_the_stages(store: Store, new_run: NewRun) -> None:
    run = store.create_run(new_run).id
    for stage in ("train", "build", "eval"):
        store.start_stage(run, stage)
        store.record(run, Measurement(stage, "seconds", 1.0))
        store.end_stage(run, stage)
    assert [m.stage for m in store.measurements(run)] == ["train", "build", "eval"]


def test_headline_takes_final_numbers_of_every_run(store: Store, new_run: NewRun) -> None:
    first, second = store.create_run(new_run).id, store.create_run(new_run).id
    wanted = Measurement("eval", "top1", 88.0, "%", "weights=plain")
    for run in (first, second):
        store.record(run, wanted)
        store.record(run, Measurement("eval", "top5", 99.0, "%", "weights=plain"))
        store.record(run, Measurement("train", "top1", 80.0, "%", "weights=plain"))
        store.record(run, Measurement("eval", "top1", 70.0, "%", "weights=plain", step=1))
    assert store.headline(["eval"], ["top1"]) == {first: [wanted], second: [wanted]}


def test_an_artifact_is_kept_with_its_size_and_digest(store: Store, new_run: NewRun, tmp_path: Path) -> None:
    run = store.create_run(new_run).id
    file = tmp_path / "sub" / "weights.bin"
    file.parent.mkdir()
    for content in (b"old", b"newer"):
        file.write_bytes(content)
        store.attach(run, Artifact("train", "weights", file, "weights=ema"), tmp_path)
    [found] = store.artifacts(run)
    assert (found.path, found.bytes) == (Path("sub/weights.bin"), 5)
    assert found.sha256 == hashlib.sha256(b"newer").hexdigest()
    assert (found.stage, found.kind, found.condition) == ("train", "weights", "weights=ema")


def test_files_of_a_kind_are_found_in_all_runs_at_once(store: Store, new_run: NewRun, tmp_path: Path) -> None:
    file = tmp_path / "predictions.npz"
    file.write_bytes(b"abc")
    first, second, _ = (store.create_run(new_run).id for _ in range(3))
    for run in (first, second):
        store.attach(run, Artifact("eval", "predictions", file, "weights=plain"), tmp_path)
    (tmp_path / "other").write_bytes(b"")
    store.attach(first, Artifact("eval", "picture", tmp_path / "other"), tmp_path)
    store.attach(first, Artifact("train", "predictions", tmp_path / "other"), tmp_path)
    found = store.files("eval", "predictions")
    assert set(found) == {first, second}
    assert [record.path for record in found[first]] == [Path("predictions.npz")]


# Finding runs


def test_runs_come_newest_first_and_filtered(store: Store, new_run: NewRun) -> None:
    ids = [store.create_run(dataclasses.replace(new_run, mixer=m)).id for m in ("halo", "swin", "halo")]
    store.end_run(ids[0], "done")
    assert [run.id for run in store.runs()] == ids[::-1]
    assert [run.id for run in store.runs(mixer="halo", limit=1)] == [ids[2]]
    assert [run.id for run in store.runs(state="done")] == [ids[0]]
    assert store.runs(mixer="sra") == []


def test_the_beginning_of_an_id_is_enough(store: Store, new_run: NewRun) -> None:
    halo = store.create_run(new_run)
    swin = [store.create_run(dataclasses.replace(new_run, mixer="swin")).id for _ in range(2)]
    assert store.run("ha").id == store.run(halo.id).id == halo.id
    with pytest.raises(ValueError, match="'swin' begins the ids of 2 runs: swin-micro-") as error:
        store.run("swin")
    assert all(run in str(error.value) for run in swin)
    with pytest.raises(ValueError, match=f"Unknown run 'x{halo.id}'. Did you mean '{halo.id}'?"):
        store.run(f"x{halo.id}")
    with pytest.raises(ValueError, match="Unknown run '%'"):  # no wildcard
        store.run("%")


# How a run stands


def test_stages_open_and_close(store: Store, new_run: NewRun) -> None:
    run = store.create_run(new_run).id
    store.start_stage(run, "build")
    store.end_stage(run, "build")
    store.start_stage(run, "train")
    build, train = store.stages(run)
    assert (build.name, build.state, train.name, train.state) == ("build", "done", "train", "running")
    assert build.ended is not None
    assert build.started <= build.ended <= train.started
    assert train.ended is None
    store.end_run(run, "failed", "the loss is no longer a number")
    train = store.stages(run)[1]
    assert (train.state, train.reason) == ("failed", "the loss is no longer a number")
    assert train.ended is not None
    assert (store.run(run).state, store.run(run).reason) == (train.state, train.reason)


def test_only_a_stopped_run_is_reopened(store: Store, new_run: NewRun) -> None:
    run = store.create_run(new_run).id
    with pytest.raises(ValueError, match=f"still running, as process {os.getpid()}"):
        store.reopen(run)
    store.start_stage(run, "train")
    store.end_run(run, "interrupted", "stopped by the user")
    again = store.reopen(run)
    assert (again.state, again.reason) == ("running", "")
    store.start_stage(run, "train")
    assert [stage.state for stage in store.stages(run)] == ["running"]
    store.end_run(run, "done")
    with pytest.raises(ValueError, match="is done: nothing to resume"):
        store.reopen(run)


_RUN_AND_DIE = """
import json, sys
from stmbench.store import NewRun, open_store
store = open_store(sys.argv[1])
run = store.create_run(NewRun(**json.loads(sys.argv[2])))
store.start_stage(run.id, "train")
print(run.id, flush=True)
sys.stdin.read()
"""


def test_a_run_whose_process_died_reads_interrupted(tmp_path: Path, new_run: NewRun) -> None:
    import json

    url = str(tmp_path / "results.db")
    command = [sys.executable, "-c", _RUN_AND_DIE, url, json.dumps(dataclasses.asdict(new_run))]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    assert process.stdin
    with process, open_store(url) as store:
        run = process.stdout.readline().strip()
        assert store.run(run).state == "running"
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # dead, but still a zombie
        reason = f"its process {process.pid} is gone"
        assert (store.run(run).state, store.run(run).reason) == ("interrupted", reason)
        process.wait()
        assert (store.run(run).state, store.run(run).reason) == ("interrupted", reason)
        assert [(s.state, s.reason) for s in store.stages(run)] == [("interrupted", reason)]
        assert [r.id for r in store.runs(state="interrupted")] == [run]
        assert [r.id for r in store.reap()] == [run]
        assert store.reap() == []
        with store._read() as connection:
            assert connection.scalar(text("SELECT state FROM run")) == "interrupted"
            assert connection.scalar(text("SELECT state FROM stage")) == "interrupted"
        assert store.reopen(run).pid == os.getpid()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"boot_id": "another/1", "heartbeat": datetime(2020, 1, 1, tzinfo=UTC)}, "was restarted"),
        ({"process_started": 1.5}, "is gone"),  # its number, another process
        ({"process_started": psutil.Process().create_time() - 60}, "is gone"),  # in a row of an older version
        (
            {"host": "elsewhere", "boot_id": "b/1", "heartbeat": datetime.now(UTC) - timedelta(minutes=6)},
            "not heard of from else",
        ),
    ],
)
def test_other_signs_of_death(store: Store, new_run: NewRun, change: dict, reason: str) -> None:
    run = store.create_run(new_run).id
    _set(store, run, **change)
    assert store.run(run).state == "interrupted"
    assert reason in store.run(run).reason


def test_a_heartbeat_keeps_a_run_on_another_host_alive(store: Store, new_run: NewRun) -> None:
    run = store.create_run(new_run).id
    _set(store, run, host="elsewhere", boot_id="b/1", heartbeat=datetime.now(UTC) - timedelta(minutes=6))
    store.beat(run)
    assert store.run(run).state == "running"
    assert store.reap() == []


# Many at once


def test_runs_are_opened_at_once(url: str, new_run: NewRun) -> None:
    """Which reads before it writes: a lock that is taken late is refused, however long one would wait."""
    made: list[str] = []

    def create() -> None:
        with open_store(url) as store:
            made.extend(store.create_run(new_run).id for _ in range(25))

    open_store(url).close()
    threads = [threading.Thread(target=create) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with open_store(url) as store:
        assert len(made) == 100
        assert {run.id for run in store.runs()} == set(made)


def test_threads_may_share_a_store(store: Store, new_run: NewRun) -> None:
    run = store.create_run(new_run).id
    threads = [threading.Thread(target=store.beat, args=(run,)) for _ in range(8)]
    before = store.run(run).heartbeat
    for thread in threads:
        thread.start()
    for step in range(50):
        store.record(run, Measurement("train", "loss", 1.0, step=step))
    for thread in threads:
        thread.join()
    assert len(store.measurements(run)) == 50
    assert store.run(run).heartbeat > before


def test_reading_does_not_wait_for_a_writer(tmp_path: Path, new_run: NewRun) -> None:
    url = str(tmp_path / "results.db")
    with open_store(url) as writer, open_store(url) as reader:
        run = writer.create_run(new_run).id
        with writer._write() as connection:
            connection.execute(update(tables.run).values(reason="not yet committed"))
            assert reader.run(run).reason == ""
        assert reader.run(run).reason == "not yet committed"


def test_a_stage_taken_up_again_keeps_its_curve_alone(store: Store, new_run: NewRun) -> None:
    run = store.create_run(new_run).id
    store.start_stage(run, "train")
    store.record(run, Measurement("train", "loss", 0.5, step=1))
    store.record(run, Measurement("train", "skipped", 3.0))
    store.record(run, Measurement("build", "macs", 7.0))
    store.end_run(run, "interrupted")
    store.start_stage(store.reopen(run).id, "train")
    assert {(m.stage, m.name) for m in store.measurements(run)} == {("train", "loss"), ("build", "macs")}


def test_runs_are_counted(store: Store, new_run: NewRun) -> None:
    assert store.count() == 0
    store.end_run(store.create_run(new_run).id, "failed")
    store.create_run(new_run)
    assert store.count() == 2
