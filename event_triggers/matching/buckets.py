"""The entries of an index that one look-up proposes, and finding those of them that hold."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any

from event_triggers.matching.anchors import Anchored, anchors_of, cost_of
from event_triggers.matching.fields import Columns, Field
from event_triggers.matching.leaves import AnyLeaf, Exactly, OneOf
from event_triggers.matching.reference import MISSING, fits_one
from event_triggers.matching.structure import Path
from event_triggers.matching.syntax import Alternative

__all__ = ["Bucket", "Entry", "Spread"]

_Rest = tuple[tuple[Path, AnyLeaf | Exactly | OneOf], ...]

_MOST_CHECKED = 8
"""So many entries are checked one by one; more are found by one of their leaves."""


class Entry:
    """One alternative in an index. Hashed by identity."""

    __slots__ = ("leaves", "rest", "structure", "token")

    def __init__(self, token: Hashable, alternative: Alternative, rest: Iterable[int]) -> None:
        self.token = token
        self.structure, self.leaves = alternative
        checked = [(self.structure.paths[number], self.leaves[number]) for number in rest]
        self.rest = _one_of_equals(tuple(checked)) if checked else ()
        """The leaves that are not proved by the look-up that leads here, and their paths."""

    def holds(self, document: dict[str, Any]) -> bool:
        """Whether the rest holds, when the document has no arrays at the leaves that are proved."""
        for path, leaf in self.rest:
            value: Any = document
            for name in path:
                if value.__class__ is not dict:
                    break
                value = value.get(name, MISSING)
            else:
                kind = value.__class__
                if value is not MISSING and kind is not dict and kind is not list:
                    if leaf.holds(value):
                        continue
                    return False
            if value.__class__ is list:
                return self.fits(document)
            if not leaf.absent:
                return False
        return True

    def fits(self, document: Mapping[str, Any]) -> bool:
        """Whether all of it holds, by the plain rules."""
        return fits_one(Alternative(self.structure, self.leaves), document)


@lru_cache(maxsize=4096)
def _one_of_equals(rest: _Rest) -> _Rest:
    """The same object for all entries that check the same: what many documents look at stays near in memory."""
    return rest


class Bucket:
    """The entries under one key of a shape, two or more."""

    __slots__ = ("_checked", "_plain", "_spread")

    def __init__(self) -> None:
        self._plain: dict[Entry, None] = {}
        self._checked: dict[Entry, None] = {}
        self._spread: Spread | None = None

    def add(self, entry: Entry, root: Field) -> None:
        """Keep an entry."""
        if not entry.rest:
            self._plain[entry] = None
        elif self._spread is not None:
            self._spread.add(entry)
        else:
            self._checked[entry] = None
            if len(self._checked) > _MOST_CHECKED:
                self._spread = Spread(root)
                for each in self._checked:
                    self._spread.add(each)
                self._checked = {}

    def remove(self, entry: Entry) -> bool:
        """Forget an entry.

        :returns: whether nothing is left.
        """
        if not entry.rest:
            del self._plain[entry]
        elif self._spread is not None:
            self._spread.remove(entry)
            if not self._spread:
                self._spread = None
        else:
            del self._checked[entry]
        return not self._plain and not self._checked and self._spread is None

    def collect(self, document: dict[str, Any], values: dict[Field, Any], found: list[Any]) -> None:
        """Put the tokens of the entries that hold into ``found``."""
        found += [entry.token for entry in self._plain]
        found += [entry.token for entry in self._checked if entry.holds(document)]
        if self._spread is not None:
            self._spread.collect(document, values, found)

    def proposed(self, columns: Columns) -> Iterator[Entry]:
        """The entries that might hold for some of these values."""
        yield from self._plain
        yield from self._checked
        if self._spread is not None:
            yield from self._spread.proposed(columns)


class Spread:
    """Entries that are found by one leaf of their rest each.

    :param root: of the fields that the index gathers; those of these leaves are gathered while they are here.
    """

    __slots__ = ("_absent", "_anchored", "_root")

    def __init__(self, root: Field) -> None:
        self._root = root
        self._anchored: dict[Field, Anchored[Entry]] = {}
        self._absent: dict[Field, dict[Entry, None]] = {}

    def __bool__(self) -> bool:
        return bool(self._anchored or self._absent)

    def add(self, entry: Entry) -> None:
        """Keep an entry that has a rest."""
        path, leaf = _best(entry)
        field = self._root.use(path)
        anchors = anchors_of(leaf)
        if anchors:
            anchored = self._anchored.get(field)
            if anchored is None:
                anchored = self._anchored[field] = Anchored()
            for anchor in anchors:
                anchored.add(anchor, entry)
        if leaf.absent:
            self._absent.setdefault(field, {})[entry] = None

    def remove(self, entry: Entry) -> None:
        """Forget an entry."""
        path, leaf = _best(entry)
        field = self._root.at(path)
        anchors = anchors_of(leaf)
        for anchor in anchors:
            self._anchored[field].remove(anchor, entry)
        if anchors and not self._anchored[field]:
            del self._anchored[field]
        if leaf.absent:
            del self._absent[field][entry]
            if not self._absent[field]:
                del self._absent[field]
        field.release()

    def collect(self, document: dict[str, Any], values: dict[Field, Any], found: list[Any]) -> None:
        """Put the tokens of the entries that hold into ``found``."""
        proposed: dict[Entry, None] = {}
        anchored = self._anchored
        for field in anchored if len(anchored) <= len(values) else values:
            if field in values and field in anchored:
                proposed.update(dict.fromkeys(anchored[field].find(values[field])))
        for field, entries in self._absent.items():
            if field not in values:
                proposed.update(entries)
        found += [entry.token for entry in proposed if entry.holds(document)]

    def proposed(self, columns: Columns) -> Iterator[Entry]:
        """The entries that might hold for some of these values."""
        anchored = self._anchored
        for field in anchored if len(anchored) <= len(columns) else columns:
            if field in columns and field in anchored:
                for value in columns[field].values():
                    yield from anchored[field].find(value)
        # A field that has values may be missing in the element that counts.
        for entries in self._absent.values():
            yield from entries


def _best(entry: Entry) -> tuple[Path, AnyLeaf | Exactly | OneOf]:
    return min(entry.rest, key=lambda each: cost_of(each[1]))
