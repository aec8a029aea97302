"""One results database for all tests of the report, and what is read out of a page."""

import base64
import dataclasses
import io
import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import synthetic
from PIL import Image

from stmbench.record import Measurement
from stmbench.report import page
from stmbench.store import NewRun, Store, open_store

HOSTILE = '</script><script>window.stolen=1</script><img src="x" onerror="window.stolen=1">"\'&amp;'


_TEXTS = ("recipe_name", "data_name", "data_source", "weights", "hardware", "git_commit")


class Read(HTMLParser):
    """The tables of a page, by id or class: rows of (attributes, cells), a cell being (attributes, text)."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tables: dict[str, list[tuple[dict[str, Any], list[tuple[dict[str, Any], str]]]]] = {}
        self.sections: list[str] = []
        self.images: list[dict[str, Any]] = []
        self.addresses: list[str] = []
        self._rows: Any = None
        self._cell: list[str] | None = None
        found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
        assert found
        self.data = json.loads(found[1])
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        about = dict(attrs)
        self.addresses += [value for name, value in attrs if name in ("src", "href") and value]
        if tag == "table":
            self._rows = self.tables.setdefault(about.get("id") or about["class"] or "", [])
        elif tag == "tr":
            self._rows.append((about, []))
        elif tag in ("td", "th"):
            self._cell = []
            self._rows[-1][1].append((about, ""))
        elif tag == "section":
            self.sections.append(about["id"] or "")
        elif tag == "img":
            self.images.append(about)

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th") and self._cell is not None:
            about, _ = self._rows[-1][1][-1]
            self._rows[-1][1][-1] = (about, " ".join("".join(self._cell).split()))
            self._cell = None

    def handle_data(self, data: str) -> None:
        if self._cell is not None:
            self._cell.append(data)

    def texts(self, table: str) -> list[list[str]]:
        """The rows of a table as texts, its heads first."""
        return [[text for _, text in cells] for _, cells in self.tables[table]]


def decoded(address: str) -> np.ndarray:
    """The pixels of an image that an address holds, as places in its palette."""
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2]))))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with open_store(str(tmp_path / "results.db")) as store:
        yield store


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """Three mixers, of one two seeds and another scale; one run failed, and one is of another recipe."""
    new = NewRun(
        mixer="halo",
        scale="micro",
        stages=("build", "train", "eval", "profile", "erf", "invariance"),
        seed=0,
        recipe_name="quick",
        recipe_digest="3f9c21aa8b10",
        recipe_values={},
        data_source="fashion-mini",
        data_name="fashion-mini",
        data_fingerprint="0123456789abcdef",
        device="cpu",
        hardware="Some CPU (2 cores)",
        precision="fp32",
        threads=2,
        argv=("/somewhere/stmbench", "run", "--mixer", "halo,swin,dwconv"),
        git_commit="ab" * 20,
        git_dirty=True,
        versions={"python": "3.12", "torch": "2.6.0"},
    )
    with open_store(str(tmp_path_factory.mktemp("report") / "results.db")) as store:
        synthetic.add(store, new, "halo", level=0.6)
        synthetic.add(store, new, "halo", level=0.7, seed=1)
        synthetic.add(store, new, "swin", level=1.4, cost=2)
        synthetic.add(store, new, "dwconv", level=1.42, cost=1.5)
        synthetic.add(store, new, "halo", scale="tiny", level=2.0, cost=8)
        longer = {"recipe_name": "longer", "recipe_digest": "b" * 12, "overrides": ("schedule.epochs=9",)}
        synthetic.add(store, new, "halo", epochs=9, **longer)
        synthetic.add(store, new, "swin", epochs=9, **longer)
        failed = store.create_run(
            dataclasses.replace(new, mixer="swin", **dict.fromkeys(_TEXTS, HOSTILE), argv=(HOSTILE,))
        )
        store.start_stage(failed.id, "train")
        synthetic.put(store, failed.id, [Measurement("train", "loss", 2.0, step=1)])
        store.end_run(failed.id, "failed", HOSTILE)
        yield store


@pytest.fixture(scope="module")
def html(results: Store) -> str:
    return page.make(results)


@pytest.fixture(scope="module")
def read(html: str) -> Read:
    return Read(html)
