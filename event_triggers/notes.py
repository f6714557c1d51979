"""Short, safe views of messages for people: no message can forge a line, a colour or a note with control characters."""

from __future__ import annotations

from event_triggers.message import Message
from event_triggers.text import shown

__all__ = ["NOTE_LIMIT", "note_of", "shown", "view_of"]

NOTE_LIMIT = 1000
"""Airflow's own limit for a note, in characters."""
_VIEW = 400


def view_of(message: Message, most: int) -> str:
    """The first ``most`` characters of the body, without decoding all of a large one."""
    return (message.body or b"")[: most * 4].decode("utf-8", errors="backslashreplace")[:most]


def note_of(message: Message, received_at: str, number: int, wanted: int) -> str:
    """The note of a marker: source, position, time, and a short view of the body."""
    where = f"{message.source} {shown(message.stream, 200)} {shown(message.position, 200)}"
    when = message.timestamp.isoformat(timespec="milliseconds") if message.timestamp else received_at
    count = f" ({number} of {wanted})" if wanted > 1 else ""
    body = "(no body)" if message.body is None else shown(view_of(message, _VIEW + 1))
    return f"{where}{count}, {when}\n{body}"[:NOTE_LIMIT]
