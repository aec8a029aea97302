"""From stored runs to ranked rows: who is best, at what cost, and how sure that is.

Only what was measured alike is ranked together. A group holds the finished runs of one recipe (name and
digest), one data set (name and fingerprint), one kind and model of hardware, one precision, and one
condition of latency and throughput (batch sizes, threads, protocol, and whatever else that condition says).
A run timed in several ways (fp32 and bf16, eager and compiled) stands in a group for each; one that was not
timed, in that its like were last timed in. Throughput is that of the best batch of the sweep.

Mixers are compared each by its fastest backend: whichever that was keeps no times apart, and a row whose runs
were made to use another says so.

A row is one network: mixer, scale, design, starting weights and forced backend. Its seeds are averaged; of
several runs with the same seed the newest that has a number gives it. What is read of a run is its
`store.summary`. The interval of top-1 is Wilson's (1927) for a share of the test images, at 95 %: it says
what another draw of test images could have given. Seeds share their test images, so more seeds do not narrow
it; their own spread is the standard deviation beside the mean.

Detectors, the runs of recipes with the stage `detect`, have box and mask AP in the place of top-1.

Rows share a rank where they cannot be told apart: by top-1 as `reading.ties` tests it, by any other column
where the values are equal.
"""

import dataclasses
import gc
import statistics
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

from stmbench.measure.shares import wilson
from stmbench.reading import published as paper
from stmbench.reading import selection
from stmbench.reading import where as filters
from stmbench.reading.columns import Column, Finder, averaged
from stmbench.reading.front import front
from stmbench.reading.rows import COLUMNS, DETECTION, NAMES, SHARED, Group, Row
from stmbench.reading.ties import MOST_READ, Scored, Ties
from stmbench.store import RunRecord, Store
from stmbench.store.records import Summary
from stmbench.store.summary import NUMBERS

_TEXTS = ("mixer", "scale", "design", "weights", "backend")
_NUMBERS = tuple(name for name in COLUMNS if name not in (*_TEXTS, "rank", "tied", "runs", "disturbed"))
_DESCENDING = {"throughput", "top1", "top1_low", "top1_high", "images", "seeds"}
_FIELDS = dict.fromkeys((*SHARED[: SHARED.index("ranked_by")], *_TEXTS), str) | dict.fromkeys(_NUMBERS, float)
_FIELDS["disturbed"] = bool
_DETECTION_IMAGES = "detect.images"  # test images behind the AP


def rank(
    store: Store,
    *,
    mixer: str | None = None,
    scale: str | None = None,
    recipe_name: str | None = None,
    data: str | None = None,
    device: str | None = None,
    only: Collection[str] | None = None,
    where: str | None = None,
    columns: Sequence[str] = (),
    published: bool = False,
    pareto: str | None = None,
    sort: str = "top1",
    limit: int | None = None,
) -> list[Group]:
    """The groups of finished runs, largest first; at most `limit` rows of each, best first by `sort`.

    A filter is a name, or several with commas between; `only` keeps the runs with these ids, `where` the rows
    for which a `reading.where` expression of their and their groups' columns, or of measurements, holds.
    `columns` are of rows, or measurements as `reading.columns` names them. `published` puts the paper's
    results beside. `pareto` keeps the rows on the front of top-1 against a column. A minus before `sort`
    turns its order round. Of detectors box AP is what top-1 is of others.

    Raises:
        ValueError: an unknown column, with the nearest, or an ambiguous one, with the choices; an unknown
            filter value, with the nearest; or `where` cannot be read.
    """
    boards = _boards(store, only, (mixer, scale, recipe_name, data, device))
    by, cost = (NAMES.get(name, name) for name in (sort.removeprefix("-"), pareto or ""))
    papers = tuple(column.text for column in (*paper.COLUMNS, *paper.DETECTION)) if published else ()
    condition = None if where is None else filters.parse(where, _FIELDS, NAMES, numbers=True)
    named = [NAMES.get(name, name) for name in columns]
    asked = [name for name in named if name not in {*COLUMNS, *SHARED, "interval", *papers}]
    asked += [by] * (by not in (*_NUMBERS, *_TEXTS, *papers))
    asked += [cost] * (cost not in (*_NUMBERS, *papers, ""))
    asked += sorted(condition.fields - {*_FIELDS, *papers}) if condition else []
    _measure(store, boards, dict.fromkeys(asked))
    for board in boards:
        if published:
            board.compare_with_the_paper(store)
        if condition:
            board.keep(condition)
    paired = sum(len(one.evaluated) for board in boards for one in board.networks) <= MOST_READ
    ties = Ties(store, paired=paired)
    groups = [board.group(by, sort.startswith("-"), cost, ties, limit) for board in boards if board.networks]
    return sorted(groups, key=lambda group: (-len(group.rows), group.recipe, group.data, group.hardware))


class _Conditions(NamedTuple):
    """What the times of a run were taken under."""

    latency: str
    throughput: str


class _Network(NamedTuple):
    """A row that is not ranked yet."""

    row: Row
    evaluated: tuple[str, ...]  # the runs that its top-1 is from
    members: tuple[tuple[str, int], ...]  # all its runs with their seeds, oldest first


