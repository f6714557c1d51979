"""What is kept of a message: its payload as Airflow can store it, and its facts across rounds and waits."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from event_triggers.ledger import (
    Arrival,
    GroupRef,
    Received,
    as_text,
    facts_of,
    held_by,
    merged,
    payload_of,
)
from event_triggers.message import Message


def message(body: bytes | None) -> Message:
    return Message(source="sqs", stream="stock", position="m-1", id="m-1", body=body)


def received(identity: str, payload: Any = None) -> Received:
    return Received("sqs", "stock", identity, identity, None, "2030-01-01T00:00:00.000+00:00", payload)


def ids(held: tuple[Received, ...]) -> str:
    return "".join(one.id for one in held)


# ------------------------------------------------------------------ payloads


@pytest.mark.parametrize(
    ("body", "payload"),
    [
        (b'{"a": [1, null, "x"]}', {"a": [1, None, "x"]}),
        (b"plain text", "plain text"),
        (b"12", 12),
        (b"\xff\x00", {"base64": "/wA="}),
        (None, None),
        (b"", ""),
    ],
)
def test_the_payload_is_the_body_as_json(body: bytes | None, payload: object) -> None:
    assert payload_of(message(body)) == payload


@pytest.mark.parametrize("size", [0, 1, 999, 1000])
def test_a_payload_within_the_limit_is_kept(size: int) -> None:
    body = b'"' + b"x" * max(size - 2, 0) + b'"'
    assert payload_of(message(body), 1000) == body.decode().strip('"')


def test_a_payload_over_the_limit_becomes_a_reference() -> None:
    body = b"x" * 1001
    assert payload_of(message(body), 1000) == {
        "truncated": True,
        "size": 1001,
        "source": "sqs",
        "stream": "stock",
        "position": "m-1",
        "view": "x" * 1001,
    }


def test_the_view_of_a_reference_is_short_and_safe() -> None:
    view = payload_of(message(b"\x1b" * 100_000), 1000)["view"]
    assert len(view) <= 2000
    assert "\x1b" not in view


def test_what_grows_by_escaping_is_measured_as_it_is_stored() -> None:
    body = b"\x01" * 500
    assert payload_of(message(body), 1000)["truncated"] is True
    assert payload_of(message(b"\x01" * 100), 1000) == "\x01" * 100


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (rb'{"a": "nul \u0000 here"}', r'json:{"a": "nul \u0000 here"}'),
        (rb'{"nul \u0000 key": 1}', r'json:{"nul \u0000 key": 1}'),
        (b"text with \x00 inside", r'json:"text with \u0000 inside"'),
        (b"[" * 200 + b"]" * 200, "json:" + "[" * 200 + "]" * 200),
        (b'{"a":' * 200 + b"1" + b"}" * 200, "json:" + '{"a":' * 200 + "1" + "}" * 200),
        (b'{"a": " %s"}' % (b"[" * 200), 'json:{"a": " ' + "[" * 200 + '"}'),
        (b"[" * 200, 'json:"' + "[" * 200 + '"'),
        (b'{"n": [18446744073709551616]}', 'json:{"n": [18446744073709551616]}'),
        (b"-9223372036854775809", "json:-9223372036854775809"),
        (b'{"n": 923456789012345e5}', 'json:{"n": 923456789012345e5}'),
        (b"[1E300]", "json:[1E300]"),
    ],
    ids=[
        "nul",
        "nul in a key",
        "nul in text",
        "deep list",
        "deep mapping",
        "deep in text",
        "deep text",
        "65 bits",
        "65 bits and a sign",
        "exponent",
        "large exponent",
    ],
)
def test_what_airflow_could_not_store_becomes_text(body: bytes, text: str) -> None:
    payload = payload_of(message(body))
    assert payload == {"refused": "it cannot be stored as JSON", "payload_as_text": text}
    assert "\0" not in payload["payload_as_text"]


def test_what_only_looks_like_it_is_kept() -> None:
    assert payload_of(message(rb'{"a": "\\u0000"}')) == {"a": r"\u0000"}
    assert payload_of(message(b'{"a": 1e18, "b": 1.5e-300, "c": "1e99"}')) == {"a": 1e18, "b": 1.5e-300, "c": "1e99"}
    for number in (2**64 - 1, -(2**63)):
        assert payload_of(message(b'{"a": %d, "b": "%s"}' % (number, b"1" * 30))) == {"a": number, "b": "1" * 30}
    assert payload_of(message(b"[" + b"{}," * 300 + b"{}]")) == [{}] * 301
    assert payload_of(message(b'"plain %s"' % (b"[" * 200))) == "plain " + "[" * 200


def test_text_of_a_refused_payload_can_be_read_again() -> None:
    refused = as_text({"__classname__": "x"}, "reserved " * 100)
    assert len(refused["refused"]) == 500
    assert msgspec.json.decode(refused["payload_as_text"].removeprefix("json:")) == {"__classname__": "x"}


# ------------------------------------------------------------------ facts


def test_facts_come_back() -> None:
    one = received("a", payload={"n": 1})
    (back,) = held_by(facts_of([one], 1, "round"), "round")
    assert back == received("a")


@pytest.mark.parametrize("facts", [None, "text", [], {}, {"messages": []}, {"messages": None}])
def test_what_are_no_facts_hold_nothing(facts: object) -> None:
    assert held_by(facts, "round") == ()


def test_complete_facts_of_another_round_do_not_count() -> None:
    facts = facts_of([received("a"), received("b")], 2, "round 1")
    assert ids(held_by(facts, "round 1")) == "ab"
    assert held_by(facts, "round 2") == ()


def test_incomplete_facts_of_another_round_do() -> None:
    facts = facts_of([received("a")], 2, "round 1")
    assert ids(held_by(facts, "round 2")) == "a"


@pytest.mark.parametrize(
    ("held", "new", "wanted", "result"),
    [
        ("", "a", 1, "a"),
        ("", "abc", 3, "abc"),
        ("a", "a", 3, "a"),
        ("a", "b", 3, "ab"),
        ("ab", "bac", 3, "abc"),
        ("", "aab", 3, "ab"),
        ("a", "b", 1, "a"),
        ("ab", "cde", 3, "abc"),
        ("abc", "", 2, "abc"),
    ],
)
def test_recording_adds_what_is_new_while_there_is_room(held: str, new: str, wanted: int, result: str) -> None:
    arrival = Arrival("event", tuple(received(one, payload=one) for one in new), wanted)
    assert ids(merged([received(one) for one in held], arrival)) == result


def test_one_message_under_two_ids_is_recorded_once() -> None:
    """Of some messages only one triggerer can know the end of the id, and the other one has it too."""
    arrival = Arrival("event", tuple(map(received, ["m.(?)", "m.8", "n.(?)", "n.1"])), 9)
    assert [one.id for one in merged([received("m.7")], arrival)] == ["m.7", "m.8", "n.(?)"]


def test_a_group_has_one_identity_on_every_triggerer() -> None:
    assert GroupRef("dag", "run", "task").identity == "dag/run/task/-1"
    assert GroupRef("dag", "run", "task", 3).identity == "dag/run/task/3"
