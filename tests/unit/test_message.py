"""Messages: decoded at most once, and never a value that Airflow could not store."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from event_triggers import message as module
from event_triggers.errors import EventTriggersError, MessageDecodeError
from event_triggers.message import UNDECODABLE, Message, same_message


def make(body: bytes | None, **fields: Any) -> Message:
    return Message(source="test", stream="orders", position="2@98113", id="orders:2@98113", body=body, **fields)


def test_json_body() -> None:
    message = make(b' {"table": "orders", "n": [1, 2.5, null, true]} ')
    expected = {"table": "orders", "n": [1, 2.5, None, True]}
    assert message.document == message.json == message.payload == expected


def test_json_null_is_a_document() -> None:
    message = make(b"null")
    assert message.document is None
    assert message.json is None
    assert message.payload is None


def test_decoded_once_however_many_look(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bytes] = []

    def decode(body: bytes) -> Any:
        seen.append(body)
        return json.loads(body)

    monkeypatch.setattr(module, "_decode", decode)
    message = make(b'{"a": 1}')
    assert seen == [], "nobody has looked yet"
    assert message.document is message.document
    assert message.json is message.payload
    assert seen == [b'{"a": 1}']


def test_undecodable_is_tried_once_too(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bytes] = []

    def decode(body: bytes) -> Any:
        seen.append(body)
        raise UnicodeDecodeError("utf-8", body, 0, 1, "refused")

    monkeypatch.setattr(module, "_decode", decode)
    message = make(b"\xff")
    assert message.document is UNDECODABLE
    assert message.payload == {"base64": "/w=="}
    assert seen == [b"\xff"]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"hello",
        b"{",
        b'{"a": 1} trailing',
        b"\xef\xbb\xbf{}",
        pytest.param(b"[" * 200_000 + b"]" * 200_000, id="nested-too-deeply"),
        pytest.param(b"NaN", id="not-a-number"),
        pytest.param(b"1e400", id="larger-than-any-float"),
        pytest.param(b'"\\ud800"', id="half-a-surrogate-pair"),
    ],
)
def test_not_json_is_text(body: bytes) -> None:
    message = make(body)
    assert message.document is UNDECODABLE
    assert message.payload == message.text == body.decode()
    with pytest.raises(MessageDecodeError, match=r"2@98113 of test 'orders' is not JSON") as caught:
        _ = message.json
    assert isinstance(caught.value, EventTriggersError)
    assert isinstance(caught.value, ValueError)


def test_binary_body() -> None:
    message = make(b"ok \xff\x00")
    assert message.document is UNDECODABLE
    assert message.text == "ok \\xff\x00"
    assert message.payload == {"base64": "b2sg/wA="}


def test_tombstone() -> None:
    message = make(None)
    assert message.document is UNDECODABLE
    assert message.payload is None
    assert message.text == ""
    with pytest.raises(MessageDecodeError):
        _ = message.json


@given(st.binary(max_size=200) | st.text(max_size=50).map(lambda text: text.encode()))
def test_payload_of_any_body_can_be_stored(body: bytes) -> None:
    payload = make(body).payload
    stored = json.dumps(payload, allow_nan=False).encode("utf-8")
    assert json.loads(stored) == payload


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=10,
)


@given(json_values)
def test_any_json_document_arrives_as_it_was(value: Any) -> None:
    assert make(json.dumps(value).encode()).json == value
    assert make(json.dumps(value, ensure_ascii=False).encode()).payload == value


def test_shown_to_people() -> None:
    message = make(b"secret", receipt="receipt-handle")
    assert str(message) == "test orders 2@98113"
    assert "receipt-handle" not in repr(message)


def test_messages_are_compared_by_identity() -> None:
    assert make(b"1") != make(b"1")
    assert len({make(b"1"), make(b"1")}) == 2


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("a", "a", True),
        ("a", "b", False),
        ("a.1", "a.2", False),
        ("a", "a.1", False),
        ("a.(?)", "a", True),
        ("a.(?)", "a.1", True),
        ("a.(?)", "a.(?)", True),
        ("a.(?)", "ab", False),
        ("a.(?)", "b.1", False),
    ],
)
def test_an_id_of_which_only_the_beginning_is_known(one: str, other: str, same: bool) -> None:
    assert same_message(one, other) is same
    assert same_message(other, one) is same
