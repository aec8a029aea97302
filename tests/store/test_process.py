"""Which runs are alive: whatever clocks say, on this machine, on others, and in containers."""

import dataclasses
import os
import platform
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psutil
import pytest
from sqlalchemy import update

from stmbench.cli import layout
from stmbench.store import NewRun, RunRecord, Store, open_store, process, tables

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
MINUTE = timedelta(minutes=1)


class Clock:
    """A wall clock and a steady one that a test sets."""

    def __init__(self) -> None:
        self.wall, self.seconds = NOW, 1000.0

    def pass_(self, time: timedelta) -> None:
        self.wall += time
        self.seconds += time.total_seconds()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def watch(clock: Clock) -> process.Watch:
    return process.Watch(lambda: clock.wall, lambda: clock.seconds)


@pytest.fixture
def run(tmp_path: Path, new_run: NewRun) -> RunRecord:
    """A run of this process, last heard of a moment ago."""
    with open_store(str(tmp_path / "results.db")) as store:
        return dataclasses.replace(store.create_run(new_run), created=NOW, updated=NOW, heartbeat=NOW)


@pytest.fixture
def remote(run: RunRecord) -> RunRecord:
    return dataclasses.replace(run, host="elsewhere", boot_id="another/4026531836")


# On this machine


@pytest.mark.parametrize("hours", [-1000, 1000])
def test_no_setting_of_the_clock_kills_a_run_of_a_living_process(
    run: RunRecord, watch: process.Watch, clock: Clock, monkeypatch: pytest.MonkeyPatch, hours: int
) -> None:
    created = psutil.Process.create_time
    clock.wall += timedelta(hours=hours)
    monkeypatch.setattr(psutil.Process, "create_time", lambda self: created(self) + hours * 3600)
    assert watch.why_dead(run) == ""


@pytest.mark.parametrize("heartbeat", [NOW, NOW + timedelta(days=1000)])
def test_a_heartbeat_of_the_future_makes_no_dead_process_immortal(
    run: RunRecord, watch: process.Watch, heartbeat: datetime
) -> None:
    dead = dataclasses.replace(run, process_started=run.process_started - 1, heartbeat=heartbeat)
    assert watch.why_dead(dead) == f"its process {os.getpid()} is gone"


def test_rows_of_older_versions_read_right(run: RunRecord, watch: process.Watch) -> None:
    boot_id = run.boot_id.partition("/")[0]
    old = dataclasses.replace(run, boot_id=boot_id, process_started=psutil.Process().create_time())
    assert watch.why_dead(old) == ""
    gone = dataclasses.replace(old, process_started=old.process_started - 60)
    assert watch.why_dead(gone).endswith("is gone")


def test_a_restart_of_this_machine_ends_its_runs_at_once(
    run: RunRecord, watch: process.Watch, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "_uptime", lambda: MINUTE)
    before = dataclasses.replace(run, boot_id="before/4026531836", heartbeat=NOW - 2 * MINUTE)
    assert watch.why_dead(before) == f"{platform.node()} was restarted"


@pytest.mark.parametrize("boot_id", ["{ours}/1", "another/{space}"], ids=["namespace", "kernel"])
def test_a_container_of_the_same_name_is_another_machine(
    run: RunRecord, watch: process.Watch, clock: Clock, boot_id: str
) -> None:
    """Its processes cannot be seen from here: a number of ours is none of theirs, a missing one not dead."""
    ours, _, space = run.boot_id.partition("/")
    theirs = dataclasses.replace(run, boot_id=boot_id.format(ours=ours, space=space), pid=2**31 - 1)
    assert watch.why_dead(theirs) == ""
    clock.pass_(6 * MINUTE)
    assert watch.why_dead(dataclasses.replace(theirs, pid=os.getpid())).startswith("not heard of")


def test_this_process_is_named_beyond_the_reuse_of_its_number() -> None:
    me = process.identity()
    assert str(me["boot_id"]).endswith(f"/{Path('/proc/self/ns/pid').stat().st_ino}")
    uptime = time.clock_gettime(time.CLOCK_BOOTTIME)
    assert 0 < float(me["process_started"]) < uptime
    assert uptime - float(me["process_started"]) == pytest.approx(
        time.time() - psutil.Process().create_time(), abs=5
    )


