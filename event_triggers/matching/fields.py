"""The fields that an index looks at, as a tree, and gathering their values from a document."""

from __future__ import annotations

from itertools import count
from typing import Any

from event_triggers.matching.reference import MISSING, elements, scalars
from event_triggers.matching.structure import Path

__all__ = ["Columns", "Field", "gather", "gather_all", "named"]


class Field:
    """A path of the document that somebody asks for, or one on the way to it. Hashed by identity."""

    __slots__ = ("age", "below", "name", "over", "shapes", "uses")
    _ages = count()

    def __init__(self, name: str = "", over: Field | None = None) -> None:
        self.name = name
        self.over = over
        self.below: dict[str, Field] = {}
        self.uses = 0
        self.age = next(self._ages)
        """The higher, the later somebody asked for it first."""
        self.shapes: dict[Any, None] = {}
        """What an index looks up when this field is there."""

    @property
    def at_top(self) -> bool:
        """Whether it is a field of the document itself."""
        return self.over is not None and self.over.over is None

    def use(self, path: Path) -> Field:
        """The field at a path from here, asked for once more."""
        field = self
        for name in path:
            inner = field.below.get(name)
            if inner is None:
                inner = field.below[name] = Field(name, field)
            field = inner
            field.uses += 1
        return field

    def at(self, path: Path) -> Field:
        """The field at a path from here, which is in use."""
        field = self
        for name in path:
            field = field.below[name]
        return field

    def release(self) -> None:
        """Asked for once less; forgotten with the last."""
        field = self
        while field.over is not None:
            field.uses -= 1
            if not field.uses:
                del field.over.below[field.name]
            field = field.over


Columns = dict[Field, dict[tuple[bool, Any], Any]]
"""The values at each field, each once; ``True`` and ``1`` are two."""


def gather(field: Field, document: dict[str, Any], values: dict[Field, Any]) -> bool:
    """Put the scalars at the fields below into ``values``.

    :returns: whether there is an array at one of them, or on the way; then the values are not complete.
    """
    below = field.below
    for name, inner in (below if len(below) <= len(document) else named(below, document)).items():
        value = document.get(name, MISSING)
        kind = value.__class__
        if kind is dict:
            if inner.below and gather(inner, value, values):
                return True
        elif kind is list:
            return True
        elif value is not MISSING:
            values[inner] = value
    return False


def named(below: dict[str, Field], document: dict[str, Any]) -> dict[str, Field]:
    """Those of the fields that a document has; for when it has fewer fields than are asked for."""
    return {name: below[name] for name in document if name in below}


def gather_all(field: Field, document: dict[str, Any], columns: Columns) -> None:
    """Put all scalars at the fields below into ``columns``, through arrays, each once."""
    below = field.below
    names = below if len(below) <= len(document) else document
    for name in names:
        inner = below.get(name)
        if inner is None or name not in document:
            continue
        value = document[name]
        found = list(scalars(value))
        if found:
            columns.setdefault(inner, {}).update({(one.__class__ is bool, one): one for one in found})
        if inner.below:
            for one in elements(value) if isinstance(value, list) else (value,):
                if isinstance(one, dict):
                    gather_all(inner, one, columns)
