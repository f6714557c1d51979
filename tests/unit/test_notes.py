"""What people are shown of a message: short, on one line, and nothing that deceives."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given

from event_triggers.message import Message
from event_triggers.notes import NOTE_LIMIT, note_of, shown

RECEIVED_AT = "2030-01-01T00:00:05.000+00:00"


def message(body: bytes | None = b"{}", **fields: Any) -> Message:
    return Message(**{"source": "kafka", "stream": "orders", "position": "2@7", "id": "x", "body": body, **fields})


@pytest.mark.parametrize(
    ("text", "safe"),
    [
        ("plain text, ümläut, 漢字, 🚀", "plain text, ümläut, 漢字, 🚀"),
        ("two\nlines\r\n\tand a tab", "two lines   and a tab"),
        ("\x1b[31mred", "\\u001b[31mred"),
        ("nul\x00 del\x7f", "nul\\u0000 del\\u007f"),
        ("from\u202eright to left", "from\\u202eright to left"),
        ("\u2066isolated\u2069", "\\u2066isolated\\u2069"),
        ("zero\u200bwidth\ufeff", "zero\\u200bwidth\\ufeff"),
        ("line\u2028separator\u0085", "line\\u2028separator\\u0085"),
        ("lone \ud800 surrogate", "lone \\ud800 surrogate"),
        ("tag \U000e0041", "tag \\ue0041"),
    ],
)
def test_characters_that_deceive_are_spelled_out(text: str, safe: str) -> None:
    assert shown(text) == safe


def test_long_text_is_cut_visibly() -> None:
    assert shown("x" * 10, 10) == "x" * 10
    assert shown("x" * 11, 10) == "x" * 9 + "…"
    assert len(shown("\0" * 100, 20)) == 20


@given(st.text(), st.integers(5, 50))
def test_whatever_the_text_one_printable_line_remains(text: str, limit: int) -> None:
    safe = shown(text, limit)
    assert len(safe) <= limit
    assert safe.isprintable()


def test_a_note_says_whence_when_and_what() -> None:
    at = datetime(2030, 1, 1, tzinfo=timezone.utc)
    assert note_of(message(b'{"a": 1}', timestamp=at), RECEIVED_AT, 1, 1) == (
        'kafka orders 2@7, 2030-01-01T00:00:00.000+00:00\n{"a": 1}'
    )


def test_a_note_without_a_timestamp_says_when_it_was_received() -> None:
    assert note_of(message(), RECEIVED_AT, 1, 1).startswith(f"kafka orders 2@7, {RECEIVED_AT}\n")


def test_a_note_counts() -> None:
    assert note_of(message(), RECEIVED_AT, 2, 3).startswith("kafka orders 2@7 (2 of 3), ")


@pytest.mark.parametrize(
    ("body", "view"),
    [(None, "(no body)"), (b"", ""), (b"\xff\xfe", "\\xff\\xfe"), (b"a\nb\x1b", "a b\\u001b")],
)
def test_a_note_shows_any_body(body: bytes | None, view: str) -> None:
    assert note_of(message(body), RECEIVED_AT, 1, 1).split("\n", 1)[1] == view


def test_a_message_cannot_forge_the_first_line() -> None:
    forged = message(b"x", stream="orders\nkafka forged 0@0", position="1\r\n2")
    assert len(note_of(forged, RECEIVED_AT, 1, 1).split("\n")) == 2


@given(st.binary(max_size=5000), st.text(max_size=2000), st.text(max_size=2000))
def test_a_note_is_never_longer_than_airflow_takes(body: bytes, stream: str, position: str) -> None:
    note = note_of(message(body, stream=stream, position=position), RECEIVED_AT, 1, 2)
    assert len(note) <= NOTE_LIMIT
    assert all(line.isprintable() for line in note.split("\n"))
