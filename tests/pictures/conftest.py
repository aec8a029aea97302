"""A results database to be filled by hand, and the pictures as matplotlib has them."""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from stmbench.record import Measurement, condition
from stmbench.store import NewRun, RunRecord, Store, open_store

Put = Callable[..., None]
Add = Callable[..., RunRecord]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with open_store(str(tmp_path / "results.db")) as store:
        yield store


@pytest.fixture
def add(store: Store, new_run: NewRun) -> Add:
    """Add a finished run: ``add(("eval", "top1", 50.0, {"weights": "plain"}), ..., mixer="halo")``."""

    def add(*numbers: tuple[Any, ...], **fields: Any) -> RunRecord:
        values = {"data": {"image_size": 28, "crop_pct": 0.875}}
        run = store.create_run(dataclasses.replace(new_run, **{"recipe_values": values} | fields))
        run.folder.mkdir()
        for stage, name, value, at, *step in numbers:
            store.record(run.id, Measurement(stage, name, value, "", condition(**at), *step))
        store.end_run(run.id, "done")
        return store.run(run.id)

    return add


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Every figure that is saved, which it then is; each must be legible in print, with nothing cut off."""
    figures: list[Figure] = []
    save = Figure.savefig

    def keep(figure: Figure, *arguments: Any, **options: Any) -> None:
        figures.append(figure)
        save(figure, *arguments, **options)
        texts: list[Any] = figure.findobj(Text)
        assert min(text.get_fontsize() for text in texts if text.get_text()) >= 7
        width, height = figure.get_size_inches()
        drawn = figure.get_tightbbox()
        assert min(drawn.x0, drawn.y0, width - drawn.x1, height - drawn.y1) > -0.01  # inches

    monkeypatch.setattr(Figure, "savefig", keep)
    return figures
