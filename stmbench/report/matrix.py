"""The comparison matrix: every network against every other, as `stmbench compare` would say it.

A column is one `stmbench compare`: its network is the reference, the others are the contenders, and p-values
and intervals are corrected for their number. The statistics are those of `reading.significance`.
"""

import functools
import hashlib
import json
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

from stmbench.pictures import networks
from stmbench.reading import answers, tables
from stmbench.reading.answers import Answers
from stmbench.reading.holm import holm
from stmbench.reading.significance import Hits, Interval, Test, Verdict, paired, verdict
from stmbench.report.looks import Looks, origin
from stmbench.report.markup import article, attributes, section, table
from stmbench.store import RunRecord, Store

_MOST = 12  # networks that a matrix has room for
WORDS: dict[Verdict, str] = {"better": "better", "worse": "worse", "inconclusive": "not told apart"}
_SIGNS: dict[Verdict, str] = {"better": "▲", "worse": "▼", "inconclusive": "≈"}


@dataclass(frozen=True, slots=True)
class Side:
    """A network with the runs that stand for it, one per seed, and what they got right."""

    name: str
    runs: tuple[RunRecord, ...]
    hits: Hits

    @property
    def argument(self) -> str:
        """What `stmbench compare` calls it."""
        return ",".join(run.id for run in self.runs)

    @property
    def top1(self) -> float:
        return 100 * float(self.hits.accuracies.mean())


@dataclass(frozen=True, slots=True)
class Cell:
    """A contender against a reference."""

    value: float  # points, contender minus reference
    interval: Interval
    level: float  # the interval covers all but this
    p: float  # corrected

    @property
    def verdict(self) -> Verdict:
        return verdict(self.interval)


@dataclass(frozen=True, slots=True)
class Matrix:
    """Sides that may be compared, and `cells[contender][reference]`; None where the two are one."""

    shared: networks.Shared
    images: int
    sides: tuple[Side, ...]
    cells: tuple[tuple[Cell | None, ...], ...]
    of: int  # networks there are, of which these are the best


def read(store: Store, runs: Sequence[RunRecord]) -> list[Matrix]:
    """The matrices of finished runs, newest first; only what was trained and tested alike is in one."""
    files = answers.files(store)
    found: list[tuple[RunRecord, str, tuple[RunRecord, Answers]]] = []
    for run in runs:
        try:
            read = answers.read(run, files.get(run.id))
        except ValueError:  # as on the leaderboard: `stmbench compare` says what is wrong
            continue
        images = json.dumps(run.preprocessing, sort_keys=True).encode() + read.labels.tobytes()
        found.append((run, hashlib.sha256(images).hexdigest(), (run, read)))
    return [matrix for group in networks.groups(found) for matrix in _matrices(group)]


def _matrices(group: networks.Group[tuple[RunRecord, Answers]]) -> Iterator[Matrix]:
    """One of all networks, or where they are too many one per scale."""
    sides = [_side(network) for network in group.networks]
    scales = dict.fromkeys(side.runs[0].scale for side in sides)
    parts = [sides]
    if len(sides) > _MOST:
        parts = [[side for side in sides if side.runs[0].scale == scale] for scale in scales]
    for part in parts:
        best = sorted(part, key=lambda side: -side.top1)[:_MOST]
        kept = tuple(side for side in part if side in best)
        if len(kept) > 1:
            yield Matrix(group.shared, len(kept[0].hits.share), kept, _cells(kept), len(part))


def _side(network: networks.Network[tuple[RunRecord, Answers]]) -> Side:
    runs = tuple(run for run, _ in network.seeds.values())
    return Side(network.name, runs, Hits.of([read.hits for _, read in network.seeds.values()]))


def _cells(sides: Sequence[Side]) -> tuple[tuple[Cell | None, ...], ...]:
    columns = [_column(sides, reference) for reference in range(len(sides))]
    return tuple(zip(*columns, strict=True))


def _column(sides: Sequence[Side], reference: int) -> list[Cell | None]:
    """Every side against one."""
    others = [i for i in range(len(sides)) if i != reference]
    tests = [paired(sides[reference].hits, sides[i].hits) for i in others]
    column: list[Cell | None] = [None] * len(sides)
    for i, test, (p, level) in zip(others, tests, holm([test.p for test in tests]), strict=True):
        column[i] = Cell(test.value, _interval(test, level), level, p)
    return column


