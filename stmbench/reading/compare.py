"""Is one network more often right than another? Runs against a reference, image by image, with a verdict.

A side is a run, or a network as a leaderboard names it, which stands for all its finished runs: its
seeds. The statistics are those of `reading.significance`, on the predictions that the stage `eval` kept, or
those of the stage `probe`, of its linear classifier or its nearest neighbours.
The first side is the reference; of several others every p-value is corrected for their number (Holm
1979), and every interval is at the level its test was held to, so that it excludes zero exactly where the
verdict is no `inconclusive`.

What was not trained and tested by one protocol is refused: other data, another recipe, images prepared
otherwise, other test images.
"""

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from stmbench import catalog
from stmbench.reading import answers, differences, selection, tables
from stmbench.reading.answers import Answers
from stmbench.reading.differences import Cost, Difference, Numbers, settings_of
from stmbench.reading.holm import holm
from stmbench.reading.significance import Hits, Interval, Pair, Test, Verdict, hierarchical, paired, verdict
from stmbench.record import parts_of, without
from stmbench.store import RunRecord, Store
from stmbench.store.records import ArtifactRecord

Files = Mapping[str, ArtifactRecord]  # with predictions, by run id

_MATTERS = ("data.", "augment.", "model.", "optimizer.", "schedule.", "train.", "eval.")  # to what is learnt


@dataclass(frozen=True, slots=True)
class Side:
    """One network: its runs, a run per seed, and the top-1 of each in per cent, of which weights."""

    name: str
    runs: tuple[RunRecord, ...]
    top1: tuple[float | None, ...] = ()
    weights: tuple[str, ...] = ()  # plain or ema


@dataclass(frozen=True, slots=True)
class Outcome:
    """A contender against the reference. Without a test there is a reason for it, and nothing else."""

    contender: str
    test: Test | None
    p: float | None = None  # corrected
    level: float | None = None  # the interval covers all but this
    interval: Interval | None = None
    hierarchical: Interval | None = None  # of several seeds: the bootstrap's own percentiles, at that level
    reason: str = ""

    @property
    def verdict(self) -> Verdict | None:
        return self.interval and verdict(self.interval)


@dataclass(frozen=True, slots=True)
class Comparison:
    """Sides, the reference first; what differs between them, what they cost, and how the others do."""

    sides: tuple[Side, ...]
    images: int | None  # test images of the reference that could be read
    differences: tuple[Difference, ...]
    costs: tuple[Cost, ...]
    forced: tuple[str, ...]  # what would have been refused
    outcomes: tuple[Outcome, ...]


def compare(
    store: Store,
    names: Sequence[str],
    *,
    scale: str | None = None,
    recipe_name: str | None = None,
    data: str | None = None,
    where: str | None = None,
    probe: str = "",
    across_recipes: bool = False,
    force: bool = False,
) -> Comparison:
    """Compare runs or networks with the first of them.

    A name is a run's id, enough of its beginning, or a network (``halo``, ``halo-micro``, ``halo (plain)``);
    several with commas between are one side. The filters are for networks. `probe` asks for answers of the
    stage probe: `linear` or `knn`. With `across_recipes` other recipes are what is compared, not refused.

    Raises:
        ValueError: fewer than two sides, an unknown or ambiguous name, a run on two sides; without `force`
            also sides that were not trained and tested alike, and predictions that are gone.
    """
    if len(names) < 2:
        raise ValueError("compare takes two runs or networks, or more: the reference first.")
    finished = selection.finished(store, scale=scale, recipe_name=recipe_name, data=data, where=where)
    files = answers.files(store, probe)
    sides = [_side(store, name, finished, files) for name in names]
    _check_distinct(sides)
    problems = [text for side in sides[1:] for text in _unlike(sides[0], side, files, across_recipes)]
    read: list[list[Answers]] = []
    for i, side in enumerate(sides):
        sides[i], found, missing = _read(side, files, probe)
        read.append(found)
        problems += missing
    problems += [
        f"{side.name} was tested on other images than {sides[0].name}"
        for side, found in zip(sides[1:], read[1:], strict=True)
        if found and read[0] and not found[0].same_images(read[0][0])
    ]
    if problems and not force:
        raise ValueError(f"Not compared: {'; '.join(problems)}. --force goes on as far as it can.")
    numbers = store.headline((*differences.STAGES, "probe"), differences.NAMES)
    runs = [side.runs for side in sides]
    return Comparison(
        tuple(_scored(side, numbers, probe) for side in sides),
        len(read[0][0].hits) if read[0] else None,
        tuple(differences.differences(runs, numbers)),
        tuple(differences.costs(runs, numbers)),
        tuple(problems),
        tuple(_outcomes(sides, read)),
    )


