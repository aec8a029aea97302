"""The leaderboard: the groups, ranks and texts of `stmbench leaderboard`, as tables that can be sorted."""

from collections.abc import Mapping, Sequence
from html import escape

from stmbench.pictures.networks import place
from stmbench.reading import tables
from stmbench.reading.rows import Group, Row
from stmbench.report.looks import Looks, origin
from stmbench.report.markup import article, attributes, header, section, table
from stmbench.store import RunRecord

_RANK, _INTERVAL = "#", "95 %"
# Columns from the left: what a narrow screen shows first. Of each what sorts it, and which end comes first.
_COLUMNS = {
    _RANK: ("rank", "ascending"),
    "mixer": ("mixer", "ascending"),
    "scale": ("scale", "ascending"),
    "top-1 %": ("top1", "descending"),
    _INTERVAL: ("top1_low", "descending"),
    "seeds": ("seeds", "descending"),
    "params": ("parameters", "ascending"),
    "MACs": ("macs", "ascending"),
    "latency": ("latency", "ascending"),
    "images/s": ("throughput", "descending"),
}
_OF_DETECTORS = {"box AP": ("box_ap", "descending"), "mask AP": ("mask_ap", "descending")}
_TEXTS = ("mixer", "scale")


def leaderboard(groups: Sequence[Group], looks: Looks, runs: Mapping[str, RunRecord]) -> str:
    """The section; `runs` are those of the rows, by id."""
    lead = (
        "Finished runs, means over seeds. Only what was measured alike stands in one table. Top-1 with its "
        "95 % interval over test images; rows that cannot be told apart share a rank. Detectors by box AP."
    )
    articles = "".join(_article(i, group, looks, runs) for i, group in enumerate(groups))
    return section("leaderboard", "Leaderboard", lead, articles)


def _article(number: int, group: Group, looks: Looks, runs: Mapping[str, RunRecord]) -> str:
    heads = [
        header(name, numeric=name not in _TEXTS, first=first, now="ascending" if name == _RANK else "none")
        for name, (_, first) in _columns(group).items()
    ]
    heads.append('<th scope="col">runs, by seed</th>')
    ends = [end for row in group.rows for end in (row.top1_low, row.top1_high) if end is not None]
    span = (min(ends), max(ends)) if ends else (0.0, 1.0)
    rows = [_row(row, group, span, looks, runs) for row in group.rows]
    content = table(
        tables.caption(group),
        heads,
        rows,
        id=f"board-{number}",
        class_="board with-sd" if any(row.top1_sd is not None for row in group.rows) else "board",
    )
    if note := tables.conditions(group):
        content += f'<p class="note">{escape(note)}</p>'
    return article(origin(group), content, recipe=group.recipe)


def _columns(group: Group) -> Mapping[str, tuple[str, str]]:
    """Those of the table; of detectors AP stands in the place of top-1 and its interval."""
    if not group.detects:
        return _COLUMNS
    usual = list(_COLUMNS.items())
    at = list(_COLUMNS).index("top-1 %")
    return dict([*usual[:at], *_OF_DETECTORS.items(), *usual[at + 2 :]])


def _row(
    row: Row, group: Group, span: tuple[float, float], looks: Looks, runs: Mapping[str, RunRecord]
) -> str:
    columns = _columns(group)
    names = [column if name != _INTERVAL else "interval" for name, (column, _) in columns.items()][1:]
    texts = dict(zip(columns, tables.cells(row, group, names), strict=True))
    cells = []
    for name, (column, _) in columns.items():
        value = place(row)[1] if name == "scale" else row.value(column)
        sort = attributes(data_value=value, class_=None if name in _TEXTS else "number")
        text = _aligned(texts[name])
        if name == "mixer":
            cells.append(f'<th scope="row"{sort}>{looks.mark(row)}{text}</th>')
        else:
            cells.append(f"<td{sort}>{_whisker(row, span, looks) * (name == _INTERVAL)}{text}</td>")
    links = " ".join(_link(runs[run]) for run in row.runs)
    known = attributes(data_mixer=row.mixer, data_scale=row.scale, class_="first" if row.rank == 1 else None)
    return f'<tr{known}>{"".join(cells)}<td class="seeds">{links}</td></tr>'


def _aligned(text: str) -> str:
    """A mean with its sd in a place of its own, so that means stand below each other."""
    mean, _, sd = text.partition(" ±")
    return escape(mean) + (f' <span class="sd">±{escape(sd)}</span>' if sd else "")


def _link(run: RunRecord) -> str:
    about = attributes(href=f"#run={run.id}", title=run.id, aria_label=f"seed {run.seed}: {run.id}")
    return f"<a{about}>{run.seed}</a>"


def _whisker(row: Row, span: tuple[float, float], looks: Looks) -> str:
    """The interval as a line, the mean as a point, on one scale for the whole table; for the eye alone."""
    if row.top1 is None or row.top1_low is None or row.top1_high is None:
        return ""
    low, most = span
    places = [100 * (value - low) / (most - low or 1) for value in (row.top1_low, row.top1, row.top1_high)]
    at = "; ".join(f"--{name}: {value:.1f}" for name, value in zip("abc", places, strict=True))
    return f'<span class="whisker look-{looks.of(row)}" style="{at}" aria-hidden="true"></span>'
