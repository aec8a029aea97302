"""Which runs: by the names of what they are of, and by any of their fields."""

from collections.abc import Mapping, Sequence

from stmbench import catalog, recipe
from stmbench.store import RunRecord, Store, views


def finished(
    store: Store,
    *,
    mixer: str | None = None,
    scale: str | None = None,
    recipe_name: str | None = None,
    data: str | None = None,
    device: str | None = None,
    where: str | None = None,
) -> list[RunRecord]:
    """The finished runs that pass, newest first.

    A filter is a name, or several with commas between; `where` is a `reading.where` expression of the fields
    of runs.

    Raises:
        ValueError: an unknown filter value, with the nearest; or `where` cannot be read.
    """
    runs = store.runs(state="done", where=views.of_runs(where))
    wanted = values(runs, mixer, scale, recipe_name, data, device)
    return [run for run in runs if passes(run, wanted)]


def passes(run: RunRecord, wanted: Mapping[str, set[str]], columns: Sequence[str] | None = None) -> bool:
    """Whether the run has wanted values, in these of the wanted columns."""
    return all(getattr(run, key) in wanted[key] for key in wanted if columns is None or key in columns)


def values(
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
