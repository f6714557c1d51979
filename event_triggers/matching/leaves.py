"""What a pattern may ask of one value: its leaves, and the operators in them.

Every class here answers ``holds(value)`` for a JSON scalar. A :class:`Leaf` is what stands at one field of a pattern:
one value, or any of a list, of which some may be operators. An array is never seen here; its scalars are, one by one.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Any, Protocol

from event_triggers.matching.cidr import Network
from event_triggers.matching.numbers import Bounds, is_number
from event_triggers.matching.wildcards import pieces_match
from event_triggers.text import shown

__all__ = [
    "AnyLeaf",
    "AnythingBut",
    "Cidr",
    "EqualsIgnoreCase",
    "Exactly",
    "Leaf",
    "Numeric",
    "OneOf",
    "Operator",
    "Prefix",
    "PrefixIgnoreCase",
    "Present",
    "Suffix",
    "SuffixIgnoreCase",
    "Wildcard",
    "exactly",
    "leaf_of",
    "literal",
]

_SHOWN = 80
_LIST_SHOWN = 5
_LINEAR = 8
"""So many values are compared one by one; more are hashed."""


def literal(value: Any) -> str:
    """A JSON value for people: short, on one line, without control characters."""
    if value is None or value is True or value is False:
        return {None: "null", True: "true", False: "false"}[value]
    return shown(f"'{value}'" if isinstance(value, str) else repr(value), _SHOWN)


class Leaf(Protocol):
    """What is asked of the values at one field."""

    @property
    def absent(self) -> bool:
        """Whether it also holds where the field is missing."""

    def holds(self, value: Any) -> bool:
        """Whether a scalar that the document has there satisfies it."""


class Operator:
    """A test of one scalar other than equality."""

    __slots__ = ()

    def holds(self, value: Any) -> bool:
        """Whether the scalar passes."""
        raise NotImplementedError


class Exactly:
    """One value: a string, a number, ``true``, ``false`` or ``null``."""

    __slots__ = ("value",)
    absent = False

    def __init__(self, value: Any) -> None:
        self.value = value

    def holds(self, value: Any) -> bool:
        """Whether the value is the same to JSON."""
        wanted = self.value
        if value.__class__ is bool or wanted.__class__ is bool:
            return value is wanted
        return bool(value == wanted)

    def __str__(self) -> str:
        return literal(self.value)


class OneOf:
    """One of several values."""

    __slots__ = ("flags", "order", "values")
    absent = False

    def __init__(self, values: Iterable[Any]) -> None:
        self.order = tuple(values)
        self.flags = tuple(value for value in self.order if value.__class__ is bool)
        others = tuple(value for value in self.order if value.__class__ is not bool)
        self.values = others if len(others) <= _LINEAR else frozenset(others)

    def holds(self, value: Any) -> bool:
        """Whether the value is the same as one of them."""
        return value in (self.flags if value.__class__ is bool else self.values)

    def __str__(self) -> str:
        return _some(map(literal, self.order))


class AnyLeaf:
    """One of several things, operators among them; perhaps that the field is missing."""

    __slots__ = ("absent", "parts")

    def __init__(self, parts: Iterable[Exactly | OneOf | Operator], absent: bool) -> None:
        self.parts = tuple(parts)
        self.absent = absent

    def holds(self, value: Any) -> bool:
        """Whether one of them holds."""
        return any(part.holds(value) for part in self.parts)

    def __str__(self) -> str:
        return _some([*map(str, self.parts), *(["a missing field"] if self.absent else [])])


def leaf_of(values: list[Any], operators: list[Operator], absent: bool) -> Exactly | OneOf | AnyLeaf:
    """The leaf that any of these satisfies."""
    # Python's True equals 1, and here they are two values.
    distinct = list({(value.__class__ is bool, value): value for value in values}.values())
    exact: list[Exactly | OneOf] = []
    if distinct:
        exact.append(exactly(distinct[0]) if len(distinct) == 1 else OneOf(distinct))
    if operators or absent:
        return AnyLeaf([*exact, *operators], absent)
    return exact[0]


def exactly(value: Any) -> Exactly:
    """The leaf that this value alone satisfies."""
    return _exact_text(value) if value.__class__ is str else Exactly(value)


@lru_cache(maxsize=16384)
def _exact_text(text: str) -> Exactly:
    """One leaf, and one text, for all patterns that ask for the same: days, tables and the like."""
    return Exactly(text)


def _some(texts: Iterable[str]) -> str:
    texts = list(texts)
    more = len(texts) - _LIST_SHOWN
    return " or ".join(texts[:_LIST_SHOWN]) + (f" or {more} more" if more > 0 else "")


class _OfText(Operator):
    __slots__ = ("text",)
    word = ""

    def __init__(self, text: str) -> None:
        self.text = text

    def __str__(self) -> str:
        return f"{self.word} {literal(self.text)}"


class _OfFoldedText(_OfText):
    """Compares without regard to case, by Unicode's full case folding."""

    __slots__ = ("folded",)

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.folded = text.casefold()


