"""Short, safe views of messages for people: no message can forge a line, a colour or a note with control characters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from event_triggers.message import Message
from event_triggers.text import shown

if TYPE_CHECKING:
    from event_triggers.ledger import Received

__all__ = ["NOTE_LIMIT", "note_again", "note_of", "place_note", "shown", "view_of"]

NOTE_LIMIT = 1000
"""Airflow's own limit for a note, in characters."""
_VIEW = 400


def view_of(message: Message, most: int) -> str:
    """The first ``most`` characters of the body, without decoding all of a large one."""
    return (message.body or b"")[: most * 4].decode("utf-8", errors="backslashreplace")[:most]


def note_of(message: Message, received_at: str, number: int, wanted: int) -> str:
    """The note of a marker: source, position, time, and a short view of the body."""
    when = message.timestamp.isoformat(timespec="milliseconds") if message.timestamp else received_at
    place = place_note(message.source, message.stream, message.position, when, number, wanted)
    body = "(no body)" if message.body is None else shown(view_of(message, _VIEW + 1))
    return f"{place}\n{body}"[:NOTE_LIMIT]


def place_note(source: str, stream: str, position: str, when: str, number: int, wanted: int) -> str:
    """The note's first line; all there is of a note when the message itself is not at hand."""
    count = f" ({number} of {wanted})" if wanted > 1 else ""
    return f"{source} {shown(stream, 200)} {shown(position, 200)}{count}, {when}"[:NOTE_LIMIT]


def note_again(held: Sequence[Received], wanted: int) -> str | None:
    """The note of a marker whose last messages were recorded by a wait that ended before it could mark."""
    if not held:
        return None
    last = held[-1]
    return place_note(last.source, last.stream, last.position, last.timestamp or last.received_at, len(held), wanted)
