"""Reading what stands at one field of a pattern: a value, or a list of values and operators."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from event_triggers.errors import InvalidEventError
from event_triggers.matching.cidr import parse_network
from event_triggers.matching.leaves import (
    AnyLeaf,
    AnythingBut,
    Cidr,
    EqualsIgnoreCase,
    Exactly,
    Numeric,
    OneOf,
    Operator,
    Prefix,
    PrefixIgnoreCase,
    Present,
    Suffix,
    SuffixIgnoreCase,
    Wildcard,
    exactly,
    leaf_of,
)
from event_triggers.matching.numbers import Bounds, is_number
from event_triggers.matching.wildcards import WildcardError, wildcard_pieces
from event_triggers.text import shown

__all__ = ["COMPARISONS", "OPERATORS", "LeafReader", "describe", "pending"]

OPERATORS = frozenset(
    ("anything-but", "cidr", "equals-ignore-case", "exactly", "exists", "numeric", "prefix", "suffix", "wildcard")
)
COMPARISONS = ("=", "<", "<=", ">", ">=")
_EXCLUDABLE = ("equals-ignore-case", "prefix", "suffix", "wildcard")
_VALUE = "a string, a number, true, false, null or an operator such as {'prefix': 'a'}"


def describe(value: object) -> str:
    """A value and its type, short, for an error."""
    return f"{shown(repr(value), 120)} ({type(value).__name__})"


def pending(value: object) -> bool:
    """Whether this stands for a value that comes when the wait starts: a Jinja template, or a reference (XComArg)."""
    if isinstance(value, str):
        return "{{" in value or "{%" in value
    return hasattr(value, "resolve")


def _is_list(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes))


def _is_value(value: object) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    return value is None or isinstance(value, (str, int))


class LeafReader:
    """Reads leaves.

    :param rendered: whether nothing is :func:`pending` any more.
    """

    def __init__(self, rendered: bool) -> None:
        self._rendered = rendered

    def leaf(self, node: object, at: str) -> Exactly | OneOf | AnyLeaf:
        """What is asked of a field.

        :raises InvalidEventError: naming the place and what was expected there.
        """
        if self._rendered and node.__class__ is list and len(node) == 1 and node[0].__class__ is str:
            return exactly(node[0])  # what nearly every field asks for
        if not _is_list(node):
            if self._waits(node):
                return leaf_of([], [Present()], absent=False)
            if not _is_value(node):
                raise InvalidEventError(f"{at}: expected a list of allowed values or a mapping, got {describe(node)}")
            return leaf_of([node], [], absent=False)
        assert isinstance(node, Sequence)  # noqa: S101  for mypy
        if not node:
            raise InvalidEventError(f"{at}: an empty list allows nothing, so no message could ever match")
        values: list[Any] = []
        operators: list[Operator] = []
        absent = False
        for place, item in enumerate(node):
            here = f"{at}[{place}]"
            if isinstance(item, Mapping):
                found = self._operator(item, here)
                if found is None:
                    absent = True
                elif isinstance(found, Exactly):
                    values.append(found.value)
                else:
                    operators.append(found)
            elif self._waits(item):
                operators.append(Present())
            elif _is_value(item):
                values.append(item)
            else:
                raise InvalidEventError(f"{here}: expected {_VALUE}, got {describe(item)}")
        leaf = leaf_of(values, operators, absent)
        return _one_of_equals(leaf, node) if operators and self._rendered else leaf

    def _waits(self, value: object) -> bool:
        return not self._rendered and pending(value)

    def _operator(self, item: Mapping[Any, Any], at: str) -> Operator | Exactly | None:
        """What an operator asks; ``None`` for a field that must be missing."""
        if len(item) != 1:
            raise InvalidEventError(f"{at}: expected one operator, such as {{'prefix': 'a'}}, got {describe(item)}")
        ((name, operand),) = item.items()
        here = f"{at}[{name!r}]"
        if not isinstance(name, str) or name not in OPERATORS:
            raise InvalidEventError(f"{here}: there is no operator {describe(name)}; there are {_listed(OPERATORS)}")
        if self._waits(operand):
            return Present()
        if name == "exists":
            return Present() if _truth(operand, here) else None
        readers: dict[str, Callable[[Any, str], Operator | Exactly]] = {
            "anything-but": self._anything_but,
            "cidr": self._cidr,
            "equals-ignore-case": lambda operand, at: EqualsIgnoreCase(_text(operand, at)),
            "exactly": lambda operand, at: Exactly(_text(operand, at)),
            "numeric": self._numeric,
            "prefix": self._prefix,
            "suffix": self._suffix,
            "wildcard": _wildcard,
        }
        return readers[name](operand, here)

    def _prefix(self, operand: Any, at: str) -> Operator:
        if isinstance(operand, Mapping):
            text, here = self._ignoring_case(operand, at)
            return Present() if self._waits(text) else PrefixIgnoreCase(_text(text, here))
        return Prefix(_text(operand, at, or_ignoring_case=True))

    def _suffix(self, operand: Any, at: str) -> Operator:
        if isinstance(operand, Mapping):
            text, here = self._ignoring_case(operand, at)
            return Present() if self._waits(text) else SuffixIgnoreCase(_text(text, here))
        return Suffix(_text(operand, at, or_ignoring_case=True))

    def _ignoring_case(self, operand: Mapping[Any, Any], at: str) -> tuple[Any, str]:
        if list(operand) != ["equals-ignore-case"]:
            raise InvalidEventError(
                f"{at}: expected a string or {{'equals-ignore-case': a string}}, got {describe(operand)}"
            )
        return operand["equals-ignore-case"], f"{at}['equals-ignore-case']"

    def _cidr(self, operand: Any, at: str) -> Operator:
        text = _text(operand, at)
        try:
            return Cidr(parse_network(text))
        except ValueError as error:
            raise InvalidEventError(
                f"{at}: expected a block of addresses, such as '10.0.0.0/8' or '2001:db8::/32', got {describe(text)}: "
                f"{error}"
            ) from error

    def _anything_but(self, operand: Any, at: str) -> Operator:
        if isinstance(operand, Mapping):
            return self._anything_but_operator(operand, at)
        items = list(operand) if _is_list(operand) else [operand]
        if not items:
            raise InvalidEventError(f"{at}: an empty list excludes nothing; use {{'exists': True}} for any value")
        values = []
        for place, item in enumerate(items):
            here = f"{at}[{place}]" if _is_list(operand) else at
            if self._waits(item):
                continue
            if not isinstance(item, str) and not is_number(item):
                raise InvalidEventError(
                    f"{here}: expected a string, a number, a list of either or an operator of {_listed(_EXCLUDABLE)}, "
                    f"got {describe(item)}"
                )
            values.append(item)
        if len({isinstance(value, str) for value in values}) > 1:
            raise InvalidEventError(f"{at}: expected all strings or all numbers, got {describe(operand)}")
        return AnythingBut([leaf_of(values, [], absent=False)]) if values else Present()  # type: ignore[list-item]

    def _anything_but_operator(self, operand: Mapping[Any, Any], at: str) -> Operator:
        if len(operand) != 1 or next(iter(operand)) not in _EXCLUDABLE:
            raise InvalidEventError(f"{at}: expected one operator of {_listed(_EXCLUDABLE)}, got {describe(operand)}")
        ((name, inner),) = operand.items()
        if self._waits(inner):
            return Present()
        at = f"{at}[{name!r}]"
        if _is_list(inner) and not inner:
            raise InvalidEventError(f"{at}: an empty list excludes nothing; use {{'exists': True}} for any value")
        excluded = []
        for place, text in enumerate(inner if _is_list(inner) else [inner]):
            here = f"{at}[{place}]" if _is_list(inner) else at
            if self._waits(text):
                continue
            if name in ("prefix", "suffix") and text == "":
                raise InvalidEventError(f"{here}: every string has the empty {name}, so none would be left")
            excluded.append(_SIMPLE[name](text, here))
        return AnythingBut(excluded)

    def _numeric(self, operand: Any, at: str) -> Operator:
        if not _is_list(operand) or len(operand) not in (2, 4):
            raise InvalidEventError(
                f"{at}: expected a list of a comparison and a number, such as ['>=', 5], or of two comparisons, "
                f"such as ['>', 0, '<=', 5], got {describe(operand)}"
            )
        signs, numbers = operand[::2], []
        for place, sign in enumerate(signs):
            allowed = COMPARISONS if len(signs) == 1 else (("<", "<=") if place else (">", ">="))
            if sign not in allowed:
                raise InvalidEventError(f"{at}[{place * 2}]: expected {_listed(allowed)}, got {describe(sign)}")
            numbers.append(self._number(operand[place * 2 + 1], f"{at}[{place * 2 + 1}]"))
        if None in numbers:
            return Present()
        bounds = _bounds(list(zip(signs, numbers, strict=True)))
        if bounds.low is not None and bounds.high is not None and not _has_room(bounds):
            raise InvalidEventError(f"{at}: no number is {bounds}, so no message could ever match")
        return Numeric(bounds)

    def _number(self, value: Any, at: str) -> int | float | None:
        """A number, also one that a template was rendered to; ``None`` while it is pending."""
        if self._waits(value):
            return None
        if isinstance(value, str):
            try:
                value = msgspec.json.decode(value)
            except (msgspec.DecodeError, ValueError, RecursionError):
                raise InvalidEventError(f"{at}: expected a number, got {describe(value)}") from None
        if not is_number(value):
            raise InvalidEventError(f"{at}: expected a number, got {describe(value)}")
        return value  # type: ignore[no-any-return]


_known: dict[bytes, AnyLeaf] = {}
_MOST_KNOWN = 4096


def _one_of_equals(leaf: Exactly | OneOf | AnyLeaf, node: Sequence[Any]) -> Exactly | OneOf | AnyLeaf:
    """The same leaf for all patterns that ask for the same: memory is saved, and what is looked at often stays near."""
    try:
        text = msgspec.json.encode(list(node))
    except (TypeError, ValueError, RecursionError):
        return leaf  # mappings of a class of one's own
    if len(_known) >= _MOST_KNOWN:
        _known.clear()
    return _known.setdefault(text, leaf)  # type: ignore[arg-type]


def _bounds(comparisons: list[tuple[str, int | float | None]]) -> Bounds:
    bounds = Bounds(None, False, None, False)
    for sign, number in comparisons:
        if sign in (">", ">=", "="):
            bounds = bounds._replace(low=number, low_open=sign == ">")
        if sign in ("<", "<=", "="):
            bounds = bounds._replace(high=number, high_open=sign == "<")
    return bounds


def _has_room(bounds: Bounds) -> bool:
    low, low_open, high, high_open = bounds
    assert low is not None and high is not None  # noqa: PT018, S101  for mypy
    return low < high or (low == high and not low_open and not high_open)


def _truth(operand: object, at: str) -> bool:
    if isinstance(operand, bool):
        return operand
    # What a template was rendered to is a string.
    if isinstance(operand, str) and operand.lower() in ("true", "false"):
        return operand.lower() == "true"
    raise InvalidEventError(f"{at}: expected true or false, got {describe(operand)}")


def _text(operand: object, at: str, *, or_ignoring_case: bool = False) -> str:
    if not isinstance(operand, str):
        expected = "a string or {'equals-ignore-case': a string}" if or_ignoring_case else "a string"
        raise InvalidEventError(f"{at}: expected {expected}, got {describe(operand)}")
    return operand


def _wildcard(operand: Any, at: str) -> Operator:
    text = _text(operand, at)
    try:
        return Wildcard(text, wildcard_pieces(text))
    except WildcardError as error:
        raise InvalidEventError(f"{at}: {error}; got {describe(text)}") from error


def _listed(names: Sequence[str] | frozenset[str]) -> str:
    return ", ".join(map(repr, sorted(names) if isinstance(names, frozenset) else names))


_SIMPLE: dict[str, Callable[[Any, str], Operator]] = {
    "equals-ignore-case": lambda text, at: EqualsIgnoreCase(_text(text, at)),
    "prefix": lambda text, at: Prefix(_text(text, at)),
    "suffix": lambda text, at: Suffix(_text(text, at)),
    "wildcard": _wildcard,
}
