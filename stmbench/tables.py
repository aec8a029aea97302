"""The leaderboard in words for people, and as markdown, CSV, JSON and LaTeX."""

import csv
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from stmbench.leaderboard import FIELDS, Group, Row, records

NONE = "\N{EN DASH}"
DISTURBED = "!"
TIED = "="
_SAME = "not told apart from the first of this rank, at 5 %"
HEADERS = ("#", "mixer", "scale", "params", "MACs", "latency", "images/s", "top-1 %", "95 %", "seeds")


def cells(row: Row) -> tuple[str, ...]:
    """The row as a person reads it, under `HEADERS`."""
    sd = f" ±{row.top1_sd:.2f}" if row.top1_sd is not None else ""
    mark = DISTURBED if row.disturbed else ""
    interval = f"{row.top1_low:.1f}{NONE}{row.top1_high:.1f}" if row.top1_low is not None else NONE
    return (
        NONE if row.rank is None else f"{row.rank}{TIED * row.tied}",
        network(row.mixer, row.backend, row.weights),
        row.scale or NONE,
        _text(row.parameters, amount),
        _text(row.macs, macs),
        _text(row.latency, lambda ms: (f"{ms:.3g} ms" if ms < 100 else f"{ms:,.0f} ms") + mark),
        _text(row.throughput, lambda rate: f"{rate:,.0f}" + mark),
        _text(row.top1, lambda percent: f"{percent:.2f}{sd}"),
        interval,
        str(row.seeds),
    )


def network(mixer: str, backend: str, weights: str) -> str:
    """What a network is called: with the backend it was forced to, and the file it started from."""
    forced = f" ({backend})" if backend else ""
    return mixer + forced + (f" from {Path(weights).name}" if weights else "")


def _text(value: float | None, form: Callable[[float], str]) -> str:
    return NONE if value is None else form(value)


def amount(count: float) -> str:
    """A count in millions: ``4.39 M``."""
    return f"{count / 1e6:.2f} M"


def macs(count: float) -> str:
    """Multiply-accumulates: ``0.86 G``, or ``13.5 M`` below a tenth of that unit."""
    return f"{count / 1e9:.2f} G" if count >= 1e8 else f"{count / 1e6:.1f} M"


def caption(group: Group) -> str:
    """What the rows of a group have in common, in one line."""
    name = f"recipe {group.recipe} ({group.recipe_digest})"
    return f"{name}, data {group.data}, {group.hardware} [{group.device}], {group.precision}"


def conditions(group: Group) -> str:
    """What latency and throughput were measured under, and what the marks mean; "" where there is neither."""
    found = {"latency": group.latency_condition, "images/s": group.throughput_condition}
    parts = {name: at.split(",") for name, at in found.items() if at}
    common = set.intersection(*map(set, parts.values())) if parts else set()
    shared = sorted(part for part in common if not part.startswith("batch"))
    own = {name: ", ".join(part for part in at if part not in shared) for name, at in parts.items()}
    notes = [f"{name} at {at}" for name, at in own.items() if at] + [", ".join(shared)] * bool(shared)
    if any(row.disturbed for row in group.rows):
        notes.append(f"{DISTURBED} the machine was disturbed: `stmbench show RUN` says how")
    if any(row.tied for row in group.rows):
        notes.append(f"{TIED} {_SAME if group.ranked_by == 'top1' else 'equal'}")
    return "; ".join(notes)


def to_json(groups: Sequence[Group]) -> str:
    return json.dumps(records(groups), indent=2, ensure_ascii=False)


def to_csv(groups: Sequence[Group]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, FIELDS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(record | {"runs": " ".join(record["runs"])} for record in records(groups))
    return text.getvalue().rstrip("\n")


def to_markdown(groups: Sequence[Group]) -> str:
    """A table per group under its caption."""
    rule = "|" + "|".join("---" if name in ("mixer", "scale") else "--:" for name in HEADERS) + "|"
    parts = []
    for group in groups:
        lines = [HEADERS, *map(cells, group.rows)]
        table = ["| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |" for line in lines]
        parts.append("\n".join([f"**{caption(group)}**", "", table[0], rule, *table[1:]]))
        if note := conditions(group):
            parts.append(f"_{note}_")
    return "\n\n".join(parts)


_LATEX = {"\\": r"\textbackslash{}", NONE: "--", "±": r"$\pm$"} | {c: f"\\{c}" for c in "&%$#_{}"}
_LATEX |= {"~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}


def to_latex(groups: Sequence[Group]) -> str:
    r"""A `table` per group, with the rules of the package booktabs (``\usepackage{booktabs}``)."""
    kinds = "".join("l" if name in ("mixer", "scale") else "r" for name in HEADERS)
    parts = []
    for group in groups:
        note = f". {conditions(group)}" if conditions(group) else ""
        rows = [" & ".join(map(_latex, line)) + r" \\" for line in [HEADERS, *map(cells, group.rows)]]
        table = [r"\begin{table}", r"\centering", rf"\caption{{{_latex(caption(group) + note)}}}"]
        table += [rf"\begin{{tabular}}{{{kinds}}}", r"\toprule", rows[0], r"\midrule", *rows[1:]]
        parts.append("\n".join([*table, r"\bottomrule", r"\end{tabular}", r"\end{table}"]))
    return "\n\n".join(parts)


def _latex(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in text)


EXPORTS = {"markdown": to_markdown, "csv": to_csv, "json": to_json, "latex": to_latex}
