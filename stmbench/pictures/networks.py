"""What stands in a picture: networks, each with what its seeds measured, by what they must share."""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

from stmbench import catalog
from stmbench.reading import leaderboard
from stmbench.reading.readable import design
from stmbench.reading.rows import Row
from stmbench.store import RunRecord

T = TypeVar("T")


class Shared(NamedTuple):
    """What numbers must share to stand in one picture."""

    recipe: str
    recipe_digest: str
    data: str
    data_fingerprint: str
    condition: str  # see `stmbench.record.condition`


@dataclass(frozen=True, slots=True)
class Network(Generic[T]):
    """One network, and what was found of it by seed."""

    name: str
    seeds: Mapping[int, T]


@dataclass(frozen=True, slots=True)
class Group(Generic[T]):
    """Networks that may be compared, in the catalogue's order."""

    shared: Shared
    scale: str  # of all; "" where they differ and their names say it
    networks: Sequence[Network[T]]


def groups(found: Iterable[tuple[RunRecord, str, T]]) -> list[Group[T]]:
    """Sort what was found of runs, newest first, each under a condition; the newest run of a seed counts."""
    sets: defaultdict[Shared, dict[tuple[str, ...], dict[int, tuple[RunRecord, T]]]] = defaultdict(dict)
    for run, condition, value in found:
        shared = Shared(run.recipe_name, run.recipe_digest, run.data_name, run.data_fingerprint, condition)
        sets[shared].setdefault(_identity(run), {}).setdefault(run.seed, (run, value))
    return [_group(shared, list(networks.values())) for shared, networks in sorted(sets.items())]


def _identity(run: RunRecord) -> tuple[str, ...]:
    images = str(sorted(run.preprocessing.items()))
    return (run.mixer, run.scale, run.design, run.weights_sha256, images, run.backend)


def _group(shared: Shared, networks: list[dict[int, tuple[RunRecord, T]]]) -> Group[T]:
    newest = [max((run for run, _ in seeds.values()), key=lambda run: run.created) for seeds in networks]
    scale, names = named(newest, [run.id for run in newest])
    shown = [
        Network(names[i], {seed: value for seed, (_, value) in sorted(networks[i].items())})
        for i in sorted(range(len(names)), key=lambda i: (*place(newest[i]), names[i]))
    ]
    return Group(shared, scale, shown)


def named(networks: Sequence[RunRecord | Row], ids: Sequence[str]) -> tuple[str, list[str]]:
    """The scale of all and the networks' names without it; "" and names with it where scales differ.

    Names that would be the same are told apart by the id of a run.
    """
    scales = {network.scale for network in networks}
    common = scales.pop() if len(scales) == 1 else ""
    names = [family(network, "" if common else network.scale) for network in networks]
    counts = Counter(names)
    return common, [
        f"{text} ({run})" if counts[text] > 1 else text for text, run in zip(names, ids, strict=True)
    ]


def family(network: RunRecord | Row, scale: str = "") -> str:
    """What the network is, at whatever scale."""
    backend = f"({network.backend})" if network.backend else ""
    weights = f"from {Path(network.weights).name}" if network.weights else ""
    return " ".join(filter(None, (network.mixer + design(network.design), scale, backend, weights)))


def place(network: RunRecord | Row) -> tuple[int, int]:
    """Where in the catalogue its mixer and scale stand; behind all that are not in it."""
    mixers = catalog.mixers()
    if network.mixer not in mixers:
        return len(mixers), 0
    scales = list(mixers[network.mixer].scales)
    last = len(scales)
    return list(mixers).index(network.mixer), scales.index(network.scale) if network.scale in scales else last


# Words for captions


def origin(group: Group[T], images: Collection[float]) -> str:
    """What the numbers of a group are of."""
    found = {network.name: list(network.seeds) for network in group.networks}
    return facts(group.shared, group.scale, images, found)


def facts(
    shared: Shared | leaderboard.Group,
    scale: str,
    images: Collection[float],
    found: Mapping[str, Sequence[int]],
) -> str:
    """Data, recipe, scale, how many images, and the seeds that were found by network."""
    said = [
        f"Data {shared.data} ({shared.data_fingerprint[:12]})",
        f"recipe {shared.recipe} ({shared.recipe_digest})",
        f"scale {scale}" if scale else "",
        f"n = {counts(images)} images" if images else "",
        seeds(found),
    ]
    return ", ".join(filter(None, said)) + "."


def counts(numbers: Collection[float]) -> str:
    """``2,000``, or ``1,998 to 2,000`` where they differ."""
    least, most = min(numbers), max(numbers)
    return f"{least:,.0f}" if least == most else f"{least:,.0f} to {most:,.0f}"


def seeds(found: Mapping[str, Sequence[int]]) -> str:
    """``seed 0``, ``seeds 0, 1``, or ``seeds 0, 1 (halo), 0 (swin)`` where they differ."""
    texts = {name: ", ".join(map(str, each)) for name, each in found.items()}
    if len(set(texts.values())) > 1:
        return "seeds " + ", ".join(f"{text} ({name})" for name, text in texts.items())
    text = next(iter(texts.values()))
    return f"seed{'s' * (',' in text)} {text}"
