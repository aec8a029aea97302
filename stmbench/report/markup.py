"""Small parts of a page: escaped text, numbers, times, tables, sections, and the pool of what is shared."""

import json
import math
from collections.abc import Iterable
from datetime import datetime
from html import escape
from typing import Any


class Pool:
    """Values that several places share: each is on the page once, and known by its place."""

    def __init__(self) -> None:
        self._places: dict[str, int] = {}
        self.values: list[Any] = []

    def place(self, value: Any) -> int:
        place = self._places.setdefault(json.dumps(value), len(self.values))
        if place == len(self.values):
            self.values.append(value)
        return place


def rounded(value: float | None, digits: int = 6) -> float | None:
    """A number for the browser, to so many significant digits; None for what is none."""
    if value is None or not math.isfinite(value):
        return None
    short = float(f"{value:.{digits}g}")
    return int(short) if short == int(short) else short  # "1" is shorter than "1.0"


def attributes(**named: object) -> str:
    """``data_mixer="halo"`` as `` data-mixer="halo"``; None is left out."""
    there = {name.rstrip("_").replace("_", "-"): value for name, value in named.items() if value is not None}
    return "".join(f' {name}="{escape(str(value))}"' for name, value in there.items())


def moment(time: datetime) -> str:
    """A time in UTC to the minute, for people and machines."""
    return f'<time datetime="{time.isoformat(timespec="seconds")}">{time:%Y-%m-%d %H:%M}</time>'


def header(name: str, *, numeric: bool = False, first: str = "ascending", now: str = "none") -> str:
    """The head of a column that sorts: a button, which JavaScript wakes.

    `first` is which end it brings to the top at first, `now` how the rows are sorted by it as they come.
    """
    kind = attributes(class_="number" if numeric else None, data_first=first, aria_sort=now)
    return f'<th scope="col"{kind}><button type="button">{escape(name)}</button></th>'


def table(caption: str, heads: Iterable[str], rows: Iterable[str], **named: object) -> str:
    """A table in a box of its own that scrolls where the screen is narrow, and can be scrolled by key."""
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(caption)}">'
        f"<table{attributes(**named)}><caption><span>{escape(caption)}</span></caption>"
        f"<thead><tr>{''.join(heads)}</tr></thead>\n<tbody>{chr(10).join(rows)}</tbody></table></div>"
    )


def section(name: str, title: str, lead: str, content: str) -> str:
    """A part of the page under a heading; "" without content."""
    if not content:
        return ""
    return (
        f'<section id="{name}" aria-labelledby="{name}-title"><h2 id="{name}-title">{escape(title)}</h2>'
        f'<p class="lead">{escape(lead)}</p>\n{content}</section>\n'
    )


def article(title: str, content: str, *, recipe: str, **named: object) -> str:
    """One set of what may be compared; where a section has several the reader chooses one."""
    about = attributes(data_recipe=recipe, data_title=title, **named)
    return f"<article{about}><h3>{escape(title)}</h3>{content}</article>\n"
