"""From stored runs to ranked rows: who is best, at what cost, and how sure that is.

Only what was measured alike is ranked together. A group holds the finished runs of one recipe (name and
digest), one data set (name and fingerprint), one kind and model of hardware, one precision, and one
condition of latency and throughput (batch sizes, threads, protocol, and whatever else that condition says).
A run timed in several ways (fp32 and bf16, eager and compiled) stands in a group for each; one that was not
timed, in that its like were last timed in. Throughput is that of the best batch of the sweep.

Mixers are compared each by its fastest backend: whichever that was keeps no times apart, and a row whose runs
were made to use another says so.

A row is one network: mixer, scale, starting weights and forced backend. Its seeds are averaged; of several
runs with the same seed the newest that has a number gives it. Top-1 is that of the EMA weights wherever a run
keeps them: the recipe decides it, never the result. Its interval is Wilson's (1927) for a share of the test
images, at 95 %: it says what another draw of test images could have given. Seeds share their test images,
so more seeds do not narrow it; their own spread is the standard deviation beside the mean.

Rows share a rank where they cannot be told apart: by top-1 as `stmbench.ties` tests it, by any other column
where the values are equal.
"""

import dataclasses
import json
import math
import statistics
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from stmbench import catalog, recipe
from stmbench.measure.shares import wilson
from stmbench.record import Measurement
from stmbench.store import RunRecord, Store
from stmbench.ties import Scored, Ties

if TYPE_CHECKING:
    import pandas as pd

