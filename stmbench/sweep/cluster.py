"""What Slurm and Ray have in common: runs that go on elsewhere, watched through the database."""

from collections.abc import Callable, Iterator, Mapping, Sequence

from stmbench.record import Measurement
from stmbench.runner import StageDone
from stmbench.store import Store
from stmbench.store.claims import standing
from stmbench.sweep.planning import Item
from stmbench.sweep.work import Ended, Outcome, Started, Told

POLL_S = 5.0
Ask = Callable[[], Outcome | None]  # how a job ended; None while it has not


def watch(
    items: Sequence[Item], jobs: Mapping[int, Ask], store: Store, wait: Callable[[float], object]
) -> Iterator[Told | Ended]:
    """Tell of the items that have a job until these have ended; `wait` passes the time between looks."""
    pending = dict(jobs)
    told = {i: _Told(i, items[i], store) for i in pending}
    while pending:
        for i, ask in list(pending.items()):
            outcome = ask()  # before the last look, so that nothing of it is missed
            yield from told[i].news()
            if outcome:
                del pending[i]
                yield Ended(i, outcome)
        if pending:
            wait(POLL_S)


class _Told:
    """One item, and how much of its run was told already."""

    def __init__(self, number: int, item: Item, store: Store) -> None:
        self.number, self.item, self.store = number, item, store
        self.run_id = ""
        self.stages = set(item.run.stages if item.run else ()) - set(item.left)
        self.numbers = {_key(m) for m in store.measurements(item.run.id)} if item.run else set()

    def news(self) -> Iterator[Told]:
        """What has happened since the last look."""
        run = standing(self.store.runs(fingerprint=self.item.fingerprint), self.item.left)
        if run is None or (run.id != self.run_id and run.state in ("failed", "interrupted")):
            return  # nothing yet, or what was before
        if run.id != self.run_id:
            self.run_id = run.id
            yield Told(self.number, Started(run.id, run.folder))
        stages = self.store.stages(run.id)  # before their numbers: a stage that is done has all of them
        found = self.store.measurements(run.id)
        for number in sorted(found, key=lambda m: (m.step, m.name == "seconds")):  # which ends an epoch
            if _key(number) not in self.numbers:
                self.numbers.add(_key(number))
                yield Told(self.number, number)
        for stage in stages:
            if stage.state == "done" and stage.ended and stage.name not in self.stages:
                self.stages.add(stage.name)
                yield Told(self.number, StageDone(stage.name, (stage.ended - stage.started).total_seconds()))


def _key(number: Measurement) -> tuple[str, str, str, int]:
    return number.stage, number.name, number.condition, number.step
