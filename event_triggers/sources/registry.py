"""The sources that installed packages register, by the names of their entry points.

A package makes a source known with an entry point of the group ``event_triggers.sources``: its name is the source's
``kind``, its value the class. Ours are registered the same way. Nothing is imported until it is asked for.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass, replace
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec

from event_triggers.errors import InvalidEventError
from event_triggers.sources.base import Source

__all__ = ["GROUP", "Registered", "find", "registered"]

GROUP = "event_triggers.sources"


@dataclass(frozen=True)
class Registered:
    """An entry point of the group.

    :param kind: its name.
    :param path: its value, ``"module:Class"``.
    :param distribution: the package that registers it, with its version.
    :param source: the class; ``None`` when there is an error.
    :param error: why the class cannot be had, and what to do.
    """

    kind: str
    path: str
    distribution: str
    source: type[Source] | None = None
    error: str | None = None

    @property
    def missing(self) -> str | None:
        """The client's Python package, where that is not installed; its source can be declared, and not opened."""
        client = self.source.client if self.source is not None else ""
        return client if client and find_spec(client) is None else None


def registered() -> list[Registered]:
    """Everything that is registered, by kind. Broken entry points and names given twice carry their error."""
    points = _points()
    return [_loaded(point, [one for one in points if one.name == point.name]) for point in points]


def find(kind: str) -> type[Source]:
    """The class of a kind of source: ``find("kafka")``.

    :raises InvalidEventError: when none is registered by this name, several are, or it cannot be imported.
    """
    points = _points()
    named = [point for point in points if point.name == kind]
    if not named:
        known = sorted({point.name for point in points})
        close = difflib.get_close_matches(kind, known, 1)
        meant = f"; did you mean {close[0]!r}?" if close else "."
        raise InvalidEventError(
            f"no source is registered by the name {kind!r}{meant} There are: {', '.join(known) or 'none'}. A package "
            f"registers one with an entry point of the group {GROUP!r}; install it here, and where the triggerer runs"
        )
    found = _loaded(named[0], named)
    if found.source is None:
        raise InvalidEventError(str(found.error))
    return found.source


def _points() -> list[EntryPoint]:
    # An editable install and its copy on the path tell the same twice.
    unique = {(point.name, point.value): point for point in entry_points(group=GROUP)}
    return [unique[key] for key in sorted(unique)]


def _loaded(point: EntryPoint, named: list[EntryPoint]) -> Registered:
    found = Registered(point.name, point.value, _distribution(point))
    error = _conflict(named)
    if error is not None:
        return replace(found, error=error)
    try:
        source: object = point.load()
    except Exception as broken:  # whatever somebody else's module raises when it is imported
        why = f"{type(broken).__name__}: {broken}"
        return replace(found, error=f"{_where(point)} cannot be imported: {why}")
    if isinstance(source, type) and issubclass(source, Source) and getattr(source, "kind", None) == point.name:
        return replace(found, source=source)
    return replace(found, error=_no_source(point, source))


def _conflict(named: list[EntryPoint]) -> str | None:
    if len(named) == 1:
        return None
    who = " and ".join(f"{_distribution(point)} ({point.value})" for point in named)
    return f"the source name {named[0].name!r} is registered more than once, by {who}; uninstall one of them"


def _no_source(point: EntryPoint, source: object) -> str:
    if not (isinstance(source, type) and issubclass(source, Source)):
        return f"{_where(point)} is not a subclass of event_triggers.Source"
    kind = getattr(source, "kind", None)
    return f"{_where(point)} has the kind {kind!r}; name the entry point like the kind"


def _where(point: EntryPoint) -> str:
    return f"source {point.name!r} ({point.value}, of {_distribution(point)})"


def _distribution(point: EntryPoint) -> str:
    return "an unknown package" if point.dist is None else f"{point.dist.name} {point.dist.version}"
