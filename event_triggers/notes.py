"""Short, safe views of messages for people: no message can forge a line, a colour or a note with control characters."""

from __future__ import annotations

from event_triggers.message import Message

__all__ = ["NOTE_LIMIT", "note_of", "shown"]

NOTE_LIMIT = 1000
"""Airflow's own limit for a note, in characters."""
_VIEW = 400


def shown(text: str, limit: int = _VIEW) -> str:
    """``text`` on one line, without control or bidirectional characters, no longer than ``limit``."""
    safe = "".join(char if char.isprintable() else _escape(char) for char in text[: limit + 1])
    return safe if len(safe) <= limit else safe[: limit - 1] + "…"


def _escape(char: str) -> str:
    return " " if char in "\n\r\t" else f"\\u{ord(char):04x}"


def note_of(message: Message, received_at: str, number: int, wanted: int) -> str:
    """The note of a marker: source, position, time, and a short view of the body."""
    where = f"{message.source} {shown(message.stream, 200)} {shown(message.position, 200)}"
    when = message.timestamp.isoformat(timespec="milliseconds") if message.timestamp else received_at
    count = f" ({number} of {wanted})" if wanted > 1 else ""
    body = "(no body)" if message.body is None else shown(message.text[: _VIEW * 2])
    return f"{where}{count}, {when}\n{body}"[:NOTE_LIMIT]