@functools.cache
def _interval(test: Test, level: float) -> Interval:
    """Drawn once: a page that is made again and again has mostly the same tests."""
    return test.interval(level)


# The section


def comparison(matrices: Sequence[Matrix], looks: Looks) -> str:
    """The section."""
    lead = (
        "Is the network of the row more often right than that of the column? Its top-1 minus the column's, "
        "in points. p and the interval are corrected for the number of networks in the column (Holm), so the "
        "interval covers 95 % or more, and leaves out zero where the two are told apart."
    )
    return section(
        "comparison", "Comparison", lead, "".join(_article(i, each, looks) for i, each in enumerate(matrices))
    )


def _article(number: int, matrix: Matrix, looks: Looks) -> str:
    shared, sides = matrix.shared, matrix.sides
    few = f", the {len(sides)} best of {matrix.of} networks" if len(sides) < matrix.of else ""
    scales = {side.runs[0].scale for side in sides}
    scale = f", {next(iter(scales))}" if len(scales) == 1 and scales != {""} else ""
    title = f"{origin(shared)}{scale}{few}"
    recipe = f"recipe {shared.recipe} ({shared.recipe_digest})"
    caption = f"Top-1 of the row minus the column's, {matrix.images:,} test images, {recipe}"
    heads = ['<td class="corner"></td>']
    heads += [f'<th scope="col"{_known(side)}>{looks.mark(side.runs[0])}{_name(side)}</th>' for side in sides]
    rows = [_row(matrix, i, looks) for i in range(len(sides))]
    content = table(caption, heads, rows, id=f"matrix-{number}", class_="matrix")
    content += f'<p class="note">{" ".join(_notes(sides))}</p>{_commands(sides)}'
    return article(title, content, recipe=shared.recipe)


def _known(side: Side) -> str:
    run = side.runs[0]
    return attributes(data_mixer=run.mixer, data_scale=run.scale, data_name=side.name)


def _name(side: Side) -> str:
    seeds = f"{len(side.runs)} seed{'s' * (len(side.runs) > 1)}"
    return f"{escape(side.name)}<small>{side.top1:.2f} %, {seeds}</small>"


def _row(matrix: Matrix, place: int, looks: Looks) -> str:
    side = matrix.sides[place]
    head = f'<th scope="row">{looks.mark(side.runs[0])}{_name(side)}</th>'
    cells = [_cell(side, other, cell) for other, cell in zip(matrix.sides, matrix.cells[place], strict=True)]
    return f"<tr{_known(side)}>{head}{''.join(cells)}</tr>"


def _cell(side: Side, reference: Side, cell: Cell | None) -> str:
    if cell is None:
        return f'<td class="same"{_known(reference)}><span aria-hidden="true">{tables.NONE}</span></td>'
    low, high = cell.interval
    p = f"p = {cell.p:.2g}" if cell.p >= 0.0001 else "p < 0.0001"
    coverage = f"{100 * (1 - cell.level):.4g} %"
    about = f"{side.name} against {reference.name}: {coverage} interval"
    word, mark = WORDS[cell.verdict], _SIGNS[cell.verdict]
    parts = [
        f"<b>{_signed(cell.value)}</b>",
        f'<span class="verdict"><span aria-hidden="true">{mark} </span>{word}</span>',
        f"<small>{_signed(low)} to {_signed(high)}</small>",
        f"<small>{escape(p)}</small>",
    ]
    return f"<td{attributes(class_=cell.verdict, title=about)}{_known(reference)}>{' '.join(parts)}</td>"


def _signed(value: float) -> str:
    return f"{value:+.2f}".replace("-", "\N{MINUS SIGN}")


def _notes(sides: Sequence[Side]) -> Iterator[str]:
    """What the tests say, and what they do not."""
    seeds = [len(side.runs) for side in sides]
    if seeds.count(1) > 1:
        yield (
            "One seed each: McNemar's exact test with a paired bootstrap, which tells two trained networks "
            "apart, not what they are made of."
        )
    if max(seeds) > 1:
        yield "Several seeds: Student's interval of their means, for other seeds and other test images."


def _commands(sides: Sequence[Side]) -> str:
    """What says the same of each column, and more."""
    lines = []
    for reference in sides:
        others = [side.argument for side in sides if side is not reference]
        lines.append(shlex.join(["stmbench", "compare", reference.argument, *others]))
    code = "\n".join(lines)
    return f"<details><summary>Each column as a command</summary><pre>{escape(code)}</pre></details>"
