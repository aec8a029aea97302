"""Filters: what they mean, to a row and to a database alike, and what is said of unreadable ones."""

import re
from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy import Boolean, Column, Double, MetaData, String, Table, create_engine, insert, select

from stmbench.reading import where

FIELDS = {"mixer": str, "scale": str, "top1": float, "macs": float, "tuned": bool, "created": datetime}
ROWS = [
    {"mixer": "halo", "scale": "tiny", "top1": 83.0, "macs": 5.3e9, "tuned": False},
    {"mixer": "swin", "scale": "tiny", "top1": 70.0, "macs": 4.9e9, "tuned": True},
    {"mixer": "timm:resnet18 (v2)", "scale": "", "top1": None, "macs": 1.8e9, "tuned": False},
    {"mixer": "dwconv", "scale": "micro", "top1": 75.1, "macs": 6.5e8, "tuned": False},
]
CASES = {
    "scale=tiny and top1>70": [0],
    "scale=tiny and top1>=70": [0, 1],
    "scale == 'tiny'": [0, 1],
    'scale=""': [2],
    "scale!=tiny": [2, 3],
    "mixer in (halo, dwconv)": [0, 3],
    "mixer in (halo) or mixer = swin and top1 < 71": [0, 1],
    "(mixer=halo or mixer=swin) and top1<71": [1],
    "not scale=tiny": [2, 3],
    "not (scale=tiny or mixer~CONV)": [2],
    "NOT scale=tiny AND mixer~conv": [3],
    "mixer~resnet": [2],
    "mixer~%": [],
    "mixer = 'timm:resnet18 (v2)'": [2],
    "MACs<1e9": [3],
    "top-1 > 80": [0],
    "top1 != 83": [1, 3],  # a missing number is not told apart from anything
    "top1 < 1e9": [0, 1, 3],
    "tuned=yes": [1],
    "tuned=false": [0, 2, 3],
    "mixer > halo and mixer < timm": [1],
}
ALIASES = {"MACs": "macs", "top-1": "top1"}


@pytest.mark.parametrize("text", CASES)
def test_rows_that_hold(text: str) -> None:
    found = where.parse(text, FIELDS, ALIASES)
    assert [i for i, row in enumerate(ROWS) if found.holds(row.get)] == CASES[text]


@pytest.mark.parametrize("text", CASES)
def test_a_database_finds_the_same(text: str) -> None:
    kinds: dict[type, Any] = {str: String, float: Double, bool: Boolean}
    columns = [Column(name, kinds[kind]) for name, kind in FIELDS.items() if kind in kinds]
    table = Table("rows", MetaData(), *columns)
    engine = create_engine("sqlite://")
    with engine.begin() as connection:
        table.create(connection)
        connection.execute(insert(table), ROWS)
        query = select(table.c.mixer).where(where.parse(text, FIELDS, ALIASES).clause(table.c.__getitem__))
        found = list(connection.scalars(query))
    engine.dispose()
    assert found == [ROWS[i]["mixer"] for i in CASES[text]]


def test_numbers_of_any_name_where_they_may_be() -> None:
    found = where.parse(
        "mixer=halo and not (cost>2 or 'side@level=4'<3) or top-1>7", FIELDS, ALIASES, numbers=True
    )
    assert found.fields == {"mixer", "cost", "side@level=4", "top1"}
    assert found.holds({"mixer": "halo", "cost": 2.0, "side@level=4": 3.0}.get)
    assert not found.holds({"mixer": "halo", "cost": 2.0, "side@level=4": 2.0}.get)
    with pytest.raises(ValueError, match="Unknown field 'mixr'"):
        where.parse("mixr=halo", FIELDS, numbers=True)


def test_dates_are_local_unless_they_say_their_zone() -> None:
    row = {"created": datetime(2026, 7, 31, 12, tzinfo=UTC)}
    assert where.parse("created > 2026-07-31T11:59:59+00:00", FIELDS).holds(row.get)
    assert not where.parse("created > 2026-07-31T12:00:01+00:00", FIELDS).holds(row.get)
    assert where.parse("created > 2026-07-29 and created < 2026-08-02", FIELDS).holds(row.get)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("top1>>70", "'top1>>70': expected a value at character 6, not '>'."),
        ("top1>", "expected a value at character 6, where it ends."),
        ("", "expected a field at character 1, where it ends."),
        ("top1", "expected one of = != < <= > >= ~ in at character 5, where it ends."),
        ("top1>7 and", "expected a field at character 11, where it ends."),
        ("top1>7 scale=tiny", "expected 'and' or 'or' at character 8, not 'scale'."),
        ("(top1>7", "expected ')' at character 8, where it ends."),
        ("top1>7)", "expected 'and' or 'or' at character 7, not ')'."),
        ("mixer in halo", "expected '(' at character 10, not 'halo'."),
        ("mixer in (halo", "expected ',' or ')' at character 15, where it ends."),
        ("mixer in ()", "expected a value at character 11, not ')'."),
        ("mixer='halo", "a quote that does not end at character 7."),
        ("top1!70", "'!' at character 5."),
        ("and=3", "expected a field at character 1, not 'and'."),
        ("topp1>70", "Unknown field 'topp1'. Did you mean 'top1'?"),
        ("MAC<3", "Unknown field 'MAC'. Did you mean 'macs'?"),
        ("top1>high", "top1 is a number, and 'high' is not."),
        ("tuned=maybe", "tuned is yes or no, and 'maybe' is not."),
        ("created>soon", "created is a date such as 2026-07-31, and 'soon' is not."),
        ("top1~7", "'~' looks into texts, and top1 is none: use = != < <= > >=."),
    ],
)
def test_what_cannot_be_read_says_where(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        where.parse(text, FIELDS, ALIASES)
    assert "\n" not in str(caught.value)