class Prefix(_OfText):
    """A string that begins so."""

    __slots__ = ()
    word = "prefix"

    def holds(self, value: Any) -> bool:
        """Whether it does."""
        return isinstance(value, str) and value.startswith(self.text)


class Suffix(_OfText):
    """A string that ends so."""

    __slots__ = ()
    word = "suffix"

    def holds(self, value: Any) -> bool:
        """Whether it does."""
        return isinstance(value, str) and value.endswith(self.text)


class EqualsIgnoreCase(_OfFoldedText):
    """A string that differs in case at most."""

    __slots__ = ()
    word = "equals-ignore-case"

    def holds(self, value: Any) -> bool:
        """Whether it does."""
        return isinstance(value, str) and value.casefold() == self.folded


class PrefixIgnoreCase(_OfFoldedText):
    """A string that begins so, in whatever case."""

    __slots__ = ()
    word = "prefix equals-ignore-case"

    def holds(self, value: Any) -> bool:
        """Whether it does."""
        return isinstance(value, str) and value[: len(self.folded)].casefold().startswith(self.folded)


class SuffixIgnoreCase(_OfFoldedText):
    """A string that ends so, in whatever case."""

    __slots__ = ()
    word = "suffix equals-ignore-case"

    def holds(self, value: Any) -> bool:
        """Whether it does."""
        return isinstance(value, str) and value[-len(self.folded) or None :].casefold().endswith(self.folded)


class Wildcard(Operator):
    """A string of pieces with anything between them."""

    __slots__ = ("pieces", "text")

    def __init__(self, text: str, pieces: tuple[str, ...]) -> None:
        self.text = text
        self.pieces = pieces

    def holds(self, value: Any) -> bool:
        """Whether it is."""
        return isinstance(value, str) and pieces_match(self.pieces, value)

    def __str__(self) -> str:
        return f"wildcard {literal(self.text)}"


class Numeric(Operator):
    """A number within bounds."""

    __slots__ = ("bounds",)

    def __init__(self, bounds: Bounds) -> None:
        self.bounds = bounds

    def holds(self, value: Any) -> bool:
        """Whether it is."""
        return is_number(value) and self.bounds.holds(value)

    def __str__(self) -> str:
        return f"a number {self.bounds}"


class Cidr(Operator):
    """An IP address of a block."""

    __slots__ = ("network",)

    def __init__(self, network: Network) -> None:
        self.network = network

    def holds(self, value: Any) -> bool:
        """Whether it is."""
        return isinstance(value, str) and self.network.holds(value)

    def __str__(self) -> str:
        return f"an address in {self.network}"


class Present(Operator):
    """Any scalar at all."""

    __slots__ = ()

    def holds(self, value: Any) -> bool:
        """Always: it is there."""
        return True

    def __str__(self) -> str:
        return "any value"


class AnythingBut(Operator):
    """Any scalar of which none of these holds."""

    __slots__ = ("excluded",)

    def __init__(self, excluded: Iterable[Exactly | OneOf | Operator]) -> None:
        self.excluded = tuple(excluded)

    def holds(self, value: Any) -> bool:
        """Whether the scalar is none of them."""
        return not any(one.holds(value) for one in self.excluded)

    def __str__(self) -> str:
        return f"anything but {_some(map(str, self.excluded))}"