# Sides


def _side(store: Store, text: str, finished: Sequence[RunRecord], files: Files) -> Side:
    """The runs that a name stands for: of each seed the newest."""
    found: list[RunRecord] = []
    networks = []
    for part in filter(None, map(str.strip, text.split(","))):
        named = [run for run in finished if part in _names(run)]
        networks += [_network(named[0])] if named else []
        evaluated = [run for run in named if run.id in files]
        found += evaluated or named or [_run(store, part)]
    if not found:
        raise ValueError("An empty name: compare takes runs or networks.")
    _check_one_kind(text, found)
    newest: dict[int, RunRecord] = {}
    for run in found:
        newest.setdefault(run.seed, run)
    runs = tuple(newest[seed] for seed in sorted(newest))
    return Side(networks[0] if networks else ", ".join(run.id for run in runs), runs)


def _run(store: Store, name: str) -> RunRecord:
    """The run with this id, or beginning of it: a name that none of the networks has."""
    networks = {name for run in selection.finished(store) for name in _names(run)}
    if name in networks:
        raise ValueError(f"No finished run of {name} passes --scale, --recipe, --data and --where.")
    if networks and not any(run.id.startswith(name) for run in store.runs()):
        catalog.known("run or network", name, sorted(networks))
    return store.run(name)


def _network(run: RunRecord) -> str:
    return f"{tables.network(run)} {run.scale}".rstrip()


def _names(run: RunRecord) -> set[str]:
    """All that the network of a run is called."""
    row = catalog.mixers().get(run.mixer)
    names = set()
    for mixer in (run.mixer, *(row.aliases if row else ())):
        name = tables.network(run, mixer)
        names |= {name, f"{name} {run.scale}"} | ({f"{name}-{run.scale}"} if name == mixer else set())
    return names


def _check_one_kind(text: str, runs: Sequence[RunRecord]) -> None:
    kinds = {
        "mixers": [run.mixer for run in runs],
        "scales": [run.scale for run in runs],
        "designs": [run.design for run in runs],
        "recipes": [f"{run.recipe_name} ({run.recipe_digest})" for run in runs],
        "data sets": [f"{run.data_name} ({run.data_fingerprint[:12]})" for run in runs],
        "weights": [f"{run.weights} ({run.weights_sha256[:12]})" for run in runs],
        "backends": [run.backend or "the fastest" for run in runs],
        "preparations of images": [json.dumps(run.preprocessing, sort_keys=True) for run in runs],
    }
    several = [
        f"{kind} {' or '.join(dict.fromkeys(values))}"
        for kind, values in kinds.items()
        if len(set(values)) > 1
    ]
    if several:
        raise ValueError(
            f"'{text}' is several unlike runs: {'; '.join(several)}. Choose with --scale, --recipe "
            "and --data, or name the runs, with commas between."
        )


def _check_distinct(sides: Sequence[Side]) -> None:
    seen: dict[str, str] = {}
    for side in sides:
        for run in side.runs:
            if run.id in seen:
                raise ValueError(f"{run.id} is on two sides: there is nothing to compare.")
            seen[run.id] = side.name


# What is refused


def _unlike(reference: Side, side: Side, files: Files, across_recipes: bool) -> Iterator[str]:
    old, new = reference.runs[0], side.runs[0]
    if (old.data_name, old.data_fingerprint) != (new.data_name, new.data_fingerprint):
        names = [f"{run.data_name} {run.data_fingerprint[:12]}" for run in (new, old)]
        yield f"{side.name} is of other data than {reference.name} ({names[0]}, not {names[1]})"
    if old.recipe_digest != new.recipe_digest and not across_recipes:
        names = [f"{run.recipe_name} {run.recipe_digest}" for run in (new, old)]
        changed = sorted({key for key, _ in set(settings_of(new)) - set(settings_of(old))})
        changed = [key for key in changed if key.startswith(_MATTERS)]
        keys = ", ".join(changed[:3]) + ", …" * (len(changed) > 3)
        two = f"{names[0]}, not {names[1]}"
        yield f"{side.name} followed another recipe than {reference.name} ({two}: {keys})"
    if old.preprocessing != new.preprocessing:
        yield f"{side.name} was shown images prepared otherwise than {reference.name}"
    asked = [without(files[run.id].condition, "weights") for run in (new, old) if run.id in files]
    if len(set(asked)) > 1:
        yield f"{side.name} was probed otherwise than {reference.name} ({asked[0]}, not {asked[1]})"


