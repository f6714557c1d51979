"""Finding entries by one value, whatever operator they ask with.

An entry is kept under one or more *anchors* of one of its leaves: what must be so of the value for the leaf to hold. An
anchor is a kind, a size and a key, and for each kind it is known which keys a given value has. So a value is looked up
once for each kind and size in use (prefixes of 4 characters, networks of 24 bits, ...), and never once for each entry.

=============  ===========================================================  ==============================
kind           size                                                         keys of a value
=============  ===========================================================  ==============================
exact          0                                                            itself
folded         0                                                            the string, case folded
prefix         length                                                       its first characters
suffix         length                                                       its last characters
prefix folded  length                                                       the same, case folded
suffix folded  length                                                       the same, case folded
piece          length                                                       all substrings of the length
v4, v6         number of bits                                               the address's leading bits
cell           power of two                                                 the cell of that width
above, below   0                                                            every bound under, over it
text           0                                                            that it is a string
any            0                                                            that it is there
=============  ===========================================================  ==============================

What is found this way is a candidate: the entry's leaves are still to be checked.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import Any, Generic, NamedTuple, TypeVar

from event_triggers.matching.cidr import parse_address
from event_triggers.matching.leaves import (
    AnyLeaf,
    Cidr,
    EqualsIgnoreCase,
    Exactly,
    Numeric,
    OneOf,
    Operator,
    Prefix,
    PrefixIgnoreCase,
    Suffix,
    SuffixIgnoreCase,
    Wildcard,
)
from event_triggers.matching.numbers import Bounds, cell, cells, is_number

__all__ = ["Anchor", "Anchored", "anchors_of", "cost_of"]

Entry = TypeVar("Entry", bound=Hashable)

_LONGEST_PIECE = 24
_PLACES_PER_SEARCH = 4
"""In a text that is longer than so many places for each piece that is looked for, each piece is searched for."""


class Anchor(NamedTuple):
    """Something about a value."""

    kind: str
    size: int
    key: Hashable


_COSTS = {
    "exact": 0,
    "folded": 1,
    "prefix": 3,
    "suffix": 3,
    "prefix folded": 4,
    "suffix folded": 4,
    "cell": 5,
    "v4": 3,
    "v6": 3,
    "piece": 6,
    "above": 8,
    "below": 8,
    "text": 9,
    "any": 10,
}
"""How badly anchors of a kind tell values apart, roughly."""
_LONGER_IS_BETTER = ("prefix", "suffix", "prefix folded", "suffix folded", "v4", "v6")
_ABSENT_COST = 11


def anchors_of(leaf: Exactly | OneOf | AnyLeaf) -> list[Anchor]:
    """Anchors of which a value has at least one if the leaf holds for it."""
    parts = leaf.parts if isinstance(leaf, AnyLeaf) else (leaf,)
    return list(dict.fromkeys(anchor for part in parts for anchor in _anchors(part)))


def cost_of(leaf: Exactly | OneOf | AnyLeaf) -> tuple[int, int]:
    """How well a leaf serves to find its entry by; the lowest does best."""
    anchors = anchors_of(leaf)
    worst = max((_cost(anchor) for anchor in anchors), default=0)
    return max(worst, _ABSENT_COST if leaf.absent else 0), len(anchors)


def _cost(anchor: Anchor) -> int:
    return _COSTS[anchor.kind] - (min(2, anchor.size // 8) if anchor.kind in _LONGER_IS_BETTER else 0)


def _anchors(part: Exactly | OneOf | Operator) -> Iterable[Anchor]:
    match part:
        case Exactly():
            return (Anchor("exact", 0, part.value),)
        case OneOf():
            return [Anchor("exact", 0, value) for value in part.order]
        case EqualsIgnoreCase():
            return (Anchor("folded", 0, part.folded),)
        case Prefix():
            return (_of_text("prefix", part.text),)
        case Suffix():
            return (_of_text("suffix", part.text),)
        case PrefixIgnoreCase():
            return (_of_text("prefix folded", part.folded),)
        case SuffixIgnoreCase():
            return (_of_text("suffix folded", part.folded),)
        case Cidr():
            return (Anchor(f"v{part.network.version}", part.network.length, part.network.bits),)
        case Wildcard():
            return (_of_wildcard(part.pieces),)
        case Numeric():
            return _of_bounds(part.bounds)
        case _:
            return (Anchor("any", 0, None),)


def _of_text(kind: str, text: str) -> Anchor:
    return Anchor(kind, len(text), text) if text else Anchor("text", 0, None)


def _of_wildcard(pieces: tuple[str, ...]) -> Anchor:
    if len(pieces) == 1:
        return Anchor("exact", 0, pieces[0])
    piece = max(pieces[1:-1], key=len, default="")
    best = max(("prefix", pieces[0]), ("suffix", pieces[-1]), key=lambda one: len(one[1]))
    # Looking for pieces costs more, so it takes a good one.
    if len(best[1]) >= min(len(piece), 4):
        return _of_text(*best)
    return _of_text("piece", piece[-_LONGEST_PIECE:])


def _of_bounds(bounds: Bounds) -> Iterable[Anchor]:
    low, high = bounds.low, bounds.high
    if low is None:
        return (Anchor("below", 0, high),)
    if high is None:
        return (Anchor("above", 0, low),)
    if low == high:
        return (Anchor("exact", 0, low),)
    covered = cells(low, high)
    if covered is None:
        return (Anchor("above", 0, low),)
    return [Anchor("cell", covered[0], number) for number in covered[1]]


def _text_keys(key: Callable[[str, int], Iterable[Hashable]]) -> Callable[[Any, int], Iterable[Hashable]]:
    return lambda value, size: key(value, size) if isinstance(value, str) else ()


def _prefix(text: str, size: int) -> Iterable[Hashable]:
    return (text[:size],) if len(text) >= size else ()


def _suffix(text: str, size: int) -> Iterable[Hashable]:
    return (text[-size:],) if len(text) >= size else ()


def _network(version: int, bits: int) -> Callable[[str, int], Iterable[Hashable]]:
    def keys(text: str, size: int) -> Iterable[Hashable]:
        address = parse_address(text)
        return (address[1] >> (bits - size),) if address is not None and address[0] == version else ()

    return keys


def _cell(value: Any, width: int) -> Iterable[Hashable]:
    return (cell(value, width),) if is_number(value) else ()


_KEYS: dict[str, Callable[[Any, int], Iterable[Hashable]]] = {
    "exact": lambda value, _: (value,),
    "folded": _text_keys(lambda text, _: (text.casefold(),)),
    "prefix": _text_keys(_prefix),
    "suffix": _text_keys(_suffix),
    # Folding makes one character or more of each, so a part of the text is enough.
    "prefix folded": _text_keys(lambda text, size: _prefix(text[:size].casefold(), size)),
    "suffix folded": _text_keys(lambda text, size: _suffix(text[-size:].casefold(), size)),
    "v4": _text_keys(_network(4, 32)),
    "v6": _text_keys(_network(6, 128)),
    "cell": _cell,
    "text": _text_keys(lambda text, _: (None,)),
    "any": lambda value, _: (None,),
}


class _Table(Generic[Entry]):
    """The entries of one kind and size, by key."""

    __slots__ = ("entries", "keys_of", "size")

    def __init__(self, kind: str, size: int) -> None:
        self.entries: dict[Hashable, dict[Entry, None]] = {}
        self.keys_of = _KEYS.get(kind)
        self.size = size

    def add(self, key: Hashable, entry: Entry) -> None:
        self.entries.setdefault(key, {})[entry] = None

    def remove(self, key: Hashable, entry: Entry) -> bool:
        """Whether nothing is left."""
        bucket = self.entries[key]
        del bucket[entry]
        if not bucket:
            del self.entries[key]
        return not self.entries

    def find(self, value: Any) -> Iterator[Iterable[Entry]]:
        assert self.keys_of is not None  # noqa: S101  for mypy
        for key in self.keys_of(value, self.size):
            bucket = self.entries.get(key)
            if bucket is not None:
                yield bucket


class _Pieces(_Table[Entry]):
    """The entries with one piece of text that may be anywhere."""

    __slots__ = ()

    def find(self, value: Any) -> Iterator[Iterable[Entry]]:
        if not isinstance(value, str):
            return
        places = len(value) - self.size + 1
        if places > _PLACES_PER_SEARCH * len(self.entries):
            yield from (bucket for piece, bucket in self.entries.items() if str(piece) in value)
            return
        for piece in {value[place : place + self.size] for place in range(places)}:
            bucket = self.entries.get(piece)
            if bucket is not None:
                yield bucket


class _Bounds(_Table[Entry]):
    """The entries with one bound, in order."""

    __slots__ = ("above", "order")

    def __init__(self, kind: str, size: int) -> None:
        super().__init__(kind, size)
        self.above = kind == "above"
        self.order: list[Any] = []

    def add(self, key: Hashable, entry: Entry) -> None:
        if key not in self.entries:
            insort(self.order, key)
        super().add(key, entry)

    def remove(self, key: Hashable, entry: Entry) -> bool:
        empty = super().remove(key, entry)
        if key not in self.entries:
            del self.order[bisect_left(self.order, key)]
        return empty

    def find(self, value: Any) -> Iterator[Iterable[Entry]]:
        if not is_number(value):
            return
        order = self.order
        for bound in order[: bisect_right(order, value)] if self.above else order[bisect_left(order, value) :]:
            yield self.entries[bound]


class Anchored(Generic[Entry]):
    """Entries by their anchors at one path."""

    __slots__ = ("_tables",)

    def __init__(self) -> None:
        self._tables: dict[tuple[str, int], _Table[Entry]] = {}

    def __bool__(self) -> bool:
        return bool(self._tables)

    def add(self, anchor: Anchor, entry: Entry) -> None:
        """Keep an entry under an anchor."""
        place = anchor[:2]
        table = self._tables.get(place)
        if table is None:
            kind = {"above": _Bounds, "below": _Bounds, "piece": _Pieces}.get(anchor.kind, _Table)
            table = self._tables[place] = kind(anchor.kind, anchor.size)
        table.add(anchor.key, entry)

    def remove(self, anchor: Anchor, entry: Entry) -> None:
        """Forget an entry under an anchor."""
        place = anchor[:2]
        if self._tables[place].remove(anchor.key, entry):
            del self._tables[place]

    def find(self, value: Any) -> Iterator[Entry]:
        """The entries of all anchors that this scalar has; an entry may come more than once."""
        for table in self._tables.values():
            for entries in table.find(value):
                yield from entries
