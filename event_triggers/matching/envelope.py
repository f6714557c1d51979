"""A message as a document: what patterns with ``$message`` look at.

======================  =====================================================================================
``key``                 the key as text; ``{"base64": ...}`` where it is not UTF-8; missing where there is none
``headers``             name to value, or to a list of values where a name comes twice; values as the key
``topic``, ``queue``    where the message came from; two words for the same
``timestamp``           ISO 8601 in UTC with milliseconds: ``2026-11-22T10:15:30.250Z``
``timestamp_seconds``   the same as seconds since 1970
``body``                the decoded body, where it is a JSON object
======================  =====================================================================================

A body that is an array of objects makes as many envelopes: it counts as many documents everywhere. Where the body
cannot be looked into, an alternative that asks for any field of it does not hold, not even for one that is missing.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping
from datetime import timezone
from typing import Any

from event_triggers.matching.reference import fits_one, objects
from event_triggers.matching.structure import structure_of
from event_triggers.matching.syntax import BODY, READABLE, Alternative, Pattern
from event_triggers.message import UNDECODABLE, Message

__all__ = ["documents_for", "envelopes", "hinges_on_body"]


def documents_for(pattern: Pattern, document: Any) -> list[dict[str, Any]]:
    """The objects that this pattern is compared with.

    :param document: a message, or a decoded body; the latter has no key, headers, ... around it.
    """
    if pattern.about_message:
        return envelopes(document)
    if isinstance(document, Message):
        document = document.document
    return list(objects(document))


def envelopes(document: Any) -> list[dict[str, Any]]:
    """A message, or a body alone, as documents for patterns about the message."""
    around: dict[str, Any] = {}
    if isinstance(document, Message):
        around = _around(document)
        document = document.document
    bodies = [] if document is UNDECODABLE else list(objects(document))
    return [{**around, BODY: body, READABLE: True} for body in bodies] or [around]


def hinges_on_body(alternatives: Iterable[Alternative], message: Message) -> bool:
    """Whether one of these, of a pattern about the message, has everything but the body speak for this message.

    Then one has to look into the body to tell.
    """
    around = _around(message)
    return any(_without_body(alternative, around) for alternative in alternatives)


def _without_body(alternative: Alternative, around: Mapping[str, Any]) -> bool:
    pairs = list(zip(alternative.structure.paths, alternative.leaves, strict=True))
    others = [(path, leaf) for path, leaf in pairs if path[0] not in (BODY, READABLE)]
    if len(others) == len(pairs):
        return False
    rest = Alternative(structure_of(tuple(path for path, _ in others)), tuple(leaf for _, leaf in others))
    return not others or fits_one(rest, around)


def _around(message: Message) -> dict[str, Any]:
    headers: dict[str, Any] = {}
    for name, value in message.headers:
        headers.setdefault(name, []).append(_text(value))
    around: dict[str, Any] = {
        "headers": {name: values if len(values) > 1 else values[0] for name, values in headers.items()},
        "topic": message.stream,
        "queue": message.stream,
    }
    if message.key is not None:
        around["key"] = _text(message.key)
    if message.timestamp is not None:
        moment = message.timestamp.astimezone(timezone.utc)
        around["timestamp"] = moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
        around["timestamp_seconds"] = moment.timestamp()
    return around


def _text(value: bytes) -> Any:
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(value).decode("ascii")}
