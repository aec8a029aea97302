"""What tests read out of a page of the report."""

import base64
import io
import json
import re
from html.parser import HTMLParser
from typing import Any

import numpy as np
from PIL import Image

HOSTILE = '</script><script>window.stolen=1</script><img src="x" onerror="window.stolen=1">"\'&amp;'


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
