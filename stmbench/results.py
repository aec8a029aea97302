"""Results in Python, ``import stmbench.results as r``: every function returns a DataFrame of raw numbers.

    r.leaderboard(where="scale=tiny", columns=["erf.area@level=4,share=50"])
    r.runs(where="created > 2026-07-01")
    r.measurements(where="name=top1 and stage=eval")

`db` is the results as the command line takes them with ``--db``: an SQLite file or any SQLAlchemy URL.
Without it they are those of the environment variable STMBENCH_DB, else ``runs/stmbench.db``. Nothing here
imports torch, and nothing is written.
"""

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from stmbench.reading import where as filters
from stmbench.reading.leaderboard import rank
from stmbench.reading.rows import records, types
from stmbench.store import Store, open_store, views

if TYPE_CHECKING:
    from pandas import DataFrame

_DTYPES = {float: "float64", int: "Int64", bool: "bool"}  # of columns; others are objects
_DEFAULT = "runs/stmbench.db"


def leaderboard(
    db: str | None = None,
    *,
    mixer: str | None = None,
    scale: str | None = None,
    recipe: str | None = None,
    data: str | None = None,
    device: str | None = None,
    where: str | None = None,
    columns: Sequence[str] = (),
    published: bool = False,
    pareto: str | None = None,
    sort: str = "top1",
    limit: int | None = None,
) -> "DataFrame":
    """The rows of `stmbench leaderboard`, best first in each group; the options are the command's.

    Columns that name the group, which is what may be compared: recipe, recipe_digest, data, data_fingerprint,
    device, hardware, precision, latency_condition, throughput_condition, ranked_by (str) and paired (bool).
    Columns of the network: rank and seeds (Int64), tied and disturbed (bool), mixer, scale, design, weights,
    backend (str), parameters, macs, latency (ms), throughput (images/s), top1, top1_low, top1_high,
    top1_sd (%) and images (float64), runs (a tuple of ids). Each measurement NAME of `columns` adds NAME,
    NAME_sd (float64), NAME_n (Int64), NAME_unit and NAME_condition (str); detectors have box_ap and mask_ap
    (%) so. `published` adds published, original, published_box_ap, published_mask_ap, difference,
    difference_low, difference_high (%), as far as there are classifiers or detectors.

    Raises:
        ValueError: no results there, an unknown name (the nearest is named), or `where` cannot be read.
    """
    with _open(db) as store:
        groups = rank(
            store,
            mixer=mixer,
            scale=scale,
            recipe_name=recipe,
            data=data,
            device=device,
            where=where,
            columns=columns,
            published=published,
            pareto=pareto,
            sort=sort,
            limit=limit,
        )
    return _frame(records(groups), types(groups))


def runs(db: str | None = None, *, where: str | None = None) -> "DataFrame":
    """Every run, a line each: the view runs_v1.

    Columns: run, state, reason, mixer, scale, design, recipe, recipe_digest, data, data_fingerprint, weights,
    weights_sha256, backend, device, hardware, precision, host, git_commit, fingerprint, folder (str),
    created, updated (datetime64, UTC), seed, threads (Int64), git_dirty (bool), overrides (a list),
    recipe_values and versions (dicts). `where` may name all but those three.
    """
    return _table(db, "runs", where)


def measurements(db: str | None = None, *, where: str | None = None) -> "DataFrame":
    """Every measurement, a line each: the view measurements_v1, with facts of its run.

    Columns: run, mixer, scale, design, weights, recipe, data, device, hardware, precision, stage, name,
    condition, unit, reason (str), seed, step (Int64; the epoch of a curve's point, 0 for other numbers) and
    value (float64). `where` may name these and the columns of `runs`: choose by it, for there may be
    millions.
    """
    return _table(db, "measurements", where)


def _table(db: str | None, name: str, where: str | None) -> "DataFrame":
    condition = None if where is None else filters.parse(where, views.fields(name))
    columns = views.columns(name)
    with _open(db) as store, views.rows(store, name, condition) as batches:
        return _frame([dict(zip(columns, row, strict=True)) for batch in batches for row in batch], columns)


def _open(db: str | None) -> Store:
    return open_store(db or os.environ.get("STMBENCH_DB") or _DEFAULT, create=False)


def _frame(rows: Sequence[dict[str, Any]], columns: dict[str, type]) -> "DataFrame":
    import pandas as pd

    frame = pd.DataFrame(list(rows), columns=list(columns))
    return frame.astype({name: _DTYPES[kind] for name, kind in columns.items() if kind in _DTYPES})
