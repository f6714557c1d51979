"""Reading a pattern: from nested mappings to alternatives of leaves, or an error that names the offending key.

A pattern becomes one or more *alternatives*. Each is a flat list of leaves with the path of each, all of which must
hold; the pattern holds when one alternative does. Only ``$or`` makes more than one.

Paths of fields of the body begin with ``"body"`` as soon as any field of the message around it is asked for
(``$message``); such a pattern is *about the message* and looks at an envelope, see :mod:`.envelope`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from event_triggers.errors import InvalidEventError
from event_triggers.matching.leaves import AnyLeaf, Exactly, OneOf
from event_triggers.matching.operands import COMPARISONS, OPERATORS, LeafReader, describe, pending
from event_triggers.matching.structure import Path, Structure, structure_of

__all__ = ["BODY", "MESSAGE", "READABLE", "Alternative", "Pattern", "check_pattern", "parse_pattern"]

MESSAGE = "$message"
"""The field of a pattern that stands for the message around the body."""
BODY = "body"
READABLE = "$readable"
"""In an envelope, whether there is a body to look into; no author can ask for it."""

_OR = "$or"
_MOST_ALTERNATIVES = 1000
_DEEPEST = 100
_OF_MESSAGE = ("key", "headers", "topic", "queue", "timestamp", "timestamp_seconds", BODY)

_Leaves = list[tuple[Path, "Exactly | OneOf | AnyLeaf"]]


class Alternative(NamedTuple):
    """Leaves that must all hold: ``leaves[i]`` at ``structure.paths[i]``."""

    structure: Structure
    leaves: tuple[Exactly | OneOf | AnyLeaf, ...]


class Pattern(NamedTuple):
    """A pattern that has been read: it holds when one of the alternatives does."""

    alternatives: tuple[Alternative, ...]
    about_message: bool


def check_pattern(pattern: object, path: str = "match", *, rendered: bool = False) -> None:
    """Refuse what is no pattern.

    :param path: how the error calls the pattern.
    :param rendered: whether templates and references have been replaced by what they stand for. If not, a string with a
        Jinja template and an object with a ``resolve`` method are let through wherever a value may stand.
    :raises InvalidEventError: naming the path of the offending key and what was expected there.
    """
    _Reader(rendered).pattern(pattern, path)


def parse_pattern(pattern: object, path: str = "match") -> Pattern:
    """Read a rendered pattern.

    :raises InvalidEventError: when it is none, naming the path of the offending key and what was expected there.
    """
    alternatives = _Reader(rendered=True).pattern(pattern, path)
    about_message = any(path[0] == MESSAGE for leaves in alternatives for path, _ in leaves)
    if about_message:
        alternatives = [_of_envelope(leaves) for leaves in alternatives]
    return Pattern(
        tuple(
            [
                Alternative(structure_of(tuple([path for path, _ in leaves])), tuple([leaf for _, leaf in leaves]))
                for leaves in alternatives
            ]
        ),
        about_message,
    )


def _of_envelope(leaves: _Leaves) -> _Leaves:
    moved: _Leaves = [(path[1:] if path[0] == MESSAGE else (BODY, *path), leaf) for path, leaf in leaves]
    if any(path[0] == BODY for path, _ in moved):
        moved.insert(0, ((READABLE,), Exactly(True)))
    return moved


class _Reader:
    """Reads one pattern."""

    def __init__(self, rendered: bool) -> None:
        self.rendered = rendered
        self.leaf = LeafReader(rendered)

    def pattern(self, pattern: object, at: str) -> list[_Leaves]:
        if not isinstance(pattern, Mapping):
            raise InvalidEventError(f"{at}: expected a mapping of fields to allowed values, got {describe(pattern)}")
        return self.fields(pattern, at, (), 0)

    def fields(self, node: Mapping[Any, Any], at: str, path: Path, depth: int) -> list[_Leaves]:
        if not node:
            raise InvalidEventError(f"{at}: an empty mapping says nothing; leave it out to take every message")
        if depth > _DEEPEST:
            raise InvalidEventError(f"{at}: a pattern may be nested {_DEEPEST} levels deep, not more")
        alternatives: list[_Leaves] = [[]]
        for field, value in node.items():
            if not isinstance(field, str):
                raise InvalidEventError(f"{at}: field names are strings, got {describe(field)}")
            ways = self.field(field, value, f"{at}[{field!r}]", path, depth)
            if len(alternatives) * len(ways) > _MOST_ALTERNATIVES:
                raise InvalidEventError(
                    f"{at}: its '$or' lists combine to {len(alternatives) * len(ways)} alternatives, and "
                    f"{_MOST_ALTERNATIVES} are allowed; use several events, or lists of values"
                )
            if len(ways) == 1:
                for leaves in alternatives:
                    leaves += ways[0]
            else:
                alternatives = [[*leaves, *more] for leaves in alternatives for more in ways]
        return alternatives

    def field(self, field: str, value: object, at: str, path: Path, depth: int) -> list[_Leaves]:
        if field == _OR:
            return self.either(value, at, path, depth)
        if not path and field == MESSAGE:
            return self.message(value, at, depth)
        if path == (MESSAGE,):
            if field not in _OF_MESSAGE:
                raise InvalidEventError(f"{at}: a message has {', '.join(_OF_MESSAGE)}; not {field!r}")
            if field == BODY:
                return self.inner(value, at, (), depth, "a mapping of the body's fields to allowed values")
        if value.__class__ is not list and isinstance(value, Mapping):
            _refuse_operator_outside_list(value, at)
            return self.fields(value, at, (*path, field), depth + 1)
        return [[((*path, field), self.leaf.leaf(value, at))]]

    def message(self, value: object, at: str, depth: int) -> list[_Leaves]:
        return self.inner(value, at, (MESSAGE,), depth, "a mapping of key, headers, topic, ... to allowed values")

    def inner(self, value: object, at: str, path: Path, depth: int, expected: str) -> list[_Leaves]:
        if isinstance(value, Mapping):
            return self.fields(value, at, path, depth + 1)
        if not self.rendered and pending(value):
            return [[]]
        raise InvalidEventError(f"{at}: expected {expected}, got {describe(value)}")

    def either(self, value: object, at: str, path: Path, depth: int) -> list[_Leaves]:
        if not self.rendered and pending(value):
            return [[]]
        if not isinstance(value, Sequence) or isinstance(value, (str, bytes)) or len(value) < 2:
            raise InvalidEventError(f"{at}: expected a list of two patterns or more, got {describe(value)}")
        ways: list[_Leaves] = []
        for place, way in enumerate(value):
            here = f"{at}[{place}]"
            if isinstance(way, Mapping):
                for field in way:
                    if field in OPERATORS:
                        raise InvalidEventError(
                            f"{here}[{field!r}]: expected a field, got an operator; operators stand in the list of a "
                            f"field, such as {{'field': [{{'prefix': 'a'}}, {{'suffix': 'b'}}]}}"
                        )
            ways += self.inner(way, here, path, depth, "a mapping of fields to allowed values")
        return ways


def _refuse_operator_outside_list(value: Mapping[Any, Any], at: str) -> None:
    """``{"date": {"prefix": "2026"}}`` would look for a field named ``prefix`` inside ``date``."""
    if len(value) != 1:
        return
    (name, operand), *_ = value.items()
    if name not in OPERATORS:
        return
    is_list = isinstance(operand, Sequence) and not isinstance(operand, (str, bytes))
    compares = is_list and len(operand) > 0 and isinstance(operand[0], str) and operand[0] in COMPARISONS
    if (not is_list and not isinstance(operand, Mapping)) or (name == "numeric" and compares):
        raise InvalidEventError(
            f"{at}[{name!r}]: an operator stands in a list, such as [{{{name!r}: ...}}]; for a field of that name, put "
            f"its allowed values into a list of their own, such as {{{name!r}: [{{'exactly': ...}}]}}"
        )
