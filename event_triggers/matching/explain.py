"""Why a document does not match: the nearest reason, for people, and how near it was, for ranking.

Ranking comes first and is cheap, for whoever waits in vain compares many documents; only the nearest is put into words.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from event_triggers.matching.decoding import decoded
from event_triggers.matching.envelope import documents_for
from event_triggers.matching.leaves import Leaf, literal
from event_triggers.matching.reference import MISSING, elements, fits_one, is_object, scalars
from event_triggers.matching.structure import Path
from event_triggers.matching.syntax import READABLE, Alternative, Pattern, parse_pattern
from event_triggers.message import UNDECODABLE, Message
from event_triggers.text import shown

__all__ = ["Distance", "Mismatch", "distance", "distances", "explain"]

Distance = tuple[int, int]
"""How far a document is from matching: how many leaves do not hold; among equals, minus how many do."""

_VALUES_SHOWN = 3


class Mismatch(NamedTuple):
    """What kept a document from matching: the first leaf that does not hold, in the alternative that came nearest.

    Its ``str`` is one printable line, such as ``date: got '2026-11-21', wanted '2026-11-22'``.
    """

    holding: int
    """How many leaves hold."""
    leaves: int
    """Of how many."""
    field: str
    """The field, its names joined by dots; empty when the document as a whole cannot be looked into."""
    got: str
    """What the document has there; short, and safe to log."""
    wanted: str
    """What the pattern asks for."""

    @property
    def missing(self) -> int:
        """How many leaves do not hold; the lower, the nearer. Zero when each holds, but not for the same element."""
        return self.leaves - self.holding

    def __str__(self) -> str:
        if not self.field:
            return f"{self.got}, wanted {self.wanted}"
        return f"{self.field}: {self.got}, wanted {self.wanted}"


def explain(
    pattern: Mapping[str, Any] | Pattern, document: Mapping[str, Any] | bytes | str | Message
) -> Mismatch | None:
    """Say which field kept a document from matching.

    :param document: as for :func:`~event_triggers.matching.matches`.
    :returns: ``None`` exactly when the document matches.
    :raises InvalidEventError: when ``pattern`` is no pattern.
    """
    parsed = pattern if isinstance(pattern, Pattern) else parse_pattern(pattern)
    body = decoded(document)
    nearest: tuple[Distance, Alternative, Mapping[str, Any]] | None = None
    for one in documents_for(parsed, body):
        for alternative in parsed.alternatives:
            far = _distance(alternative, one)
            if far is None:
                return None
            if nearest is None or far < nearest[0]:
                nearest = far, alternative, one
    return _unreadable(parsed, body) if nearest is None else _mismatch(*nearest[1:])


def distance(pattern: Pattern, document: Mapping[str, Any] | bytes | str | Message) -> Distance | None:
    """Say how far a document is from matching, as :func:`explain` would find it, without words.

    :returns: ``None`` exactly when the document matches.
    """
    nearest: Distance | None = None
    body = document.document if isinstance(document, Message) else decoded(document)
    plain = body.__class__ is dict and not pattern.about_message
    for one in (body,) if plain else documents_for(pattern, document):
        for alternative in pattern.alternatives:
            far = _distance(alternative, one)
            if far is None:
                return None
            if nearest is None or far < nearest:
                nearest = far
    return nearest or (_fewest_leaves(pattern), 0)


def distances(pattern: Pattern, messages: Iterable[Message]) -> Iterator[Distance | None]:
    """Say of each message how far it is from matching, as :func:`distance` does.

    A pattern that asks for fields at the top only, as most do, costs a look at each of them.
    """
    asked = _at_the_top(pattern)
    for message in messages:
        far = _NOT_KNOWN if asked is None else _distance_at_the_top(asked, message.document)
        yield distance(pattern, message) if far is _NOT_KNOWN else far


_Asked = Sequence[tuple[str, Callable[[Any], bool], bool]]
"""Field, what must hold for its value, and whether it may be missing."""
_NOT_KNOWN: Any = object()


def _at_the_top(pattern: Pattern) -> _Asked | None:
    """What is asked, when all of it is about fields of the document itself."""
    if pattern.about_message or len(pattern.alternatives) > 1:
        return None
    (alternative,) = pattern.alternatives
    paths, leaves = alternative.structure.paths, alternative.leaves
    if any(len(path) > 1 for path in paths):
        return None
    return [(name, leaf.holds, leaf.absent) for (name,), leaf in zip(paths, leaves, strict=True)]


def _distance_at_the_top(asked: _Asked, document: Any) -> Any:
    """The distance, or ``_NOT_KNOWN`` where it takes more than a look at scalars."""
    if document.__class__ is not dict:
        return _NOT_KNOWN
    value_at = document.get
    holding = 0
    for name, holds, may_be_missing in asked:
        value = value_at(name, MISSING)
        if value is MISSING:
            holding += may_be_missing
        elif value.__class__ is list or value.__class__ is dict:
            return _NOT_KNOWN
        elif holds(value):
            holding += 1
    missing = len(asked) - holding
    return (missing, -holding) if missing else None


def _distance(alternative: Alternative, document: Mapping[str, Any]) -> Distance | None:
    leaves, holding, excluded = alternative.leaves, 0, False
    for leaf, path in zip(leaves, alternative.structure.paths, strict=True):
        if _holds(leaf, document, path):
            holding += 1
        elif not leaf.absent:
            excluded = True  # a leaf that holds nowhere, and must: so the whole cannot
    if not excluded and fits_one(alternative, document):
        return None
    return len(leaves) - holding, -holding


def _fewest_leaves(pattern: Pattern) -> int:
    return min(len(one.leaves) for one in pattern.alternatives)


def _unreadable(pattern: Pattern, body: Any) -> Mismatch:
    if isinstance(body, Message):
        body = body.document
    got = "the body is not JSON" if body is UNDECODABLE else f"the body is {_kind(body)}"
    return Mismatch(0, _fewest_leaves(pattern), "", got, "a JSON object")


def _kind(body: Any) -> str:
    return "an array without objects" if isinstance(body, list) else literal(body)


def _mismatch(alternative: Alternative, document: Mapping[str, Any]) -> Mismatch:
    paths, leaves = alternative.structure.paths, alternative.leaves
    failing = [number for number, path in enumerate(paths) if not _holds(leaves[number], document, path)]
    holding = len(leaves) - len(failing)
    if not failing:
        return Mismatch(holding, len(leaves), _common(paths), "no single element has it all", _all(paths, leaves))
    path, leaf = paths[failing[0]], leaves[failing[0]]
    if path == (READABLE,):
        return Mismatch(holding, len(leaves), "body", "not a JSON object", "one")
    return Mismatch(holding, len(leaves), _named(path), _got(document, path), shown(str(leaf), 400))


def _holds(leaf: Leaf, document: Any, path: Path) -> bool:
    value = document
    for name in path:
        if value.__class__ is not dict:
            return _holds_somewhere(leaf, document, path)
        value = value.get(name, MISSING)
    if value is MISSING:
        return leaf.absent
    if value.__class__ is list or value.__class__ is dict:
        return _holds_somewhere(leaf, document, path)
    return leaf.holds(value)


def _holds_somewhere(leaf: Leaf, document: Any, path: Path) -> bool:
    found = False
    for scalar in _scalars_at(document, path):
        if leaf.holds(scalar):
            return True
        found = True
    return leaf.absent and not found


def _values_at(document: Any, path: Path) -> list[Any]:
    values = [document]
    for name in path:
        owners = (one for value in values for one in (elements(value) if isinstance(value, list) else (value,)))
        values = [owner[name] for owner in owners if is_object(owner) and name in owner]
    return values


def _scalars_at(document: Any, path: Path) -> list[Any]:
    return [scalar for value in _values_at(document, path) for scalar in scalars(value)]


def _got(document: Any, path: Path) -> str:
    values = _values_at(document, path)
    if not values:
        return "missing"
    found = [scalar for value in values for scalar in scalars(value)]
    if not found:
        return "got an object" if any(is_object(value) for value in values) else "got an empty array"
    more = len(found) - _VALUES_SHOWN
    return "got " + ", ".join(map(literal, found[:_VALUES_SHOWN])) + (f" and {more} more" if more > 0 else "")


def _named(path: Path) -> str:
    return shown(".".join(path), 200)


def _common(paths: tuple[Path, ...]) -> str:
    common: list[str] = []
    for names in zip(*paths, strict=False):
        if len(set(names)) > 1:
            break
        common.append(names[0])
    return _named(tuple(common)) or "its arrays"


def _all(paths: tuple[Path, ...], leaves: tuple[Leaf, ...]) -> str:
    asked = (f"{_named(path)} {leaf}" for path, leaf in zip(paths, leaves, strict=True) if path != (READABLE,))
    return shown(" and ".join(asked), 400)
