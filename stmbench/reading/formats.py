"""The leaderboard as markdown, CSV, JSON, LaTeX, HTML and Parquet.

Markdown, LaTeX and HTML are for people: the columns asked for, in words, under what the rows have in common.
CSV, JSON and Parquet are for machines: raw numbers, every field of every row and its group.
"""

import csv
import html
import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from stmbench.reading import tables
from stmbench.reading.rows import Group, records, types
from stmbench.reading.tables import NONE, caption, cells, conditions, headers, notes, shown

Export = Callable[[Sequence[Group], Sequence[str]], str | bytes]  # of groups and the columns asked for


def to_json(groups: Sequence[Group], asked: Sequence[str] = ()) -> str:
    return json.dumps(records(groups), indent=2, ensure_ascii=False)


def to_csv(groups: Sequence[Group], asked: Sequence[str] = ()) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(types(groups)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(record | {"runs": " ".join(record["runs"])} for record in records(groups))
    return text.getvalue().rstrip("\n")


def to_parquet(groups: Sequence[Group], asked: Sequence[str] = ()) -> bytes:
    """A file with a typed column per field.

    Raises:
        ValueError: pyarrow is not installed.
    """
    pa, pq = arrow()
    kinds = {str: pa.string(), float: pa.float64(), int: pa.int64(), bool: pa.bool_()}
    schema = pa.schema(
        [(name, kinds.get(kind, pa.list_(pa.string()))) for name, kind in types(groups).items()]
    )
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(records(groups), schema), file)
    return file.getvalue()


def arrow() -> tuple[Any, Any]:
    """The modules `pyarrow` and `pyarrow.parquet`; ValueError if they are not installed."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ModuleNotFoundError:
        raise ValueError("Parquet needs the package pyarrow: pip install 'stmbench[parquet]'.") from None
    return pa, pq


def to_markdown(groups: Sequence[Group], asked: Sequence[str] = ()) -> str:
    """A table per group under its caption."""
    parts = []
    for group in groups:
        names, lines = _lines(group, asked)
        table = ["| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |" for line in lines]
        rule = "|--:|" + "|".join("---" if name in tables.TEXTS else "--:" for name in names) + "|"
        parts.append("\n".join([f"**{caption(group)}**", "", table[0], rule, *table[1:]]))
        parts += [f"_{line}_" for line in _below(group, names)]
    return "\n\n".join(parts)


_LATEX = {"\\": r"\textbackslash{}", NONE: "--", "±": r"$\pm$"} | {c: f"\\{c}" for c in "&%$#_{}"}
_LATEX |= {"~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}


def to_latex(groups: Sequence[Group], asked: Sequence[str] = ()) -> str:
    r"""A `table` per group, with the rules of the package booktabs (``\usepackage{booktabs}``)."""
    parts = []
    for group in groups:
        names, lines = _lines(group, asked)
        kinds = "r" + "".join("l" if name in tables.TEXTS else "r" for name in names)
        text = ". ".join([caption(group), *_below(group, names)])
        rows = [" & ".join(map(_latex, line)) + r" \\" for line in lines]
        table = [r"\begin{table}", r"\centering", rf"\caption{{{_latex(text)}}}"]
        table += [rf"\begin{{tabular}}{{{kinds}}}", r"\toprule", rows[0], r"\midrule", *rows[1:]]
        parts.append("\n".join([*table, r"\bottomrule", r"\end{tabular}", r"\end{table}"]))
    return "\n\n".join(parts)


def _latex(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in text)


_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 90rem; padding: 0 1rem }
body { color: #222; background: #fff }
div { overflow-x: auto }
table { border-collapse: collapse; margin-top: 2rem; font-variant-numeric: tabular-nums }
caption { text-align: left; font-weight: 600; padding-bottom: .5rem }
th, td { padding: .3rem .6rem; text-align: right; border-bottom: 1px solid #ddd }
th { border-bottom: 2px solid #888; vertical-align: bottom }
td { white-space: nowrap }
.text { text-align: left }
.first td { font-weight: 600 }
p { color: #666; font-size: 13px; margin: .5rem 0 }
@media (prefers-color-scheme: dark) {
  body { background: #1a1a1a; color: #ddd } td { border-color: #444 } p { color: #aaa }
}
"""


def to_html(groups: Sequence[Group], asked: Sequence[str] = ()) -> str:
    """One page that needs nothing else, a table per group; `stmbench report` makes a richer one."""
    page = [
        '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">',
        "<title>stmbench leaderboard</title>",
    ]
    page += ['<meta name="viewport" content="width=device-width">', f"<style>{_STYLE}</style>"]
    page.append("<h1>Leaderboard</h1>")
    for group in groups:
        names, (heads, *lines) = _lines(group, asked)
        classes = ["", *(' class="text"' if name in tables.TEXTS else "" for name in names)]
        page.append(f"<div><table>\n<caption>{html.escape(caption(group))}</caption>")
        page.append(f"<thead><tr>{_html(heads, classes, 'th')}</tr></thead>\n<tbody>")
        for row, line in zip(group.rows, lines, strict=True):
            first = ' class="first"' if row.rank == 1 else ""
            page.append(f"<tr{first}>{_html(line, classes, 'td')}</tr>")
        page.append("</tbody>\n</table></div>")
        page += [f"<p>{html.escape(line)}</p>" for line in _below(group, names)]
    return "\n".join([*page, "</html>"])


def _html(line: Sequence[str], classes: Sequence[str], tag: str) -> str:
    scope = ' scope="col"' if tag == "th" else ""
    return "".join(
        f"<{tag}{scope}{kind}>{html.escape(cell)}</{tag}>" for cell, kind in zip(line, classes, strict=True)
    )


def _lines(group: Group, asked: Sequence[str]) -> tuple[Sequence[str], list[Sequence[str]]]:
    """The columns of a group, their headers, and the cells of its rows."""
    names = shown(group, asked)
    return names, [headers(group, names), *(cells(row, group, names) for row in group.rows)]


def _below(group: Group, names: Sequence[str]) -> list[str]:
    return [*filter(None, [conditions(group, names)]), *notes(group)]


EXPORTS: Mapping[str, Export] = {
    "markdown": to_markdown,
    "csv": to_csv,
    "json": to_json,
    "latex": to_latex,
    "html": to_html,
    "parquet": to_parquet,
}
SUFFIXES = {".txt": "table", ".md": "markdown", ".csv": "csv", ".json": "json", ".tex": "latex"}
SUFFIXES |= {".html": "html", ".htm": "html", ".parquet": "parquet"}


def form(name: str | None, output: Path | None) -> str:
    """The format asked for, or that of the file's name: one of `EXPORTS`, or "table".

    Raises:
        ValueError: the file's name says none that is known.
    """
    if name or output is None:
        return name or "table"
    if output.suffix not in SUFFIXES:
        known = ", ".join(dict.fromkeys(SUFFIXES))
        raise ValueError(f"'{output}' does not say its format: end it in {known}, or give --format.")
    return SUFFIXES[output.suffix]
