"""``python -m event_triggers sources [NAME]``: which kinds of sources are here, and whether they can be used."""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Iterator

from event_triggers.errors import InvalidEventError
from event_triggers.sources.base import Source
from event_triggers.sources.registry import Registered, find, registered

__all__ = ["HELP", "add_arguments", "run"]

HELP = "List the sources that are installed here, ours and those of other packages, and what they need."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("name", nargs="?", metavar="NAME", help="only this one, with all that it takes")


def run(arguments: argparse.Namespace) -> int:
    """Print them; 0 when each can be used, 1 when one cannot.

    :raises EventTriggersError: when there is none of that name.
    """
    found = registered()
    if arguments.name is not None:
        found = [one for one in found if one.kind == arguments.name]
        if not found:
            find(arguments.name)  # says what there is
            raise InvalidEventError(f"no source is registered by the name {arguments.name!r}")
    for one in found:
        print(_line(one))
        for text in _details(one) if arguments.name is not None else ():
            print(f"  {text}")
    return 0 if all(one.error is None and one.missing is None for one in found) else 1


def _line(one: Registered) -> str:
    if one.source is None:
        return f"{one.kind}: BROKEN, {one.error}"
    kind = (
        "log"
        if one.source.replayable is True
        else "queue, a session for each group"
        if one.source.private is True
        else "queue"
    )
    connection = f"connection type {one.source.conn_type}" if one.source.conn_type else "no connection"
    return f"{one.kind}: {one.source.__name__} of {one.distribution}, {kind}, {connection}, {_readiness(one)}"


def _readiness(one: Registered) -> str:
    if one.missing is None or one.source is None:
        return "ready"
    how = f": pip install '{one.source.install}'" if one.source.install else ""
    return f"MISSING Python package {one.missing}{how}"


def _details(one: Registered) -> Iterator[str]:
    if one.source is None:
        return
    yield f"from {one.path.replace(':', ' import ')}"
    yield from (line.strip() for line in _summary(one.source).splitlines() if line.strip())


def _summary(source: type[Source]) -> str:
    return f"{(source.__doc__ or '').partition(':param')[0]}\n{source.__name__}{inspect.signature(source)}"
