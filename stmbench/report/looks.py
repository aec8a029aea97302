"""How the networks are drawn, on the whole page alike, and which run a network of a picture is."""

from collections.abc import Mapping, Sequence
from typing import Any

from stmbench import style
from stmbench.pictures.networks import Group, Shared, family, place
from stmbench.reading.rows import Group as Board
from stmbench.reading.rows import Row
from stmbench.store import RunRecord

Members = Mapping[str, RunRecord]  # by the network's name

SHAPES = {
    "o": "circle",
    "s": "square",
    "^": "up",
    "D": "diamond",
    "v": "down",
    "P": "plus",
    "X": "cross",
    "*": "star",
}


class Looks:
    """How each family of networks is drawn, on the whole page alike: as in our pictures, in their order."""

    def __init__(self, networks: Sequence[RunRecord | Row]) -> None:
        ordered = sorted(networks, key=lambda network: (place(network)[0], family(network)))
        self._families = list(dict.fromkeys(map(family, ordered)))
        self._looks = style.looks(len(self._families))

    def of(self, network: RunRecord | Row) -> int:
        """The number of its look."""
        return self._families.index(family(network))

    def mark(self, network: RunRecord | Row) -> str:
        """Its mark in its colour, for the eye alone."""
        number = self.of(network)
        shape = SHAPES[self._looks[number].marker]
        view = 'viewBox="-5 -5 10 10" aria-hidden="true"'
        return f'<svg class="mark look-{number}" {view}><use href="#mark-{shape}"/></svg>'

    def style(self) -> str:
        """A class of CSS per look; black turns with the page."""
        colours = ("var(--ink)" if look.color == "#000000" else look.color for look in self._looks)
        return "\n".join(f".look-{i} {{ color: {colour} }}" for i, colour in enumerate(colours))

    def record(self) -> list[dict[str, Any]]:
        """What the browser needs to draw them."""
        return [
            {
                "family": name,
                "shape": SHAPES[look.marker],
                "dashes": [] if look.dashes == "-" else list(look.dashes[1]),
            }
            for name, look in zip(self._families, self._looks, strict=True)
        ]


def members(group: Group[Any], runs: Sequence[RunRecord]) -> Members:
    """The networks of a group by name, each as the newest of its runs; `runs` come newest first."""
    found: dict[str, RunRecord] = {}
    for run in runs:
        if (run.recipe_name, run.recipe_digest, run.data_name, run.data_fingerprint) == group.shared[:4]:
            name = family(run, "" if group.scale else run.scale)
            found.setdefault(name, run)
            found.setdefault(f"{name} ({run.id})", run)
    return found


def origin(shared: Shared | Board) -> str:
    """What heads a set of networks that may be compared: recipe and data."""
    return f"{shared.recipe} ({shared.recipe_digest}) on {shared.data}"
