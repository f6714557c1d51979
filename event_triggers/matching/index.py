"""Finding the patterns that a document matches, without trying them all.

Flow: an alternative of a pattern becomes an *entry*. Its fields with exact values are its *shape*; all entries of a
shape stand in one hash table, from the values at those fields to a *bucket* of entries. Entries without exact values
stand in one bucket of their own. In a bucket of many entries that have more to check, those are found by the value of
one more leaf (:mod:`.anchors`). A document's values at all these fields are gathered once; then each shape costs one
look-up, or, where there are many, each one whose youngest field is there.

Invariants:

* What is looked up proposes, and never leaves out: each entry that holds is proposed. An entry's ``rest`` holds all
  leaves that the look-up alone does not prove; a proposed entry is found when its rest holds.
* With arrays at the fields, a value for each field is not enough. Then all values of each field are looked up in all
  combinations, and what is proposed is compared with the document by the plain rules.
* Shapes are filed under the youngest of their fields. Fields that many shapes share are old, so a field that is in the
  document leads to few shapes, however many there are in all.

Adding, removing and looking up cost nothing that grows with the number of patterns, except where that many patterns
hold for the leaf by which they are found. Nothing is kept of what was removed. Not safe for threads. Nothing survives
a restart.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from itertools import repeat
from typing import Any, Generic, TypeVar

from event_triggers.matching.buckets import Bucket, Entry, Spread
from event_triggers.matching.fields import Columns, Field, gather, gather_all, named
from event_triggers.matching.leaves import AnyLeaf, Exactly, OneOf
from event_triggers.matching.reference import MISSING
from event_triggers.matching.shapes import Shape
from event_triggers.matching.structure import Path
from event_triggers.matching.syntax import Alternative

__all__ = ["DocumentIndex"]

Token = TypeVar("Token", bound=Hashable)
_AnyLeaf = Exactly | OneOf | AnyLeaf

_MOST_KEYS = 64
"""An entry that allows more combinations of values than this is hashed on fewer of its fields and then checked."""
_FEW_SHAPES = 4
"""So many shapes are looked up one by one, without gathering values first."""
_AMBIGUOUS = (0, 1, None)
"""``False == 0`` and ``True == 1`` in Python, and a missing field is looked up as ``None``."""


class DocumentIndex(Generic[Token]):
    """Patterns by the documents that match them."""

    __slots__ = ("_direct", "_entries", "_loose", "_root", "_shapes", "several")

    def __init__(self) -> None:
        self._entries: dict[Token, Entry | tuple[Entry, ...]] = {}
        self._root = Field()
        self._shapes: dict[tuple[Field, ...], Shape] = {}
        self._loose: Spread | None = None
        """Those without exact values."""
        self._direct: tuple[Shape, ...] | None = ()
        """All shapes, where they are few, each about one or two fields at the top, and there is nothing besides."""
        self.several = 0
        """How many patterns have several alternatives: then :meth:`find` may give a token more than once."""

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, token: object) -> bool:
        return token in self._entries

    def __iter__(self) -> Iterator[Token]:
        return iter(self._entries)

    def alternatives(self, token: Token) -> tuple[Alternative, ...]:
        """What was added under a token."""
        known = self._entries[token]
        entries = (known,) if isinstance(known, Entry) else known
        return tuple(Alternative(entry.structure, entry.leaves) for entry in entries)

    def add(self, alternatives: tuple[Alternative, ...], token: Token) -> None:
        """Look for documents of which one of the alternatives holds; the token must be new."""
        hashed = [_hashed(alternative) for alternative in alternatives]
        entries = tuple(map(_entry, alternatives, hashed, repeat(token)))
        alone = len(entries) == 1
        self.several += not alone
        self._entries[token] = entries[0] if alone else entries
        for entry, numbers in zip(entries, hashed, strict=True):
            self._insert(entry, numbers, alone)

    def remove(self, token: Token) -> None:
        """Forget what was added under this token.

        :raises KeyError: when there is nothing.
        """
        known = self._entries[token]
        alone = isinstance(known, Entry)
        self.several -= not alone
        for entry in (known,) if isinstance(known, Entry) else known:
            self._take_out(entry)
        del self._entries[token]

    def find(self, document: dict[str, Any]) -> list[Token]:
        """The tokens of the patterns that an object matches; one may come more than once, see :attr:`several`."""
        direct = self._direct
        if direct is None:
            return self._find_anywhere(document)
        found: list[Any] = []
        value_at = document.get
        try:
            for shape in direct:
                known = shape.table.get(value_at(shape.head_name))
                if known is None:
                    continue
                if shape.tail_name is not None:
                    known = known.get(value_at(shape.tail_name))
                    if known is None:
                        continue
                kind = known.__class__
                if kind is Entry:
                    if known.holds(document):
                        found.append(known.token)
                elif kind is Bucket:
                    return self._find_anywhere(document)
                else:
                    found.append(known)
        except TypeError:
            # Arrays and objects cannot be looked up.
            return self._find_anywhere(document)
        return found

    def _find_anywhere(self, document: dict[str, Any]) -> list[Token]:
        values: dict[Field, Any] = {}
        # What gather() does, for the fields at the top: each call counts here.
        below = self._root.below
        for name, field in (below if len(below) <= len(document) else named(below, document)).items():
            value = document.get(name, MISSING)
            kind = value.__class__
            if kind is list or (kind is dict and field.below and gather(field, value, values)):
                return self._find_through_arrays(document)
            if kind is not dict and value is not MISSING:
                values[field] = value
        found: list[Any] = []
        shapes = self._shapes
        for shape in shapes.values() if len(shapes) <= len(values) else _shapes_at(values):
            known = shape.get(values)
            if known is None:
                continue
            kind = known.__class__
            if kind is Entry:
                if known.holds(document):
                    found.append(known.token)
            elif kind is Bucket:
                known.collect(document, values, found)
            else:
                found.append(known)
        if self._loose is not None:
            self._loose.collect(document, values, found)
        return found

    def _find_through_arrays(self, document: dict[str, Any]) -> list[Token]:
        columns: Columns = {}
        gather_all(self._root, document, columns)
        proposed: dict[Entry, None] = {}
        for field in columns:
            for shape in field.shapes:
                for known in shape.met(columns):
                    if isinstance(known, Bucket):
                        proposed.update(dict.fromkeys(known.proposed(columns)))
                    else:
                        proposed[self._known(known)] = None
        if self._loose is not None:
            proposed.update(dict.fromkeys(self._loose.proposed(columns)))
        return [entry.token for entry in proposed if entry.fits(document)]  # type: ignore[misc]

    def _insert(self, entry: Entry, hashed: list[int], alone: bool) -> None:
        fields, leaves = _placed(entry, hashed, self._root.use)
        if not fields:
            if self._loose is None:
                self._loose = Spread(self._root)
                self._review()
            self._loose.add(entry)
            return
        shape = self._shapes.get(fields)
        if shape is None:
            shape = self._shapes[fields] = Shape(fields)
            shape.last.shapes[shape] = None
            self._review()
        # The token itself, where nothing is left to check, saves a step to a place in memory that may be far away.
        kept = entry.token if alone and not entry.rest and entry.token is not None else entry

        def with_it(known: Any) -> Any:
            if known is None:
                return kept
            if not isinstance(known, Bucket):
                first, known = self._known(known), Bucket()
                known.add(first, self._root)
            known.add(entry, self._root)
            return known

        shape.put([_allowed(leaf) for leaf in leaves], with_it)

    def _take_out(self, entry: Entry) -> None:
        hashed = _hashed(Alternative(entry.structure, entry.leaves))
        fields, leaves = _placed(entry, hashed, self._root.at)
        if not fields:
            assert self._loose is not None  # noqa: S101  for mypy
            self._loose.remove(entry)
            if not self._loose:
                self._loose = None
                self._review()
            return
        shape = self._shapes[fields]
        shape.put(
            [_allowed(leaf) for leaf in leaves],
            lambda known: None if not isinstance(known, Bucket) or known.remove(entry) else known,
        )
        if not shape:
            del self._shapes[fields]
            del shape.last.shapes[shape]
            self._review()
        for field in fields:
            field.release()

    def _review(self) -> None:
        """The shapes, or whether there is anything besides, have changed."""
        shapes = tuple(self._shapes.values()) if len(self._shapes) <= _FEW_SHAPES else ()
        direct = self._loose is None and len(shapes) == len(self._shapes) and all(shape.simple for shape in shapes)
        self._direct = shapes if direct else None

    def _known(self, kept: Any) -> Entry:
        return kept if isinstance(kept, Entry) else self._entries[kept]  # type: ignore[return-value]


def _entry(alternative: Alternative, hashed: list[int], token: Hashable) -> Entry:
    rest = [n for n, leaf in enumerate(alternative.leaves) if n not in hashed or _is_ambiguous(leaf)]
    return Entry(token, alternative, rest)


def _placed(
    entry: Entry, hashed: list[int], field_at: Callable[[Path], Field]
) -> tuple[tuple[Field, ...], list[_AnyLeaf]]:
    """The fields that an entry is hashed on, the oldest first, and its leaves at them."""
    paths, leaves = entry.structure.paths, entry.leaves
    pairs = sorted([(field_at(paths[number]), leaves[number]) for number in hashed], key=_age)
    return tuple([field for field, _ in pairs]), [leaf for _, leaf in pairs]


def _age(pair: tuple[Field, _AnyLeaf]) -> int:
    return pair[0].age


def _hashed(alternative: Alternative) -> list[int]:
    """The numbers of the leaves that an entry is hashed on; for the same alternative always the same."""
    paths, leaves = alternative.structure.paths, alternative.leaves
    exact: dict[Path, int] = {}
    single = True
    for number, leaf in enumerate(leaves):
        if not isinstance(leaf, AnyLeaf):
            exact.setdefault(paths[number], number)
            single = single and isinstance(leaf, Exactly)
    if single:
        return list(exact.values())
    # Few allowed values first: they tell entries apart best. At least one field is always hashed.
    chosen: list[int] = []
    combinations = 1
    for number in sorted(exact.values(), key=lambda number: _width(leaves[number])):
        combinations *= _width(leaves[number])
        if chosen and combinations > _MOST_KEYS:
            break
        chosen.append(number)
    return chosen


def _width(leaf: _AnyLeaf) -> int:
    return len(leaf.order) if isinstance(leaf, OneOf) else 1


def _allowed(leaf: _AnyLeaf) -> tuple[Any, ...]:
    if isinstance(leaf, OneOf):
        return leaf.order
    assert isinstance(leaf, Exactly)  # noqa: S101  for mypy
    return (leaf.value,)


def _is_ambiguous(leaf: _AnyLeaf) -> bool:
    """Whether another value has the same key."""
    if isinstance(leaf, Exactly):
        return leaf.value.__class__ is not str and leaf.value in _AMBIGUOUS
    return isinstance(leaf, AnyLeaf) or any(value in _AMBIGUOUS for value in _allowed(leaf))


def _shapes_at(values: dict[Field, Any]) -> list[Shape]:
    return [shape for field in values for shape in field.shapes]