_NUMBERS = {
    ("build", "parameters"): "parameters",
    ("build", "macs"): "macs",
    ("profile", "latency"): "latency",
    ("profile", "best_throughput"): "throughput",
    ("profile", "disturbed"): "disturbed",
    ("eval", "top1"): "top1",
    ("eval", "images"): "images",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One network's numbers, means over its seeds; None where there is none."""

    rank: int | None  # by the chosen column, from 1; None without a value there
    tied: bool = False  # whether others have this rank
    mixer: str
    scale: str
    weights: str  # the checkpoint it started from, if any
    backend: str  # that its mixers were forced to; "" for the best there is
    parameters: float | None
    macs: float | None
    latency: float | None  # ms
    throughput: float | None  # images/s, at the best batch
    disturbed: bool  # some of its times were taken while the machine was disturbed
    top1: float | None  # per cent
    top1_low: float | None  # 95 % interval
    top1_high: float | None
    top1_sd: float | None  # over seeds; None for one
    images: float | None  # test images behind top1
    seeds: int
    runs: tuple[str, ...]  # ids of the runs the numbers are from


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Rows that may be compared, best first, and what they have in common."""

    recipe: str
    recipe_digest: str
    data: str
    data_fingerprint: str
    device: str
    hardware: str
    precision: str
    latency_condition: str
    throughput_condition: str
    ranked_by: str = "top1"  # a column
    rows: tuple[Row, ...]


COLUMNS = tuple(field.name for field in dataclasses.fields(Row))
_DESCENDING = {"throughput", "top1", "top1_low", "top1_high", "images", "seeds"}
# What heads a column on screen, for `sort`
_HEADER_COLUMNS = {"params": "parameters", "MACs": "macs", "images/s": "throughput", "top-1": "top1"}
_SORTABLE = tuple(name for name in COLUMNS if name not in ("rank", "tied", "runs", "disturbed"))


def rank(
    store: Store,
    *,
    mixer: str | None = None,
    scale: str | None = None,
    recipe_name: str | None = None,
    data: str | None = None,
    device: str | None = None,
    only: Collection[str] | None = None,
    sort: str = "top1",
    limit: int | None = None,
) -> list[Group]:
    """The groups of finished runs, largest first; at most `limit` rows of each, best first by `sort`.

    A filter is a name, or several with commas between; `only` keeps the runs with these ids.

    Raises:
        ValueError: an unknown column or filter value; it names the nearest.
    """
    sort = catalog.known("column", _HEADER_COLUMNS.get(sort, sort), _SORTABLE)
    runs = finished(store, mixer=mixer, scale=scale, recipe_name=recipe_name, data=data, device=device)
    runs = [run for run in runs if only is None or run.id in only]
    stages, names = ({key[i] for key in _NUMBERS} for i in (0, 1))
    numbers = store.headline(sorted(stages), sorted(names))
    entries = [entry for run in reversed(runs) for entry in _entries(run, numbers.get(run.id, ()))]
    ties = Ties(store)
    groups = [
        Group(
            **protocol._asdict(),
            latency_condition=conditions.latency,
            throughput_condition=conditions.throughput,
            ranked_by=sort,
            rows=tuple(_ranked(_networks(members), sort, ties)[:limit]),
        )
        for (protocol, conditions), members in _comparable(entries).items()
    ]
    return sorted(groups, key=lambda group: (-len(group.rows), group.recipe, group.data, group.hardware))


def finished(
    store: Store,
    *,
    mixer: str | None = None,
    scale: str | None = None,
    recipe_name: str | None = None,
    data: str | None = None,
    device: str | None = None,
) -> list[RunRecord]:
    """The finished runs that pass the filters of `rank`, newest first.

    Raises:
        ValueError: an unknown filter value; it names the nearest.
    """
    runs = store.runs(state="done")
    wanted = _filters(runs, mixer, scale, recipe_name, data, device)
    return [run for run in runs if all(getattr(run, key) in values for key, values in wanted.items())]


def frame(store: Store, **options: Any) -> "pd.DataFrame":
    """`rank` as one table, a line per row, raw numbers, with the columns of the row's group."""
    import pandas as pd

    return pd.DataFrame(records(rank(store, **options)), columns=list(FIELDS))


# Groups and rows


class _Protocol(NamedTuple):
    """What runs must share before any of their numbers are compared."""

    recipe: str
    recipe_digest: str
    data: str
    data_fingerprint: str
    device: str
    hardware: str
    precision: str


class _Conditions(NamedTuple):
    """What the times of a run were taken under."""

    latency: str
    throughput: str


class _Entry(NamedTuple):
    """One run with its numbers, the times among them taken in one way."""

    run: RunRecord
    values: dict[str, float]
    conditions: _Conditions | None  # None without times

    @property
    def network(self) -> tuple[str, ...]:
        run = self.run
        images = json.dumps(run.preprocessing, sort_keys=True)  # weights fed otherwise answer otherwise
        return (run.mixer, run.scale, run.weights, run.weights_sha256, images, run.backend)

    @property
    def protocol(self) -> _Protocol:
        run = self.run
        return _Protocol(
            run.recipe_name,
            run.recipe_digest,
            run.data_name,
            run.data_fingerprint,
            run.device,
            run.hardware,
            run.precision,
        )


class _Network(NamedTuple):
    """A row that is not ranked yet, and the runs that its top-1 is from."""

    row: Row
    evaluated: tuple[RunRecord, ...]


def _entries(run: RunRecord, measurements: Sequence[Measurement]) -> Iterator[_Entry]:
    """One entry for each way the run was timed in; a single one if it was not."""
    kinds = {m.condition for m in measurements if m.stage == "eval"}
    headline = "weights=ema" if "weights=ema" in kinds else "weights=plain"
    fixed: dict[str, float] = {}
    timed: defaultdict[str, dict[str, float]] = defaultdict(dict)
    conditions: defaultdict[str, dict[str, str]] = defaultdict(lambda: {"latency": "", "throughput": ""})
    for m in measurements:
        name = _NUMBERS.get((m.stage, m.name))
        if name is None or math.isnan(m.value) or (m.stage == "eval" and m.condition != headline):
            continue
        if m.stage != "profile":
            fixed[name] = m.value
            continue
        way = without(m.condition, "backend", "batch", "batches")
        timed[way][name] = max(m.value, timed[way].get(name, 0.0))  # disturbed at any batch is disturbed
        if name in conditions[way]:
            conditions[way][name] = without(m.condition, "backend")
    for way, values in timed.items():
        if any(conditions[way].values()):
            yield _Entry(run, fixed | values, _Conditions(**conditions[way]))
    if fixed and not any(any(found.values()) for found in conditions.values()):
        yield _Entry(run, fixed, None)


def without(condition: str, *keys: str) -> str:
    """A condition less some of its parts."""
    return ",".join(part for part in condition.split(",") if part.partition("=")[0] not in keys)


def _comparable(entries: Sequence[_Entry]) -> dict[tuple[_Protocol, _Conditions], list[_Entry]]:
    """Entries, oldest first, by what they share; one without times joins those measured last."""
    latest = {entry.protocol: entry.conditions for entry in entries if entry.conditions}
    groups = defaultdict(list)
    for entry in entries:
        conditions = entry.conditions or latest.get(entry.protocol, _Conditions("", ""))
        groups[entry.protocol, conditions].append(entry)
    return groups


def _networks(entries: Sequence[_Entry]) -> list[_Network]:
    networks = defaultdict(list)
    for entry in entries:
        networks[entry.network].append(entry)
    return [_averaged(members) for members in networks.values()]


def _averaged(entries: Sequence[_Entry]) -> _Network:
    """Average the seeds of one network; `entries` come oldest first."""
    seeds: dict[int, dict[str, tuple[float, RunRecord]]] = defaultdict(dict)
    for entry in entries:
        seeds[entry.run.seed] |= {name: (value, entry.run) for name, value in entry.values.items()}
    found = {
        name: [values[name][0] for values in seeds.values() if name in values] for name in _NUMBERS.values()
    }
    mean = {name: statistics.fmean(values) if values else None for name, values in found.items()}
    run, top1, images = entries[0].run, mean["top1"], mean["images"]
    low, high = wilson(top1, images) if top1 is not None and images else (None, None)
    row = Row(
        rank=None,
        tied=False,
        mixer=run.mixer,
        scale=run.scale,
        weights=run.weights,
        backend=run.backend,
        disturbed=bool(mean.pop("disturbed")),
        **mean,
        top1_low=low,
        top1_high=high,
        top1_sd=statistics.stdev(found["top1"]) if len(found["top1"]) > 1 else None,
        seeds=len(seeds),
        runs=tuple(dict.fromkeys(one.id for values in seeds.values() for _, one in values.values())),
    )
    return _Network(row, tuple(values["top1"][1] for values in seeds.values() if "top1" in values))


def _ranked(networks: list[_Network], sort: str, ties: Ties) -> list[Row]:
    """Best first, equal values by name; rows without a value last and unranked."""
    networks = sorted(networks, key=lambda n: (n.row.mixer, n.row.scale, n.row.weights, n.row.backend))
    found = [network for network in networks if getattr(network.row, sort) is not None]
    found.sort(key=lambda network: getattr(network.row, sort), reverse=sort in _DESCENDING)
    if sort == "top1":
        firsts = ties.firsts([Scored(n.row.top1 or 0.0, n.row.images, n.evaluated) for n in found])
    else:
        values = [getattr(network.row, sort) for network in found]
        firsts = [values.index(value) for value in values]
    ranked = [
        dataclasses.replace(network.row, rank=first + 1, tied=firsts.count(first) > 1)
        for network, first in zip(found, firsts, strict=True)
    ]
    return ranked + [network.row for network in networks if getattr(network.row, sort) is None]


def _filters(
    runs: Sequence[RunRecord],
    mixer: str | None,
    scale: str | None,
    recipe_name: str | None,
    data: str | None,
    device: str | None,
) -> dict[str, set[str]]:
    """The allowed values of each filtered column of a run, every one of them known to us or to a run."""

    def names(kind: str, column: str, text: str, *also: str) -> set[str]:
        there = sorted({getattr(run, column) for run in runs} | set(also))
        return {catalog.known(kind, name.strip(), there) for name in text.split(",")}

    wanted = {}
    if mixer:
        aliases = {alias: row.name for row in catalog.mixers().values() for alias in row.aliases}
        chosen = ",".join(aliases.get(name.strip(), name) for name in mixer.split(","))
        wanted["mixer"] = names("mixer", "mixer", chosen, *catalog.mixers(), *aliases)
    if scale:
        scales = {name for row in catalog.mixers().values() for name in row.scales}
        wanted["scale"] = names("scale", "scale", scale, *scales)
    if recipe_name:
        wanted["recipe_name"] = names("recipe", "recipe_name", recipe_name, *recipe.names())
    if data:
        wanted["data_name"] = names("data set", "data_name", data)
    if device:
        wanted["device"] = names("device", "device", device, "cpu", "cuda", "mps")
    return wanted


# Rows as records

_SHARED = tuple(field.name for field in dataclasses.fields(Group) if field.name != "rows")
FIELDS = (*_SHARED, *COLUMNS)


def records(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """One flat record of raw numbers per row, with the columns of its group."""
    return [
        {name: getattr(group, name) for name in _SHARED} | {name: getattr(row, name) for name in COLUMNS}
        for group in groups
        for row in group.rows
    ]
