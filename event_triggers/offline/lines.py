"""The messages to replay: one JSON document a line.

Either a description of the message::

    {"source": "kafka", "topic": "orders", "key": "4", "headers": {"tenant": "a"},
     "timestamp": "2026-11-22T10:00:00Z", "body": {"id": 17}}

in which everything but the body can be left out, and ``"text"`` stands for a body that is no JSON; or the body alone,
for every source. A document is a description when it is an object that has ``body`` or ``text``, and nothing beside it
but the fields above.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec

from event_triggers.clock import parse_datetime
from event_triggers.errors import EventTriggersError

__all__ = ["Line", "OfflineError", "read_line", "read_lines"]

_PLACES = ("topic", "queue", "stream")
_FIELDS = frozenset({"source", "key", "headers", "timestamp", "body", "text", *_PLACES})


class OfflineError(EventTriggersError):
    """What is to be replayed, or the group for it, is not as it must be."""


@dataclass(frozen=True)
class Line:
    """One message.

    :param number: of its line in the file.
    :param source: the kind of broker that it comes from; ``None`` for any.
    :param stream: the topic or queue; ``None`` for any.
    :param event: the name of an event, whose source delivers it; ``None`` for any. Not from a file.
    """

    number: int
    body: bytes
    source: str | None = None
    stream: str | None = None
    key: bytes | None = None
    headers: tuple[tuple[str, bytes], ...] = ()
    timestamp: datetime | None = None
    event: str | None = None

    @property
    def place(self) -> str:
        """Where it comes from, for people."""
        return " ".join(part for part in (self.source, self.stream) if part) or self._anywhere

    @property
    def _anywhere(self) -> str:
        return "from anywhere" if self.event is None else f"for event {self.event}"


def read_lines(path: Path) -> list[Line]:
    """The messages of a file, in order; empty lines are passed over.

    :raises OfflineError: naming the line that is none.
    """
    try:
        text = path.read_bytes()
    except OSError as error:
        raise OfflineError(f"{path} cannot be read: {error}") from error
    numbered = enumerate(text.splitlines(), start=1)
    return [read_line(f"{path}, line {number}", number, raw) for number, raw in numbered if raw.strip()]


def read_line(where: str, number: int, raw: bytes) -> Line:
    """One message.

    :param where: how errors call its place.
    :raises OfflineError: when it is none.
    """
    try:
        document = msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise OfflineError(f"{where} is no JSON document: {error}; write one message a line") from error
    if not isinstance(document, dict) or not {"body", "text"} & document.keys() or document.keys() - _FIELDS:
        return Line(number, raw.strip())
    if "text" in document and "body" in document:
        raise OfflineError(f"{where} has both a body and a text; give one of them")
    places = [document[name] for name in _PLACES if name in document]
    if len(places) > 1:
        raise OfflineError(f"{where}: topic, queue and stream are words for the same; give one of them")
    return Line(
        number,
        _text(where, "text", document["text"]) if "text" in document else msgspec.json.encode(document["body"]),
        source=_word(where, "source", document.get("source")),
        stream=_word(where, "topic", places[0]) if places else None,
        key=None if document.get("key") is None else _text(where, "key", document["key"]),
        headers=_headers(where, document.get("headers")),
        timestamp=_moment(where, document.get("timestamp")),
    )


def _word(where: str, name: str, value: Any) -> str | None:
    if value is not None and not isinstance(value, str):
        raise OfflineError(f"{where}: its {name} must be a string, not {value!r}")
    return value


def _text(where: str, name: str, value: Any) -> bytes:
    if not isinstance(value, str):
        raise OfflineError(f"{where}: its {name} must be a string, not {value!r}")
    return value.encode()


def _headers(where: str, value: Any) -> tuple[tuple[str, bytes], ...]:
    if value is None:
        return ()
    if not isinstance(value, dict):
        raise OfflineError(f"{where}: its headers must be an object of names and strings, not {value!r}")
    return tuple((name, _text(where, f"header {name!r}", one)) for name, one in value.items())


def _moment(where: str, value: Any) -> datetime | None:
    try:
        return None if value is None else parse_datetime(value)
    except (ValueError, AttributeError, TypeError) as error:
        raise OfflineError(f"{where}: its timestamp {value!r} is no ISO 8601 moment") from error
