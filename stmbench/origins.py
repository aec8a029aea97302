"""`--from RUN`: another run starts from the weights of an earlier one, and as its network.

These are its headline weights: EMA wherever it kept some, else plain; of a run that was given weights to look
at, those. Where the new run only looks at them too, images are prepared as the earlier one prepared them.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from stmbench import plan, recipe
from stmbench.evidence import sha256
from stmbench.nn.timm_models import PREPARATION
from stmbench.recipe import Recipe
from stmbench.store import RunRecord, Store

_TRAINS = {"train", "detect"}  # other stages only look
_IMAGES = ("image_size", "channels", *PREPARATION)  # what images are like when a network gets them


def options(store: Store, name: str, asked: Mapping[str, Any]) -> dict[str, Any]:
    """The options of `plan.request`, of those that were asked for beside ``--from NAME``.

    The network and the weights are the run's. So are recipe and data, where none are named.

    Raises:
        ValueError: no such run, it has no weights or they are gone, or another network was asked for.
    """
    run = store.run(name)
    _check_network(run, asked)
    found = dict(asked) | {
        "mixer": None,
        "model": run.mixer,
        "scale": run.scale or None,
        "design": run.design or "unified",
        "weights": _weights(run, store),
    }
    own = recipe.from_values(run.recipe_values, run.recipe_name)
    if asked["recipe_name"] is None:
        found |= {"recipe_name": own, "data": asked["data"] or run.data_source}
        found["overrides"] = [*run.overrides, *asked["overrides"]]
    else:
        named = recipe.load(asked["recipe_name"], asked["overrides"])
        if not _TRAINS & set(plan.stages(asked["stage"], named)):
            prepared = _preparation(plan.prepared(own, run.preprocessing), named)
            typed = {override.partition("=")[0].strip() for override in asked["overrides"]}
            kept = [f"{key}={value}" for key, value in prepared if key not in typed]
            found["overrides"] = [*kept, *asked["overrides"]]
    return found


def _check_network(run: RunRecord, asked: Mapping[str, Any]) -> None:
    if asked["weights"]:
        raise ValueError("--from and --weights are two places to start from: give one of them.")
    names = {"scale": run.scale, "design": run.design}
    unlike = [f"--{key} {asked[key]}" for key, own in names.items() if asked[key] not in (None, own)]
    given = asked["mixer"] is not None or asked["model"] is not None
    if given and plan.networks(asked["mixer"], asked["model"]) != (run.mixer,):
        unlike += [f"--{key} {asked[key]}" for key in ("mixer", "model") if asked[key] is not None]
    if unlike:
        network = " ".join(filter(None, (run.mixer, run.scale, run.design.replace("unified", ""))))
        raise ValueError(f"{unlike[0]} does not go with the weights of {run.id} ({network}): leave it out.")


def _weights(run: RunRecord, store: Store) -> Path:
    trained = {
        file.condition: file
        for file in store.artifacts(run.id)
        if file.stage in _TRAINS and file.kind == "weights"
    }
    file = trained.get("weights=ema") or trained.get("weights=plain")
    if file is None and (_TRAINS & set(run.stages) or not run.weights):
        raise ValueError(f"Run {run.id} ({run.state}) has no trained weights; `stmbench runs` lists others.")
    path, digest = (run.folder / file.path, file.sha256) if file else (Path(run.weights), run.weights_sha256)
    if sha256(str(path)) != digest:
        raise ValueError(f"{path} is no longer the file that {run.id} {'wrote' if file else 'started from'}.")
    return path


def _preparation(own: Recipe, named: Recipe) -> Iterator[tuple[str, str]]:
    """The values, by their keys, under which a named recipe prepares images as a run's own did."""
    for key in _IMAGES:
        value = getattr(own.data, key)
        if value != getattr(named.data, key):
            yield f"data.{key}", json.dumps(value)