@dataclass(slots=True)
class _Board:
    """A group that is not ranked yet."""

    run: RunRecord  # one of them
    conditions: _Conditions
    networks: list[_Network]
    columns: tuple[Column, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def detects(self) -> bool:
        """Whether its networks are detectors."""
        return "detect" in self.run.recipe_values.get("stages", ())

    @property
    def score(self) -> str:
        """The column that its networks are known by."""
        return DETECTION[0] if self.detects else "top1"

    @property
    def runs(self) -> list[str]:
        return [run for network in self.networks for run, _ in network.members]

    def measure(self, finder: Finder) -> None:
        """Add the columns of measurements to the rows."""
        runs, there = self.runs, {column.text for column in self.columns}
        for column, kinds in finder.columns(runs, next(filter(None, self.conditions), "")):
            if column.text in there:
                continue
            self.columns += (column,)
            values = finder.values(runs, kinds)
            for network in self.networks:
                if number := averaged(values, network.members):
                    network.row.more[column.text] = number

    def compare_with_the_paper(self, store: Store) -> None:
        """Add the paper's results to the rows, or say why they cannot be compared."""
        if self.detects:
            self._compare_detectors(store)
            return
        self.columns += paper.COLUMNS
        images = [network.row.images for network in self.networks if network.row.images]
        self.notes += (paper.note(self.run, images),)
        if paper.comparable(self.run, images):
            for row in (network.row for network in self.networks):
                row.more.update(
                    paper.beside(row.mixer, row.design, row.scale, row.top1, row.top1_low, row.top1_high)
                )

    def _compare_detectors(self, store: Store) -> None:
        self.columns += paper.DETECTION
        finder = Finder(store, [_DETECTION_IMAGES])
        [(_, kinds)] = finder.columns(self.runs, "")
        images = set(finder.values(self.runs, kinds).values())
        self.notes += (paper.detection_note(self.run, images),)
        if paper.detection_comparable(self.run, images):
            for row in (network.row for network in self.networks):
                row.more.update(
                    paper.detection_beside(row.mixer, row.design, row.scale, row.value(DETECTION[0]))
                )

    def keep(self, condition: filters.Expression) -> None:
        """Drop the rows for which it does not hold."""
        shared = _shared(self.run, self.conditions)
        self.networks = [
            network
            for network in self.networks
            if condition.holds(lambda name, row=network.row: shared.get(name, row.value(name)))
        ]

    def group(self, by: str, backwards: bool, cost: str, ties: Ties, limit: int | None) -> Group:
        by = self.score if by == "top1" else by
        descending = _DESCENDING | {column.text for column in self.columns if column.descending}
        rows, notes = _ranked(self.networks, by, (by in descending) != backwards, ties), self.notes
        if cost:
            kept = _on_front(rows, self.score, cost, cost in descending)
            score = "box AP" if self.detects else "top-1"
            notes += (f"the Pareto front of {score} against {cost}: {len(kept)} of {len(rows)}",)
            rows = kept
        return Group(
            **_shared(self.run, self.conditions),
            ranked_by=by,
            paired=ties.paired,
            columns=self.columns,
            notes=notes,
            rows=tuple(rows[:limit]),
        )


@contextmanager
def _uncollected() -> Iterator[None]:
    """Without the garbage collector, which would look again and again through 100,000 rows for nothing."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@_uncollected()
def _boards(store: Store, only: Collection[str] | None, chosen: Sequence[str | None]) -> list[_Board]:
    """The groups, of summaries alone: a run's other facts are read of one run per network and protocol."""
    found = store.summaries(only if only is None else sorted(only))
    networks, protocols = (
        {getattr(each, kind): each.run for each in found} for kind in ("network", "protocol")
    )
    runs = store.named([*networks.values(), *protocols.values()])
    wanted = selection.values(list(runs.values()), *chosen)
    of_network, of_protocol = (
        {key: runs[run_id] for key, run_id in keys.items() if selection.passes(runs[run_id], wanted, columns)}
        for keys, columns in (
            (networks, ("mixer", "scale")),
            (protocols, ("recipe_name", "data_name", "device")),
        )
    )
    found = [each for each in found if each.network in of_network and each.protocol in of_protocol]
    return [
        _Board(of_protocol[protocol], conditions, _networks(members, of_network))
        for (protocol, conditions), members in _comparable(found).items()
    ]


def _measure(store: Store, boards: Sequence[_Board], asked: Iterable[str]) -> None:
    finder, scores = Finder(store, asked), Finder(store, DETECTION)
    for board in boards:
        if board.detects:
            board.measure(scores)
        board.measure(finder)
    runs = [run for board in boards for network in board.networks for run, _ in network.members]
    if runs:
        finder.check(runs, (*_FIELDS, *NAMES))


def _shared(run: RunRecord, conditions: _Conditions) -> dict[str, str]:
    """What a group's runs have in common, by the group's names."""
    return {
        "recipe": run.recipe_name,
        "recipe_digest": run.recipe_digest,
        "data": run.data_name,
        "data_fingerprint": run.data_fingerprint,
        "device": run.device,
        "hardware": run.hardware,
        "precision": run.precision,
        "latency_condition": conditions.latency,
        "throughput_condition": conditions.throughput,
    }


def _comparable(found: Sequence[Summary]) -> dict[tuple[str, _Conditions], list[Summary]]:
    """Summaries, oldest first, by what they share; one without times joins those measured last."""
    conditions = [_Conditions(each.latency_condition, each.throughput_condition) for each in found]
    latest = {each.protocol: at for each, at in zip(found, conditions, strict=True) if any(at)}
    groups = defaultdict(list)
    for each, at in zip(found, conditions, strict=True):
        groups[each.protocol, at if any(at) else latest.get(each.protocol, at)].append(each)
    return groups


def _networks(found: Sequence[Summary], runs: Mapping[str, RunRecord]) -> list[_Network]:
    networks = defaultdict(list)
    for each in found:
        networks[each.network].append(each)
    return [_averaged(members, runs[network]) for network, members in networks.items()]


_NAMES = tuple(NUMBERS.values())  # the last fields of a summary


def _averaged(found: Sequence[Summary], run: RunRecord) -> _Network:
    """Average the seeds of one network, of which `run` is one; its summaries come oldest first."""
    by_seed: defaultdict[int, list[Summary]] = defaultdict(list)
    for each in found:
        by_seed[each.seed].append(each)
    seeds = [_newest(of_seed) for of_seed in by_seed.values()]
    columns = zip(*(seed.numbers for seed in seeds), strict=True)
    values = {
        name: [value for value in column if value is not None]
        for name, column in zip(_NAMES, columns, strict=True)
    }
    mean = {name: statistics.fmean(numbers) if numbers else None for name, numbers in values.items()}
    top1, images = mean["top1"], mean["images"]
    low, high = wilson(top1, images) if top1 is not None and images else (None, None)
    row = Row(
        rank=None,
        tied=False,
        mixer=run.mixer,
        scale=run.scale,
        weights=run.weights,
        backend=run.backend,
        design=run.design,
        disturbed=bool(mean["disturbed"]),
        parameters=mean["parameters"],
        macs=mean["macs"],
        latency=mean["latency"],
        throughput=mean["throughput"],
        top1=top1,
        images=images,
        top1_low=low,
        top1_high=high,
        top1_sd=statistics.stdev(values["top1"]) if len(values["top1"]) > 1 else None,
        seeds=len(seeds),
        runs=tuple(run_id for seed in seeds for run_id in seed.runs),
    )
    evaluated = tuple(seed.evaluated for seed in seeds if seed.evaluated)
    return _Network(row, evaluated, tuple((each.run, each.seed) for each in found))


class _Seed(NamedTuple):
    """The numbers of one seed, each of the newest run that has it, and the runs that they are from."""

    numbers: tuple[float | None, ...]  # in the order of `_NAMES`
    runs: tuple[str, ...]
    evaluated: str | None  # the run that top-1 is from


def _newest(found: Sequence[Summary]) -> _Seed:
    """Of runs with the same seed, oldest first."""
    if len(found) == 1:
        [only] = found
        numbers: Any = only[-len(_NAMES) :]
        return _Seed(numbers, (only.run,), only.run if only.top1 is not None else None)
    of = {
        name: next((each for each in reversed(found) if getattr(each, name) is not None), None)
        for name in _NAMES
    }
    runs = tuple(dict.fromkeys(each.run for each in of.values() if each))
    merged = tuple(each and getattr(each, name) for name, each in of.items())
    return _Seed(merged, runs, of["top1"].run if of["top1"] else None)


def _ranked(networks: list[_Network], by: str, descending: bool, ties: Ties) -> list[Row]:
    """Best first, equal values by name; rows without a value last and unranked."""
    networks = sorted(
        networks, key=lambda n: (n.row.mixer, n.row.scale, n.row.design, n.row.weights, n.row.backend)
    )
    found = [network for network in networks if network.row.value(by) is not None]
    found.sort(key=lambda network: network.row.value(by), reverse=descending)
    if by == "top1":
        firsts = ties.firsts([Scored(n.row.top1 or 0.0, n.row.images, n.evaluated) for n in found])
    else:
        places: dict[Any, int] = {}
        firsts = [places.setdefault(network.row.value(by), i) for i, network in enumerate(found)]
    sharing = Counter(firsts)
    ranked = [
        dataclasses.replace(network.row, rank=first + 1, tied=sharing[first] > 1)
        for network, first in zip(found, firsts, strict=True)
    ]
    return ranked + [network.row for network in networks if network.row.value(by) is None]


def _on_front(rows: Sequence[Row], score: str, cost: str, descending: bool) -> list[Row]:
    """The rows of which no other has as much of the score for as little."""
    sign = -1 if descending else 1
    known = [row for row in rows if row.value(score) is not None and row.value(cost) is not None]
    kept = set(front([(sign * row.value(cost), row.value(score)) for row in known]))
    return [row for i, row in enumerate(known) if i in kept]