# On other machines


def test_a_silent_run_elsewhere_is_dead(remote: RunRecord, watch: process.Watch, clock: Clock) -> None:
    clock.pass_(4 * MINUTE)
    assert watch.why_dead(remote) == ""
    clock.pass_(2 * MINUTE)
    assert watch.why_dead(remote) == "not heard of from elsewhere since 2026-03-01 12:00 UTC"


@pytest.mark.parametrize("ahead", [timedelta(days=-1), timedelta(days=1)])
def test_a_heartbeat_that_moves_is_a_life_whatever_time_it_says(
    remote: RunRecord, watch: process.Watch, clock: Clock, ahead: timedelta
) -> None:
    beat = dataclasses.replace(remote, heartbeat=NOW + ahead)
    watch.why_dead(beat)
    for _ in range(30):
        clock.pass_(MINUTE)
        beat = dataclasses.replace(beat, heartbeat=beat.heartbeat + MINUTE)
        assert watch.why_dead(beat) == ""
    clock.pass_(6 * MINUTE)
    assert watch.why_dead(beat)


def test_who_watches_does_not_believe_a_heartbeat_of_the_future_for_ever(
    remote: RunRecord, watch: process.Watch, clock: Clock
) -> None:
    beat = dataclasses.replace(remote, heartbeat=NOW + timedelta(days=1))
    assert watch.why_dead(beat) == ""
    clock.pass_(6 * MINUTE)
    assert watch.why_dead(beat)


def test_our_clock_set_forward_kills_nothing_that_beats(
    remote: RunRecord, watch: process.Watch, clock: Clock
) -> None:
    watch.why_dead(remote)
    clock.pass_(MINUTE)
    beat = dataclasses.replace(remote, heartbeat=NOW + MINUTE)
    assert watch.why_dead(beat) == ""
    clock.wall += timedelta(days=1)
    assert watch.why_dead(beat) == ""


def _set(store: Store, run_id: str, **values: object) -> None:
    with store._write() as connection:
        connection.execute(update(tables.run).where(tables.run.c.id == run_id).values(**values))


@pytest.fixture
def clocked(store: Store, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Store]:
    """Opens the store anew, as another command would; all go by the test's clock."""
    monkeypatch.setattr("stmbench.store.database.now", lambda _: clock.wall)

    def again() -> Store:
        store._watch = process.Watch(store._now, lambda: clock.seconds)
        return store

    return again


def test_reaping_counts_the_silence_of_a_heartbeat_of_the_future_from_then(
    clocked: Callable[[], Store], clock: Clock, new_run: NewRun
) -> None:
    run = clocked().create_run(new_run).id
    _set(clocked(), run, host="elsewhere", boot_id="b/1", heartbeat=NOW + timedelta(days=1))
    assert clocked().reap() == []
    clock.pass_(6 * MINUTE)
    assert [reaped.id for reaped in clocked().reap()] == [run]


def test_a_run_that_was_taken_for_dead_and_beats_is_running(
    clocked: Callable[[], Store], clock: Clock, new_run: NewRun
) -> None:
    store = clocked()
    run = store.create_run(new_run).id
    mine = process.identity()
    _set(store, run, host="elsewhere", boot_id="b/1", heartbeat=NOW - timedelta(hours=1))
    assert [reaped.id for reaped in clocked().reap()] == [run]
    _set(store, run, **mine)
    store.beat(run)
    assert (store.run(run).state, store.run(run).reason) == ("running", "")


def test_a_run_that_another_process_has_taken_over_is_not_taken_back(store: Store, new_run: NewRun) -> None:
    run = store.create_run(new_run).id
    _set(store, run, pid=2**31 - 1, state="interrupted")
    store.beat(run)
    assert store.run(run).state == "interrupted"
    assert store.reap() == []  # nor does its row say otherwise


def test_no_duration_is_shown_as_negative() -> None:
    assert layout.duration(timedelta(seconds=-3)) == layout.DASH
    assert layout.duration(timedelta(0)) == "0.0 s"
