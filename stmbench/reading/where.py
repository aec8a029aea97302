"""Filters as people write them: ``scale=tiny and (top1>70 or mixer in (halo, swin))``.

    expression  = term { "or" term }
    term        = factor { "and" factor }
    factor      = "not" factor | "(" expression ")" | comparison
    comparison  = field ("=" | "!=" | "<" | "<=" | ">" | ">=" | "~") value
                | field "in" "(" value { "," value } ")"

A field or a value is a bare word, or anything in quotes; ``~`` is "contains", in any case of letters. Numbers
are in the units that csv and json have. A comparison with a number that is missing is false, ``!=`` too.

An expression tests values one by one, or becomes the condition of a database query: nothing is ever evaluated
as Python.
"""

import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import reduce
from typing import Any, NamedTuple, NoReturn

from stmbench import catalog

Fields = Mapping[str, type]  # float, str, bool or datetime, by name
ValueOf = Callable[[str], Any]  # a field's value; None where it is missing

_COMPARISONS: Mapping[str, Callable[[Any, Any], Any]] = {
    "=": operator.eq,
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_CONTAINS = "~"
_TRUTHS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
_TOKEN = re.compile(
    r"""(?P<sign>==|<=|>=|!=|[=<>~(),])|(?P<quoted>"[^"]*"|'[^']*')|(?P<word>[^\s=<>!~(),"']+)"""
)


@dataclass(frozen=True, slots=True)
class Comparison:
    """A field against a value, or with ``in`` against several."""

    field: str
    sign: str
    values: tuple[Any, ...]

    @property
    def fields(self) -> frozenset[str]:
        return frozenset((self.field,))

    def holds(self, value_of: ValueOf) -> bool:
        found = value_of(self.field)
        if found is None:
            return False
        if self.sign == _CONTAINS:
            return self.values[0].casefold() in found.casefold()
        return any(self._compare(found, value) for value in self.values)

    def clause(self, column_of: ValueOf) -> Any:
        column = column_of(self.field)
        if self.sign == _CONTAINS:
            return column.icontains(self.values[0], autoescape=True)
        return reduce(operator.or_, (self._compare(column, value) for value in self.values))

    def _compare(self, found: Any, value: Any) -> Any:
        return _COMPARISONS.get(self.sign, operator.eq)(found, value)


@dataclass(frozen=True, slots=True)
class Not:
    part: "Expression"

    @property
    def fields(self) -> frozenset[str]:
        return self.part.fields

    def holds(self, value_of: ValueOf) -> bool:
        return not self.part.holds(value_of)

    def clause(self, column_of: ValueOf) -> Any:
        return ~self.part.clause(column_of)


@dataclass(frozen=True, slots=True)
class Every:
    parts: Sequence["Expression"]

    @property
    def fields(self) -> frozenset[str]:
        return frozenset().union(*(part.fields for part in self.parts))

    def holds(self, value_of: ValueOf) -> bool:
        return all(part.holds(value_of) for part in self.parts)

    def clause(self, column_of: ValueOf) -> Any:
        return reduce(operator.and_, (part.clause(column_of) for part in self.parts))


@dataclass(frozen=True, slots=True)
class Some:
    parts: Sequence["Expression"]

    @property
    def fields(self) -> frozenset[str]:
        return frozenset().union(*(part.fields for part in self.parts))

    def holds(self, value_of: ValueOf) -> bool:
        return any(part.holds(value_of) for part in self.parts)

    def clause(self, column_of: ValueOf) -> Any:
        return reduce(operator.or_, (part.clause(column_of) for part in self.parts))


Expression = Comparison | Not | Every | Some
# `fields` are the names in it. `holds` tests the values of one thing. `clause` makes the condition of a
# query, of SQLAlchemy's columns.


def parse(
    text: str, fields: Fields, aliases: Mapping[str, str] | None = None, *, numbers: bool = False
) -> Expression:
    """The expression that `text` is, over these fields; `aliases` are other names of theirs.

    With `numbers`, any other name may be one of a number.

    Raises:
        ValueError: it does not parse (with the position), or an unknown field (with the nearest), or a
            value that its field cannot have.
    """
    return _Parser(text, fields, aliases or {}, numbers).whole()


class _Token(NamedTuple):
    kind: str  # sign, quoted, word, or "end"
    text: str
    position: int  # in the expression, from 1


class _Parser:
    """Recursive descent, a method per rule of the grammar."""

    def __init__(self, text: str, fields: Fields, aliases: Mapping[str, str], numbers: bool) -> None:
        self.text, self.fields, self.aliases, self.numbers = text, fields, aliases, numbers
        self.tokens = self._tokens()
        self.next = 0

    def _tokens(self) -> list[_Token]:
        tokens, at = [], 0
        while at < len(self.text):
            if self.text[at].isspace():
                at += 1
                continue
            found = _TOKEN.match(self.text, at)
            if not found:
                what = "a quote that does not end" if self.text[at] in "\"'" else f"'{self.text[at]}'"
                raise ValueError(f"Cannot read the filter '{self.text}': {what} at character {at + 1}.")
            kind = found.lastgroup or ""
            tokens.append(_Token(kind, found[0].strip("\"'") if kind == "quoted" else found[0], at + 1))
            at = found.end()
        return [*tokens, _Token("end", "", len(self.text) + 1)]

    def whole(self) -> Expression:
        found = self._any_of()
        if self._token.kind != "end":
            self._fail("'and' or 'or'")
        return found

    def _any_of(self) -> Expression:
        parts = [self._all_of()]
        while self._take("or"):
            parts.append(self._all_of())
        return parts[0] if len(parts) == 1 else Some(parts)

    def _all_of(self) -> Expression:
        parts = [self._factor()]
        while self._take("and"):
            parts.append(self._factor())
        return parts[0] if len(parts) == 1 else Every(parts)

    def _factor(self) -> Expression:
        if self._take("not"):
            return Not(self._factor())
        if self._take("("):
            found = self._any_of()
            self._expect(")", "')'")
            return found
        return self._comparison()

    def _comparison(self) -> Expression:
        name = self._operand("a field").text
        field = self.aliases.get(name, name)
        if not self.numbers:
            catalog.known("field", field, self.fields, self.aliases)
        if self._take("in"):
            self._expect("(", "'('")
            values = [self._value(field)]
            while self._take(","):
                values.append(self._value(field))
            self._expect(")", "',' or ')'")
            return Comparison(field, "in", tuple(values))
        sign = self._token.text
        if self._token.kind != "sign" or sign not in (*_COMPARISONS, _CONTAINS):
            self._fail("one of = != < <= > >= ~ in")
        if sign == _CONTAINS and self.fields.get(field) is not str:
            raise ValueError(f"'~' looks into texts, and {field} is none: use = != < <= > >=.")
        self.next += 1
        return Comparison(field, sign, (self._value(field),))

    def _value(self, field: str) -> Any:
        text, kind = self._operand("a value").text, self.fields.get(field, float)
        try:
            if kind is bool:
                return _TRUTHS[text.lower()]
            if kind is datetime:
                return datetime.fromisoformat(text).astimezone()
            return kind(text)
        except (ValueError, KeyError):
            catalog.known("field", field, self.fields, self.aliases)
            name = {bool: "yes or no", datetime: "a date such as 2026-07-31"}.get(kind, "a number")
            raise ValueError(f"{field} is {name}, and '{text}' is not.") from None

    # Tokens

    @property
    def _token(self) -> _Token:
        return self.tokens[self.next]

    def _take(self, text: str) -> bool:
        taken = self._token.kind != "quoted" and self._token.text.lower() == text
        self.next += taken
        return taken

    def _expect(self, text: str, name: str) -> None:
        if not self._take(text):
            self._fail(name)

    def _operand(self, name: str) -> _Token:
        token = self._token
        reserved = token.kind == "word" and token.text.lower() in ("and", "or", "not", "in")
        if token.kind not in ("word", "quoted") or reserved:
            self._fail(name)
        self.next += 1
        return token

    def _fail(self, expected: str) -> NoReturn:
        token = self._token
        found = f", not '{token.text}'" if token.kind != "end" else ", where it ends"
        raise ValueError(
            f"Cannot read the filter '{self.text}': expected {expected} at character {token.position}{found}."
        )
