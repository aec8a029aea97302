"""From a job to a run: stages in order, every measurement committed as it appears and handed on.

A run that dies leaves every number it had, and its state says how it died.
"""

import contextlib
import dataclasses
import threading
import time
from collections.abc import Collection, Generator, Iterator, Sequence
from dataclasses import dataclass

import torch

from stmbench import catalog, devices, evidence, recipe, world
from stmbench.evidence import sha256
from stmbench.plan import Request, find_data, prepared
from stmbench.record import Artifact, Event, Job, Measurement
from stmbench.store import RunRecord, Store, claims
from stmbench.store.records import State
from stmbench.training.meter import DivergedError
from stmbench.training.network import weights_file
from stmbench.world import LostError

HEARTBEAT_S = 15.0
# That all processes of a run have at once, where there are several.
SHARED_ERRORS = (DivergedError, LostError)


@dataclass(frozen=True, slots=True)
class StageDone:
    """A stage has ended well."""

    stage: str
    seconds: float


def start(asked: Request, store: Store) -> Iterator[Job]:
    """Open one run after the other, each when the one before it has been taken, and yield its job."""
    for mixer in asked.mixers:
        run = store.create_run(evidence.gather(asked, mixer))
        job = asked.job(mixer, run.folder)
        yield dataclasses.replace(job, ceilings=store.ceilings(run.host, run.hardware))


def reopen(name: str, store: Store) -> Job:
    """Take over an interrupted or failed run, by its id or enough of its beginning, and return its job.

    Raises:
        ValueError: no such run, it is done or still running, or its data or device are not here.
    """
    run = store.run(name)
    if run.folder.name != run.id:
        raise ValueError(
            f"Run {run.id} was taken in under another id: resume it as {run.folder.name}, at home."
        )
    job = _job(run, store, data=run.data_source, weights=run.weights or None, device=devices.find(run.device))
    _check_data(run)
    _check_files(run, job, store)
    store.reopen(run.id)
    return job


def claim(
    asked: Request, mixer: str, store: Store, *, argv: Sequence[str], retry: bool = False
) -> tuple[RunRecord, Job | None]:
    """Open the run that is asked for, or take over the one that was interrupted (`retry`: or failed).

    There is no job where the run is done, failed or another process's: of two processes that claim the same
    run one gets it. `argv` is the command that a new run is known to come from.
    """
    new = dataclasses.replace(evidence.gather(asked, mixer), argv=argv)
    lost: list[str] = []  # runs that cannot go on, since their files are gone
    while True:
        run, mine = claims.claim(store, new, retry=retry, lost=lost)
        if not mine:
            return run, None
        job = _job(run, store, data=asked.info.source, weights=asked.weights, device=asked.device)
        try:
            _check_files(run, job, store)
        except ValueError as error:
            store.end_run(run.id, "failed", str(error))
            lost.append(run.id)
        else:
            return run, job


def _job(run: RunRecord, store: Store, *, data: str, weights: str | None, device: str) -> Job:
    """The job of a run, whose data and weights lie here."""
    return Job(
        mixer=run.mixer,
        scale=run.scale,
        recipe=prepared(recipe.from_values(run.recipe_values, run.recipe_name), run.preprocessing),
        asked_digest=run.recipe_digest if run.preprocessing else "",
        stages=tuple(run.stages),
        seed=run.seed,
        data=data,
        device=device,
        weights=weights,
        backend=run.backend,
        design=run.design,
        folder=run.folder,
        ceilings=store.ceilings(run.host, run.hardware),
    )


def _check_data(run: RunRecord) -> None:
    info = find_data(run.data_source, recipe.from_values(run.recipe_values, run.recipe_name))
    if info.fingerprint != run.data_fingerprint:
        raise ValueError(
            f"The data at {run.data_source} have changed since {run.id} started "
            f"({info.fingerprint}, then {run.data_fingerprint}): start a new run."
        )


def _check_files(run: RunRecord, job: Job, store: Store) -> None:
    if job.weights and sha256(job.weights) != run.weights_sha256:
        raise ValueError(f"{job.weights} is no longer the file that {run.id} started from: start a new run.")
    trained = any(stage.name == "train" and stage.state == "done" for stage in store.stages(run.id))
    if trained and not weights_file(job, "plain").is_file():
        raise ValueError(f"The weights that {run.id} trained are gone from {job.folder}: start a new run.")


def execute(
    job: Job, store: Store, *, later: Collection[str] = ()
) -> Generator[Event | StageDone, None, None]:
    """Take the run through those of its stages that are not done yet.

    Whatever stops it, an exception or the consumer closing the iterator, is written to the run's row
    before it goes on upward. A run with stages that are put off for `later` ends as interrupted.
    """
    run_id = job.folder.name
    if torch.device(job.device).index is not None:
        torch.cuda.set_device(job.device)  # on which kernels that are not torch's own are launched
    job.folder.mkdir(parents=True, exist_ok=True)
    done = {stage.name for stage in store.stages(run_id) if stage.state == "done"}
    left = [stage for stage in job.stages if stage not in done]
    with _ended(store, run_id, [stage for stage in left if stage in later]), _heartbeat(store, run_id):
        for stage in left:
            if stage not in later:
                yield from _stage(job, store, run_id, stage)


def _stage(job: Job, store: Store, run_id: str, stage: str) -> Iterator[Event | StageDone]:
    started = time.perf_counter()
    store.start_stage(run_id, stage)
    try:
        with world.noticing_losses():
            if stage in catalog.SHARED:
                world.tell((job, stage))
            for event in catalog.resolve(catalog.stages()[stage])(job):
                if isinstance(event, Measurement):
                    store.record(run_id, event)
                elif isinstance(event, Artifact):
                    store.attach(run_id, event, job.folder)
                yield event
    except BaseException as error:
        with contextlib.suppress(Exception):  # the first error is the one to report
            store.end_stage(run_id, stage, _state(error), _reason(error))
        raise
    store.end_stage(run_id, stage, "done")
    yield StageDone(stage, time.perf_counter() - started)


def follow() -> None:
    """Take part, as one of several processes but not the first, in the stages that the first one says."""
    with world.noticing_losses():
        while said := world.tell():
            job, stage = said
            for _ in catalog.resolve(catalog.stages()[stage])(_here(job)):
                pass


def _here(job: Job) -> Job:
    kind = torch.device(job.device).type
    return dataclasses.replace(job, device=world.place(kind))


@contextlib.contextmanager
def _ended(store: Store, run_id: str, put_off: list[str]) -> Iterator[None]:
    try:
        yield
    except BaseException as error:
        with contextlib.suppress(Exception):
            store.end_run(run_id, _state(error), _reason(error))
        raise
    if put_off:
        store.end_run(run_id, "interrupted", f"still to come: {', '.join(put_off)}")
    else:
        store.end_run(run_id, "done")


def _state(error: BaseException) -> State:
    return "failed" if isinstance(error, Exception) and not isinstance(error, LostError) else "interrupted"


def _reason(error: BaseException) -> str:
    if isinstance(error, KeyboardInterrupt | GeneratorExit):
        return str(error) or "stopped by the user"
    return f"{type(error).__name__}: {error}"


@contextlib.contextmanager
def _heartbeat(store: Store, run_id: str) -> Iterator[None]:
    stop = threading.Event()

    def beat() -> None:
        while not stop.wait(HEARTBEAT_S):
            with contextlib.suppress(Exception):  # a missed beat is no reason to lose a run
                store.beat(run_id)

    thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
