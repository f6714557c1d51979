"""Patterns about the message around the body, alone and in the index that the hub asks."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from event_triggers.matching import PatternIndex, explain, matches
from event_triggers.message import Message

NOON = datetime(2026, 11, 22, 13, 0, 0, 250_999, tzinfo=timezone(timedelta(hours=1)))
MESSAGE = Message(
    "kafka",
    "etl-finish",
    "0@1",
    "0@1",
    b'{"table": "orders", "rows": 5}',
    key=b"store-4",
    headers=(("type", b"order"), ("trace", b"1"), ("trace", b"2"), ("raw", b"\xff\x00")),
    timestamp=NOON,
)
TEXT = replace(MESSAGE, body=b"no JSON")
BARE = Message("sqs", "stock", "1", "1", b"{}")
BINARY = replace(MESSAGE, key=b"\xff")


def of(**fields: Any) -> dict[str, Any]:
    return {"$message": fields}


TABLE: list[tuple[dict[str, Any], list[Message], list[Message]]] = [
    (of(key=["store-4"]), [MESSAGE, TEXT], [BARE, BINARY]),
    (of(key={"base64": ["/w=="]}), [BINARY], [MESSAGE]),
    (of(key=[{"exists": False}]), [BARE, BINARY], [MESSAGE]),
    (of(headers={"type": ["order"]}), [MESSAGE, TEXT], [BARE]),
    (of(headers={"trace": ["2"]}), [MESSAGE], [BARE]),
    (of(headers={"raw": {"base64": ["/wA="]}}), [MESSAGE], [BARE]),
    (of(topic=["etl-finish"]), [MESSAGE, TEXT], [BARE]),
    (of(queue=["stock"]), [BARE], [MESSAGE]),
    (of(timestamp=["2026-11-22T12:00:00.250Z"]), [MESSAGE], [BARE]),
    (of(timestamp_seconds=[{"numeric": [">=", NOON.timestamp()]}]), [MESSAGE], [BARE]),
    (of(timestamp_seconds=[{"numeric": [">", NOON.timestamp()]}]), [], [MESSAGE, BARE]),
    (of(body={"table": ["orders"]}), [MESSAGE], [TEXT, BARE]),
    ({"table": ["orders"], **of(key=[{"prefix": "store-"}])}, [MESSAGE], [TEXT, BARE]),
    ({"table": ["stock"], **of(key=[{"prefix": "store-"}])}, [], [MESSAGE, TEXT]),
    ({"table": ["orders"], **of(body={"rows": [5]}, topic=["etl-finish"])}, [MESSAGE], [TEXT]),
    ({"error": [{"exists": False}], **of(key=["store-4"])}, [MESSAGE], [TEXT]),
    ({"$or": [of(key=["store-5"]), {"table": ["orders"]}]}, [MESSAGE], [TEXT, BARE]),
    (of(**{"$or": [{"key": ["store-4"]}, {"queue": ["stock"]}]}), [MESSAGE, TEXT, BARE], []),
]


@pytest.mark.parametrize(("pattern", "matching", "others"), TABLE, ids=lambda one: str(one)[:60])
def test_messages(pattern: dict[str, Any], matching: list[Message], others: list[Message]) -> None:
    index: PatternIndex[str] = PatternIndex()
    index.add(pattern, "token")
    index.add({"rows": [5]}, "plain")
    for message in [*matching, *others]:
        expected = message in matching
        assert matches(pattern, message) is expected
        assert (explain(pattern, message) is None) is expected
        assert ("token" in index.matching(message)) is expected
    index.remove("token")
    assert index.matching(MESSAGE) == ["plain"]
    assert "token" not in index


def test_a_body_that_is_an_array_counts_as_many_documents() -> None:
    message = replace(MESSAGE, body=b'[{"a": 1}, {"a": 2, "b": 3}]')
    index: PatternIndex[str] = PatternIndex()
    index.add({"a": [2], "b": [3], **of(key=["store-4"])}, "both")
    index.add({"a": [1], "b": [3], **of(key=["store-4"])}, "apart")
    index.add({"a": [1, 2]}, "plain")
    assert sorted(index.matching(message)) == ["both", "plain"]


def test_a_document_alone_has_nothing_around_it() -> None:
    assert not matches(of(key=["x"]), {"key": "x"})
    assert matches({"table": ["orders"], **of(key=[{"exists": False}])}, {"table": "orders"})


def test_the_patterns_that_would_have_to_look_into_an_unreadable_body() -> None:
    index: PatternIndex[str] = PatternIndex()
    index.add({"table": ["orders"]}, "body")
    index.add(of(key=["store-4"]), "key")
    index.add({"table": ["orders"], **of(key=["store-4"])}, "both")
    index.add({"table": ["orders"], **of(key=["store-5"])}, "other key")
    index.add(of(body={"a": [1]}), "inner body")
    assert sorted(index.hinging_on_body(TEXT)) == ["body", "both", "inner body"]


def test_a_field_of_that_name_deeper_inside_is_a_field() -> None:
    assert matches({"a": {"$message": {"x": [1]}}}, {"a": {"$message": {"x": 1}}})
