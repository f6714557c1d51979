"""Event patterns: what a document must hold, said in data.

A pattern is a mapping in the form of `EventBridge event patterns`_: its leaves are lists of allowed values, its inner
nodes mirror the document. Here the leaves are exact values: strings, numbers, ``true``, ``false``, ``null``.

* A field of the pattern must be in the document and hold one of the allowed values; fields the pattern does not name do
  not matter. A scalar leaf is a list of one.
* Where the document has an array, one element must fit; all fields under one inner node must fit the *same* element.
* Numbers are compared as numbers (``1`` is ``1.0``), and are neither strings nor booleans.

:func:`matches` is the plain reading of these rules. :class:`PatternIndex` finds the patterns that a document matches
without trying them all: patterns are grouped by the paths they look at (their *shape*), and each group is a hash
table from the values at those paths to the patterns that allow them. A document costs one look-up per shape, however
many patterns there are; one with arrays costs more, but never more than looking at every pattern.

.. _EventBridge event patterns: https://docs.aws.amazon.com/eventbridge/latest/userguide/eb-event-patterns.html
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import product
from typing import Any, Generic, TypeVar

import msgspec

from event_triggers.errors import InvalidEventError

__all__ = ["PatternIndex", "check_pattern", "matches"]

Path = tuple[str, ...]
Token = TypeVar("Token", bound=Hashable)

_SCALARS = (str, int, float, bool, type(None))
_MOST_KEYS_PER_PATTERN = 64
"""A pattern that allows more combinations of values than this is hashed on fewer of its fields and then checked."""


def check_pattern(pattern: object, path: str = "match") -> None:
    """Refuse what is no pattern.

    :raises InvalidEventError: naming the path of the offending key and what was expected there.
    """
    if not isinstance(pattern, Mapping):
        raise InvalidEventError(f"{path}: expected a mapping of fields to allowed values, got {_describe(pattern)}")
    if not pattern:
        raise InvalidEventError(f"{path}: an empty mapping says nothing; leave it out to take every message")
    for field, node in pattern.items():
        if not isinstance(field, str):
            raise InvalidEventError(f"{path}: field names are strings, got {_describe(field)}")
        _check_node(node, f"{path}[{field!r}]")


def _check_node(node: object, path: str) -> None:
    if isinstance(node, Mapping):
        check_pattern(node, path)
    elif isinstance(node, Sequence) and not isinstance(node, (str, bytes)):
        if not node:
            raise InvalidEventError(f"{path}: an empty list allows nothing, so no message could ever match")
        for place, value in enumerate(node):
            if not _is_leaf_value(value):
                raise InvalidEventError(
                    f"{path}[{place}]: expected a string, a number, true, false or null, got {_describe(value)}"
                )
    elif not _is_leaf_value(node):
        raise InvalidEventError(f"{path}: expected a list of allowed values or a mapping, got {_describe(node)}")


def _is_leaf_value(value: object) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    # A value still to be rendered (an XComArg) is let through; it is a plain value when the wait begins.
    return isinstance(value, _SCALARS) or hasattr(value, "resolve")


def _describe(value: object) -> str:
    return f"{value!r} ({type(value).__name__})"


def matches(pattern: Mapping[str, Any], document: Mapping[str, Any] | bytes | str) -> bool:
    """Whether a document, decoded or as JSON text, holds what the pattern asks for.

    One that is nested deeper than can be looked into holds nothing.

    :raises InvalidEventError: when ``pattern`` is no pattern.
    """
    check_pattern(pattern)
    if isinstance(document, (bytes, str)):
        try:
            document = msgspec.json.decode(document)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return False
    return _fits_if_looked_into(pattern, document)


def _fits_if_looked_into(pattern: Mapping[str, Any], document: Any) -> bool:
    try:
        return _fits(pattern, document)
    except RecursionError:
        return False


def _fits(pattern: Mapping[str, Any], value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(field in value and _fits_node(node, value[field]) for field, node in pattern.items())
    if isinstance(value, list):
        return any(_fits(pattern, element) for element in value)
    return False


def _fits_node(node: Any, value: Any) -> bool:
    if isinstance(node, Mapping):
        return _fits(node, value)
    allowed = {_canonical(item) for item in _as_list(node)}
    return any(_canonical(scalar) in allowed for scalar in _scalars(value))


def _as_list(node: Any) -> Sequence[Any]:
    return node if isinstance(node, Sequence) and not isinstance(node, (str, bytes)) else (node,)


def _scalars(value: Any) -> Iterator[Any]:
    """The value itself, or the scalar elements of an array, however deeply arrays are nested."""
    if isinstance(value, list):
        for element in value:
            yield from _scalars(element)
    elif not isinstance(value, Mapping):
        yield value


def _canonical(value: Any) -> Hashable:
    """A hashable that is equal for equal JSON values only: Python's ``True == 1`` must not hold here."""
    if value is True:
        return ("true",)
    if value is False:
        return ("false",)
    return value  # type: ignore[no-any-return]


