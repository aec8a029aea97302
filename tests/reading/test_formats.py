"""The leaderboard as files: types in Parquet, a page that is HTML, and which format is meant."""

import builtins
import io
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import measured
import pytest
from measured import IMAGES, TOP1

from stmbench.reading import formats
from stmbench.reading.leaderboard import rank
from stmbench.reading.rows import Group, records, types
from stmbench.reading.tables import NONE
from stmbench.store import NewRun, open_store


@pytest.fixture
def groups(tmp_path: Path, new_run: NewRun) -> Iterator[list[Group]]:
    """Two networks of unlike names, of which one has no top-1 and the other an erf area."""
    with open_store(str(tmp_path / "results.db")) as store:
        numbers = {TOP1: 88.5, IMAGES: 2000, "erf.area@level=4,size=28": 12.5}
        measured.add(store, new_run, numbers, {"area": "%"}, data_name="<data> & co")
        measured.add(store, new_run, {"build.macs": 1e9}, mixer="swin", data_name="<data> & co")
        yield rank(store, columns=["area"])


def test_parquet_has_a_typed_column_per_field(groups: list[Group]) -> None:
    pq = pytest.importorskip("pyarrow.parquet")
    table = pq.read_table(io.BytesIO(formats.to_parquet(groups)))
    assert table.to_pylist() == [one | {"runs": list(one["runs"])} for one in records(groups)]
    found = {field.name: str(field.type) for field in table.schema}
    assert list(found) == list(types(groups))
    wanted = {"rank": "int64", "tied": "bool", "mixer": "string", "top1": "double", "area": "double"}
    wanted |= {"area_n": "int64", "area_unit": "string", "macs": "double"}
    assert {name: found[name] for name in wanted} == wanted
    assert found["runs"].startswith("list<")


def test_an_empty_leaderboard_is_a_file_too() -> None:
    pq = pytest.importorskip("pyarrow.parquet")
    assert pq.read_table(io.BytesIO(formats.to_parquet([]))).num_rows == 0
    assert formats.to_csv([]).startswith("recipe,")
    assert formats.to_json([]) == "[]"


def test_parquet_without_its_package_names_the_extra(
    groups: list[Group], monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str, *rest: object, real=builtins.__import__) -> object:
        if name.startswith("pyarrow"):
            raise ModuleNotFoundError(name=name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(ValueError, match=r"pip install 'stmbench\[parquet\]'"):
        formats.to_parquet(groups)


class _Page(HTMLParser):
    """Texts by tag, and whether every tag that is opened is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.texts: dict[str, list[str]] = {}
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag != "meta":
            self.open.append(tag)
        self.texts.setdefault(tag, []).append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open:
            self.texts[self.open[-1]][-1] += data


def test_html_is_one_sound_page_that_needs_no_other(groups: list[Group]) -> None:
    text = formats.to_html(groups, ["mixer", "top1", "area"])
    page = _Page(text)
    assert page.open == []
    assert page.texts["th"] == ["#", "mixer", "top-1 %", "area %"]
    assert page.texts["td"] == ["1", "halo", "88.50", "12.5", NONE, "swin", NONE, NONE]
    assert page.texts["caption"][0].startswith("recipe quick (3f9c21aa8b10), data <data> & co, Some CPU")
    assert page.texts["p"] == ["area at level=4, size=28"]
    assert not re.search(r"src=|href=|<script|url\(|@import", text)


def test_markdown_and_latex_have_the_columns_asked_for(groups: list[Group]) -> None:
    assert "| # | mixer | area % |\n|--:|---|--:|\n| 1 | halo | 12.5 |" in formats.to_markdown(
        groups, ["mixer", "area"]
    )
    latex = formats.to_latex(groups, ["mixer", "area"])
    assert r"\begin{tabular}{rlr}" in latex
    assert r"1 & halo & 12.5 \\" in latex


@pytest.mark.parametrize(
    ("name", "output", "form"),
    [
        (None, None, "table"),
        ("csv", None, "csv"),
        (None, "a.parquet", "parquet"),
        (None, "a.md", "markdown"),
        (None, "a.tex", "latex"),
        (None, "a.txt", "table"),
        ("json", "a.csv", "json"),
        ("csv", "a", "csv"),
    ],
)
def test_the_format_is_the_one_asked_for_or_the_files(
    name: str | None, output: str | None, form: str
) -> None:
    assert formats.form(name, Path(output) if output else None) == form


def test_a_file_that_does_not_say_its_format_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'a\.xlsx' does not say its format: end it in \.txt, .*--format"):
        formats.form(None, Path("a.xlsx"))
