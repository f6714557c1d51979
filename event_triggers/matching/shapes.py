"""The entries that are hashed on the same fields, by the values that they allow there."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Iterator
from itertools import product
from typing import Any

from event_triggers.matching.fields import Columns, Field

__all__ = ["Shape"]

_REVIEWS = (32, 256, 1024)
"""At so many keys it is seen anew which field to begin with."""


class Shape:
    """Tables from the values at some fields to what is kept for them.

    The value at one field leads to a table by the values at the others. It begins with the field that has fewest
    different values: what most documents need of that is in a near place of memory, so a look-up goes to far places
    once. (Measured against one table by tuples: half the time, of 100,000 keys.)

    :param fields: what entries are hashed on, the oldest first.
    """

    __slots__ = (
        "_reviewed",
        "_size",
        "fields",
        "head",
        "head_name",
        "last",
        "place",
        "simple",
        "table",
        "tail",
        "tail_name",
        "tails",
    )

    def __init__(self, fields: tuple[Field, ...]) -> None:
        self.fields = fields
        self.last = fields[-1]
        self.simple = len(fields) <= 2 and all(field.at_top for field in fields)
        """Whether it is about one or two fields at the top of the document."""
        self.table: dict[Hashable, Any] = {}
        """With one field what is kept, with more the tables by the values at the others."""
        self._size = 0
        self._reviewed = 0 if len(fields) > 1 else len(_REVIEWS)
        self._begin_with(0)

    def _begin_with(self, place: int) -> None:
        self.place = place
        self.head = self.fields[place]
        others = self.fields[:place] + self.fields[place + 1 :]
        self.tail = others[0] if len(others) == 1 else None
        """The other field of two."""
        self.tails = others if len(others) > 1 else None
        """The other fields of more than two."""
        self.head_name = self.head.name
        self.tail_name = None if self.tail is None else self.tail.name

    def __bool__(self) -> bool:
        return bool(self.table)

    def put(self, allowed: list[tuple[Any, ...]], change: Callable[[Any], Any]) -> None:
        """Change what is kept under each combination of values.

        :param allowed: the allowed values, in the order of ``fields``.
        :param change: what is kept, or ``None``, to what is kept from now on, or ``None``.
        """
        # True and 1 are one key.
        for key in dict.fromkeys(product(*allowed)):
            head, inner = self._split(key)
            table = self.table if inner is None else self.table.setdefault(head, {})
            step = head if inner is None else inner[0]
            known = table.get(step)
            kept = change(known)
            if kept is not None:
                table[step] = kept
                self._size += known is None
                continue
            del table[step]
            self._size -= 1
            if inner is not None and not table:
                del self.table[head]
        if self._reviewed < len(_REVIEWS) and self._size >= _REVIEWS[self._reviewed]:
            self._reviewed += 1
            self._review()

    def get(self, values: dict[Field, Any]) -> Any:
        """What is kept for these values; a field that has none counts as ``None``."""
        get = values.get
        known = self.table.get(get(self.head))
        if known is None:
            return None
        if self.tail is not None:
            return known.get(get(self.tail))
        if self.tails is not None:
            return known.get(tuple(map(get, self.tails)))
        return known

    def met(self, columns: Columns) -> Iterator[Any]:
        """What is kept for any combination of these values."""
        mine = [set(columns[field].values()) for field in self.fields if field in columns]
        if len(mine) < len(self.fields):
            return
        heads = mine.pop(self.place)
        table = self.table
        for known in [table[head] for head in heads if head in table]:
            if not mine:
                yield known
            elif math.prod(map(len, mine)) <= len(known):
                yield from (known[key] for key in (product(*mine) if self.tails else mine[0]) if key in known)
            else:
                # Long arrays at several fields have more combinations than there are keys: look from that side.
                yield from (kept for key, kept in known.items() if self._among(key, mine))

    def _among(self, inner: Any, mine: list[set[Any]]) -> bool:
        keys: Iterable[Any] = inner if self.tails is not None else (inner,)
        return all(value in values for value, values in zip(keys, mine, strict=True))

    def _split(self, key: tuple[Any, ...]) -> tuple[Any, tuple[Any] | None]:
        """The first step of a key, and the second, if there is one."""
        if len(key) == 1:
            return key[0], None
        place = self.place
        others = key[:place] + key[place + 1 :]
        return key[place], (others[0] if len(others) == 1 else others,)

    def _review(self) -> None:
        items = list(self._items())
        different = [len({key[place] for key, _ in items}) for place in range(len(self.fields))]
        best = min(range(len(different)), key=different.__getitem__)
        if best == self.place:
            return
        self.table.clear()
        self._begin_with(best)
        for key, kept in items:
            head, inner = self._split(key)
            assert inner is not None  # noqa: S101  for mypy
            self.table.setdefault(head, {})[inner[0]] = kept

    def _items(self) -> Iterator[tuple[tuple[Any, ...], Any]]:
        place = self.place
        for head, table in self.table.items():
            for inner, kept in table.items():
                others = inner if self.tails is not None else (inner,)
                yield (*others[:place], head, *others[place:]), kept