def _read(side: Side, files: Files, probe: str) -> tuple[Side, list[Answers], list[str]]:
    """The side without runs that have no answers, if others have some; those; and what is wrong."""
    found: dict[str, Answers] = {}
    problems = []
    for run in side.runs:
        try:
            found[run.id] = answers.read(run, files.get(run.id), probe)
        except ValueError as error:
            problems.append(str(error).removesuffix("."))
    kept = list(found.values())
    if not all(one.same_images(kept[0]) for one in kept):
        return side, [], [*problems, f"the runs of {side.name} were tested on unlike images"]
    runs = tuple(run for run in side.runs if run.id in found)
    return Side(side.name, runs or side.runs), kept, problems


# Numbers


def _scored(side: Side, numbers: Numbers, probe: str) -> Side:
    """The side with its top-1, EMA weights' wherever there are some."""
    kinds, top1 = [], []
    for run in side.runs:
        asked = (answers.stage_of(probe), "top1")
        scores = [m for m in numbers.get(run.id, ()) if (m.stage, m.name) == asked]
        parts = [(parts_of(m.condition), m.value) for m in scores]
        found = {at.get("weights"): value for at, value in parts if at.get("probe", "") == probe}
        kinds.append("ema" if "ema" in found else "plain")
        top1.append(found.get(kinds[-1]))
    return Side(side.name, side.runs, tuple(top1), tuple(kinds))


def _outcomes(sides: Sequence[Side], read: Sequence[Sequence[Answers]]) -> Iterator[Outcome]:
    """Each contender's, with the p-values of all that can be tested corrected together."""
    tests: dict[int, Test] = {}
    for i, found in enumerate(read[1:], 1):
        if found and read[0] and found[0].same_images(read[0][0]):
            reference, contender = (Hits.of([one.hits for one in seeds]) for seeds in (read[0], found))
            tests[i] = paired(reference, contender)
    corrected = dict(zip(tests, holm([test.p for test in tests.values()]), strict=True))
    for i, side in enumerate(sides[1:], 1):
        if i in tests:
            p, level = corrected[i]
            drawn = None
            if not isinstance(tests[i], Pair):
                reference, contender = (np.array([one.hits for one in seeds]) for seeds in (read[0], read[i]))
                drawn = hierarchical(reference, contender, level)
            yield Outcome(side.name, tests[i], p, level, tests[i].interval(level), drawn)
        else:
            both = read[0] and read[i]
            reason = "the test images are not the same" if both else "there are no predictions"
            yield Outcome(side.name, None, reason=reason)


def record(found: Comparison) -> dict[str, Any]:
    """All of it as plain values, for JSON."""
    return {
        "reference": found.sides[0].name,
        "images": found.images,
        "forced": list(found.forced),
        "sides": [
            {
                "name": side.name,
                "runs": [run.id for run in side.runs],
                "seeds": [run.seed for run in side.runs],
                "top1": list(side.top1),
                "weights": list(side.weights),
            }
            for side in found.sides
        ],
        "differences": [dataclasses.asdict(one) for one in found.differences],
        "costs": [dataclasses.asdict(one) | {"ratios": list(one.ratios)} for one in found.costs],
        "comparisons": [_outcome_record(one) for one in found.outcomes],
    }


def _outcome_record(outcome: Outcome) -> dict[str, Any]:
    test, interval = outcome.test, outcome.interval or (None, None)
    numbers = dataclasses.asdict(test) if test else {}
    return {
        "contender": outcome.contender,
        "verdict": outcome.verdict,
        "difference": test and test.value,
        "low": interval[0],
        "high": interval[1],
        "coverage": outcome.level and 1 - outcome.level,
        "hierarchical_bootstrap": outcome.hierarchical,
        "p": test and test.p,
        "p_holm": outcome.p,
        "test": test and test.name,
        "reason": outcome.reason,
    } | {name: numbers.get(name) for name in ("only_reference", "only_contender", "error", "freedom")}
