"""The value of a message on which the messages of a group must agree."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from event_triggers.errors import EventTriggersError
from event_triggers.message import UNDECODABLE, Message

__all__ = ["NoValueError", "same", "value_of"]

_BEYOND_THE_BODY = "$message"


class NoValueError(EventTriggersError):
    """A message has no value to agree on. The text says why, as the rest of a sentence about it."""


def value_of(message: Message, path: str) -> str | int | float | bool:
    """The string, number or boolean at a dotted path of the body.

    ``$message.key`` is the message's key, and ``$message.headers.tenant`` one of its headers.

    :raises NoValueError: when there is none.
    """
    first, _, rest = path.partition(".")
    if first == _BEYOND_THE_BODY:
        return _beyond_the_body(message, rest)
    value: Any = message.document
    if value is UNDECODABLE:
        raise NoValueError("is not JSON")
    for field in path.split("."):
        if not isinstance(value, Mapping) or field not in value:
            raise NoValueError(f"has no {path!r}")
        value = value[field]
    if not isinstance(value, (str, int, float, bool)):
        raise NoValueError(
            f"holds a {type(value).__name__} at {path!r}, where a string, a number or a boolean is needed"
        )
    return value


def _beyond_the_body(message: Message, path: str) -> str:
    if path == "key":
        raw = message.key
    else:
        name = path.partition(".")[2] if path.startswith("headers.") else None
        raw = next((value for header, value in message.headers if header == name), None)
    if raw is None:
        raise NoValueError(f"has no {path!r}")
    return raw.decode("utf-8", errors="backslashreplace")


def same(value: Any) -> tuple[str, Any]:
    """A hashable that is equal for values that agree. Numbers are compared as numbers, never to strings or booleans."""
    if isinstance(value, bool):
        return ("boolean", value)
    return ("number" if isinstance(value, (int, float)) else "string", value)
