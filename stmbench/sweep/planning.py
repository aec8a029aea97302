"""The plan of a sweep: every run it asks for, what the database has of it, and what the rest will take."""

import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from stmbench import catalog, evidence
from stmbench import plan as requests
from stmbench.nn.timm_models import is_timm
from stmbench.plan import Request
from stmbench.reading.readable import design as design_tag
from stmbench.store import RunRecord, Store
from stmbench.store.claims import stage_times, standing
from stmbench.store.records import StageTime
from stmbench.sweep.costs import Cost, Costs
from stmbench.sweep.file import Sweep, Variant
from stmbench.sweep.work import Task

TIMED = ("profile",)  # stages that want the machine to themselves
State = Literal["new", "interrupted", "failed", "running", "done"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One run of the plan."""

    network: str
    scale: str
    design: str  # "" for a timm model
    recipe: str  # as the file names it
    variant: Variant
    seed: int
    asked: Mapping[str, Any]  # arguments of `plan.request`
    fingerprint: str
    run: RunRecord | None  # that stands for it in the database
    left: tuple[str, ...]  # stages that are not done
    cost: Cost  # of these

    @property
    def state(self) -> State:
        return self.run.state if self.run else "new"

    @property
    def name(self) -> str:
        """The network's, with its design."""
        return self.network + design_tag(self.design)

    @property
    def label(self) -> str:
        """What the run is, for a line about it."""
        return _label(self.name, self.scale, self.recipe, self.variant) + f", seed {self.seed}"

    def task(self, db: str, *, device: str = "", retry: bool = False, later: Collection[str] = ()) -> Task:
        """The work it is, in the working directory that the plan was made in, on this device."""
        asked = dict(self.asked) | ({"device": device} if device else {})
        put_off = tuple(stage for stage in self.left if stage in later)
        return Task(
            asked=asked,
            fingerprint=self.fingerprint,
            db=db,
            folder=str(Path.cwd()),
            retry=retry,
            later=put_off,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Every run of a sweep once, first seeds first."""

    name: str
    items: tuple[Item, ...]
    device: str
    twice: int  # combinations that are the same run as another
    warnings: tuple[str, ...]

    def of(self, *states: State) -> list[Item]:
        """The items in these states."""
        return [item for item in self.items if item.state in states]

    def to_run(self, *, retry: bool) -> list[Item]:
        """What is left, in the order to take it in; last what another process has now and may yet lose."""
        return [*self.of("new", "interrupted", *(("failed",) if retry else ())), *self.of("running")]


def wall(items: Sequence[Item], jobs: int, devices: int) -> float:
    """Seconds that the known stages will take in so many processes, with what is timed taken alone."""
    later = TIMED if jobs > devices else ()
    together = [item.cost.total(later) for item in items]
    alone = sum(item.cost.total() for item in items) - sum(together)
    return max(max(together, default=0.0), sum(together) / jobs) + alone / devices


def planned(sweep: Sweep, store: Store | None, *, device: str = "", elsewhere: bool = False) -> Plan:
    """Resolve every combination and look it up.

    Args:
        store: None where there are no results yet.
        device: instead of the sweep's.
        elsewhere: the runs are made on other machines, whose devices are not looked for here.

    Raises:
        ValueError: a combination that cannot be, named.
    """
    sweep = replace(sweep, device=device or sweep.device)
    found: dict[str, tuple[_Combination, Request]] = {}
    warnings: dict[str, None] = {}
    twice = 0
    for combination, asked in _resolved(sweep, elsewhere):
        warnings |= dict.fromkeys(asked.warnings)
        key = evidence.fingerprint(asked, combination.network)
        if key in found:
            twice += 1
            combination, first = found[key]
            both = {*first.stages, *asked.stages}
            asked = replace(first, stages=tuple(stage for stage in catalog.stages() if stage in both))
        found[key] = combination, asked
    resolved = next(iter(found.values()))[1].device
    hardware = "" if elsewhere else evidence.hardware(resolved)
    costs = Costs(stage_times(store, {asked.recipe.name for _, asked in found.values()}) if store else ())
    items = (_item(sweep, key, *pair, store, hardware, costs) for key, pair in found.items())
    return Plan(name=sweep.name, items=tuple(items), device=resolved, twice=twice, warnings=tuple(warnings))


@dataclass(frozen=True, slots=True)
class _Combination:
    network: str
    scale: str | None
    design: str
    recipe: str
    variant: Variant
    seed: int


def _combinations(sweep: Sweep) -> Iterator[_Combination]:
    """Seeds change last, so that every network has a first result early."""
    networks = requests.networks(",".join(sweep.mixers) or None, ",".join(sweep.models) or None)
    scales: Sequence[str | None] = sweep.scales or (None,)
    variants = sweep.variants()
    for seed, name, variant in itertools.product(dict.fromkeys(sweep.seeds), sweep.recipes, variants):
        for scale, network, design in itertools.product(scales, networks, sweep.designs):
            if not is_timm(network):
                yield _Combination(network, scale, design, name, variant, seed)
            elif (scale, design) == (scales[0], sweep.designs[0]):
                yield _Combination(network, None, "unified", name, variant, seed)


def _resolved(sweep: Sweep, elsewhere: bool) -> Iterator[tuple[_Combination, Request]]:
    """Each combination with its request; one that differs by the seed alone is not checked again."""
    known: dict[_Combination, Request] = {}
    for each in _combinations(sweep):
        unseeded = replace(each, seed=0)
        if unseeded not in known:
            try:
                known[unseeded] = requests.request(**_arguments(sweep, unseeded), elsewhere=elsewhere)
            except ValueError as error:
                what = _label(
                    each.network + design_tag(each.design), each.scale or "", each.recipe, each.variant
                )
                raise ValueError(f"{what}: {error}") from None
        yield each, replace(known[unseeded], seed=each.seed)


def _arguments(sweep: Sweep, each: _Combination) -> dict[str, Any]:
    return {
        "mixer": None if is_timm(each.network) else each.network,
        "model": each.network if is_timm(each.network) else None,
        "scale": each.scale,
        "recipe_name": each.recipe,
        "overrides": each.variant,
        "stage": ",".join(sweep.stages),
        "seed": each.seed,
        "data": sweep.data or None,
        "device": sweep.device,
        "weights": Path(sweep.weights) if sweep.weights else None,
        "backend": sweep.backend,
        "design": each.design,
    }


def _item(
    sweep: Sweep,
    key: str,
    each: _Combination,
    asked: Request,
    store: Store | None,
    hardware: str,
    costs: Costs,
) -> Item:
    run = standing(store.runs(fingerprint=key), asked.stages, hardware) if store else None
    done = {stage.name for stage in store.stages(run.id) if stage.state == "done"} if store and run else set()
    left = tuple(stage for stage in (run.stages if run else asked.stages) if stage not in done)
    scale, recipe = asked.scale_of(each.network), asked.recipe
    like = StageTime(
        each.network,
        scale,
        asked.design_of(each.network),
        recipe.name,
        recipe.digest,
        asked.info.fingerprint,
        hardware,
        recipe.schedule.epochs,
        "",
        0,
    )
    return Item(
        network=each.network,
        scale=scale,
        design=asked.design_of(each.network),
        recipe=each.recipe,
        variant=each.variant,
        seed=each.seed,
        asked=_arguments(sweep, each) | {"stage": ",".join(asked.stages), "device": asked.device},
        fingerprint=key,
        run=run,
        left=left,
        cost=costs.cost(like, left),
    )


def _label(network: str, scale: str, recipe: str, variant: Variant) -> str:
    changed = f" with {', '.join(variant)}" if variant else ""
    return f"{f'{network} {scale}'.rstrip()} by recipe {recipe}{changed}"
