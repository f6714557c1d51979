"""The messages of a test, as one list: what is sent, where, and when."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import msgspec

from event_triggers.clock import parse_datetime
from event_triggers.offline.lines import Line, OfflineError, read_line

__all__ = ["Sent", "lines_of"]


@dataclass(frozen=True, kw_only=True)
class Sent:
    """One message of a test.

    It comes to every source of the group that agrees with what is said of it: ``Sent(body=...)`` alone to all of them.

    :param body: bytes as they are, a string as text, anything else as JSON.
    :param stream: the topic, queue or channel to which it was sent.
    :param source: the kind of the source (``"kafka"``, ``"sqs"``, ``"mqtt"``, your own).
    :param event: the name of an event: the message comes to that event's source, whatever its stream is called.
    :param key: of a Kafka message.
    :param headers: names and values.
    :param timestamp: when its broker stamped it: an aware datetime, or ISO 8601. The clock is turned on to it.
    :param after: instead of ``timestamp``: how long after the beginning of the run it comes, in seconds or as a
        timedelta.
    """

    body: Any
    stream: str | None = None
    source: str | None = None
    event: str | None = None
    key: str | bytes | None = None
    headers: Mapping[str, str | bytes] | None = None
    timestamp: datetime | str | None = None
    after: timedelta | float | None = None


def lines_of(messages: Iterable[Any], begin: datetime) -> list[Line]:
    """The messages of a test in the form in which a file of messages is read.

    :param messages: each a :class:`Sent`; or, as in such a file, an object that has ``body`` or ``text`` and describes
        the message, or the body alone.
    :param begin: when the run begins.
    :raises OfflineError: naming the message that is none.
    """
    return [_line(number, message, begin) for number, message in enumerate(messages, start=1)]


def _line(number: int, message: Any, begin: datetime) -> Line:
    where = f"message {number}"
    if not isinstance(message, Sent):
        return read_line(where, number, _encoded(where, message, as_json=not isinstance(message, bytes)))
    if message.timestamp is not None and message.after is not None:
        raise OfflineError(f"{where} has both a timestamp and after=; give one of them")
    return Line(
        number,
        _encoded(where, message.body),
        source=message.source,
        stream=message.stream,
        key=None if message.key is None else _encoded(where, message.key),
        headers=tuple((name, _encoded(where, value)) for name, value in (message.headers or {}).items()),
        timestamp=_stamp(where, message, begin),
        event=message.event,
    )


def _stamp(where: str, message: Sent, begin: datetime) -> datetime | None:
    if message.after is not None:
        return begin + (message.after if isinstance(message.after, timedelta) else timedelta(seconds=message.after))
    try:
        return None if message.timestamp is None else parse_datetime(message.timestamp)
    except ValueError as error:
        raise OfflineError(f"{where}: its timestamp {message.timestamp!r} is no moment: {error}") from error


def _encoded(where: str, value: Any, *, as_json: bool = False) -> bytes:
    if isinstance(value, bytes):
        return value
    if isinstance(value, str) and not as_json:
        return value.encode()
    try:
        return msgspec.json.encode(value)
    except (TypeError, ValueError) as error:
        raise OfflineError(f"{where} cannot be written as JSON: {error}; give bytes, text or JSON data") from error