def _leaves(pattern: Mapping[str, Any], prefix: Path = ()) -> Iterator[tuple[Path, tuple[Hashable, ...]]]:
    for field, node in pattern.items():
        path = (*prefix, field)
        if isinstance(node, Mapping):
            yield from _leaves(node, path)
        else:
            yield path, tuple(dict.fromkeys(_canonical(item) for item in _as_list(node)))


def _values_at(document: Any, path: Path) -> tuple[Hashable, ...]:
    """Every scalar that the document has at a path, through arrays too; empty when it has none."""
    value = document
    for place, field in enumerate(path):
        if isinstance(value, list):
            return tuple(found for element in value for found in _values_at(element, path[place:]))
        if not isinstance(value, Mapping) or field not in value:
            return ()
        value = value[field]
    if isinstance(value, (list, Mapping)):
        return tuple(_canonical(scalar) for scalar in _scalars(value))
    return (_canonical(value),)


class _Shape(Generic[Token]):
    """All patterns that are hashed on the same paths."""

    __slots__ = ("paths", "table")

    def __init__(self, paths: tuple[Path, ...]) -> None:
        self.paths = paths
        # A dict instead of a set keeps the order in which patterns were added.
        self.table: dict[tuple[Hashable, ...], dict[Token, None]] = {}

    def candidates(self, document: Any) -> Iterator[Token]:
        columns: list[frozenset[Hashable]] = []
        for path in self.paths:
            values = frozenset(_values_at(document, path))
            if not values:
                return
            columns.append(values)
        if math.prod(map(len, columns)) <= len(self.table):
            for key in product(*columns):
                yield from self.table.get(key, ())
        else:
            # Long arrays at several paths have more combinations than there are patterns: look at it from that side.
            for key, tokens in self.table.items():
                if all(map(frozenset.__contains__, columns, key)):
                    yield from tokens


class PatternIndex(Generic[Token]):
    """Finds the tokens of all patterns that a document matches.

    Adding, removing and looking up cost nothing that grows with the number of patterns. Not safe for threads.
    """

    def __init__(self) -> None:
        self._patterns: dict[Token, tuple[Mapping[str, Any], _Shape[Token], tuple[tuple[Hashable, ...], ...]]] = {}
        self._shapes: dict[tuple[Path, ...], _Shape[Token]] = {}

    def __len__(self) -> int:
        return len(self._patterns)

    def __contains__(self, token: Token) -> bool:
        return token in self._patterns

    def add(self, pattern: Mapping[str, Any], token: Token) -> None:
        """Look for ``pattern`` from now on, under the name ``token``.

        :raises InvalidEventError: when it is no pattern.
        :raises KeyError: when the token is in use.
        """
        if token in self._patterns:
            raise KeyError(token)
        check_pattern(pattern)
        paths, keys = _hash_keys(pattern)
        shape = self._shapes.get(paths)
        if shape is None:
            shape = self._shapes[paths] = _Shape(paths)
        for key in keys:
            shape.table.setdefault(key, {})[token] = None
        self._patterns[token] = (pattern, shape, keys)

    def remove(self, token: Token) -> None:
        """Forget the pattern of this token.

        :raises KeyError: when there is none.
        """
        _, shape, keys = self._patterns.pop(token)
        for key in keys:
            bucket = shape.table[key]
            del bucket[token]
            if not bucket:
                del shape.table[key]
        if not shape.table:
            del self._shapes[shape.paths]

    def matching(self, document: Any) -> list[Token]:
        """The tokens of all patterns that this decoded document matches, each once."""
        proposed: dict[Token, None] = {}
        for shape in self._shapes.values():
            # A sender may nest a document deeper than Python can follow; that must not disturb the others.
            with suppress(RecursionError):
                proposed.update(dict.fromkeys(shape.candidates(document)))
        # The hash only proposes: it looks at each path alone, so arrays still need the plain rules.
        return [token for token in proposed if _fits_if_looked_into(self._patterns[token][0], document)]


def _hash_keys(pattern: Mapping[str, Any]) -> tuple[tuple[Path, ...], tuple[tuple[Hashable, ...], ...]]:
    """The paths to hash a pattern on, and the keys under which it is found."""
    chosen: list[tuple[Path, tuple[Hashable, ...]]] = []
    combinations = 1
    # Few allowed values first: they tell patterns apart best. At least one field is always hashed.
    for path, allowed in sorted(_leaves(pattern), key=lambda leaf: (len(leaf[1]), leaf[0])):
        if chosen and combinations * len(allowed) > _MOST_KEYS_PER_PATTERN:
            break
        chosen.append((path, allowed))
        combinations *= len(allowed)
    chosen.sort()
    return tuple(path for path, _ in chosen), tuple(product(*(allowed for _, allowed in chosen)))
