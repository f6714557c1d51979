"""Patterns: what they match, what is no pattern, and the index that finds them."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from event_triggers.errors import InvalidEventError
from event_triggers.matching import PatternIndex, check_pattern, matches

VALUE = "a string, a number, true, false, null or an operator such as {'prefix': 'a'}"
ORDER = {
    "detail": {"status": "DONE", "size": 3, "ratio": 0.5, "ok": True, "error": None},
    "tags": ["eu", "daily"],
    "items": [{"sku": "a", "count": 1}, {"sku": "b", "count": 2}],
    "grid": [[1, 2], [3, [4]]],
    "": "no name",
}


@pytest.mark.parametrize(
    "pattern",
    [
        {"detail": {"status": ["DONE"]}},
        {"detail": {"status": ["FAILED", "DONE"]}},
        {"detail": {"status": "DONE"}},
        {"detail": {"status": ["DONE"], "size": [3]}, "tags": ["eu"]},
        {"detail": {"size": [3.0]}},
        {"detail": {"ratio": [0.5]}},
        {"detail": {"ok": [True], "error": [None]}},
        {"detail": {"error": None}},
        {"tags": ["us", "daily"]},
        {"items": {"sku": ["b"], "count": [2]}},
        {"grid": [4]},
        {"": ["no name"]},
    ],
    ids=str,
)
def test_matching(pattern: dict[str, Any]) -> None:
    assert matches(pattern, ORDER)
    assert matches(pattern, json.dumps(ORDER))
    assert matches(pattern, [ORDER])  # type: ignore[arg-type]
    index: PatternIndex[str] = PatternIndex()
    index.add(pattern, "token")
    assert index.matching(ORDER) == ["token"]


@pytest.mark.parametrize(
    "pattern",
    [
        {"detail": {"status": ["done"]}},
        {"detail": {"status": ["DONE"], "size": [4]}},
        {"detail": {"size": ["3"]}},
        {"detail": {"size": [True]}},
        {"detail": {"ok": [1]}},
        {"detail": {"ok": ["true"]}},
        {"detail": {"error": [False]}},
        {"detail": {"missing": [None]}},
        {"missing": {"status": ["DONE"]}},
        {"detail": ["DONE"]},
        {"tags": {"eu": ["daily"]}},
        {"tags": ["e"]},
        {"items": {"sku": ["a"], "count": [2]}},
        {"items": ["a"]},
        {"detail": {"status": {"DONE": [1]}}},
    ],
    ids=str,
)
def test_not_matching(pattern: dict[str, Any]) -> None:
    assert not matches(pattern, ORDER)
    index: PatternIndex[str] = PatternIndex()
    index.add(pattern, "token")
    assert index.matching(ORDER) == []


@pytest.mark.parametrize("document", [b"", b"{", b"\xff", "no json", b"1", b'"status"', b"null", b"[]", b"{}"])
def test_what_is_no_object_matches_nothing(document: bytes | str) -> None:
    assert not matches({"status": ["DONE"]}, document)


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        (["status"], "match: expected a mapping of fields to allowed values, got ['status'] (list)"),
        ("status", "match: expected a mapping of fields to allowed values, got 'status' (str)"),
        ({}, "match: an empty mapping says nothing; leave it out to take every message"),
        ({"a": {}}, "match['a']: an empty mapping says nothing; leave it out to take every message"),
        ({1: ["x"]}, "match: field names are strings, got 1 (int)"),
        ({"a": {"b": []}}, "match['a']['b']: an empty list allows nothing, so no message could ever match"),
        ({"a": [1, [2]]}, f"match['a'][1]: expected {VALUE}, got [2] (list)"),
        ({"a": [float("nan")]}, f"match['a'][0]: expected {VALUE}, got nan (float)"),
        ({"a": float("inf")}, "match['a']: expected a list of allowed values or a mapping, got inf (float)"),
        ({"a": b"x"}, "match['a']: expected a list of allowed values or a mapping, got b'x' (bytes)"),
        ({"a": {1}}, "match['a']: expected a list of allowed values or a mapping, got {1} (set)"),
    ],
    ids=str,
)
def test_what_is_no_pattern_is_refused(pattern: Any, text: str) -> None:
    with pytest.raises(InvalidEventError) as refused:
        check_pattern(pattern)
    assert str(refused.value) == text
    with pytest.raises(InvalidEventError):
        matches(pattern, {})
    index: PatternIndex[str] = PatternIndex()
    with pytest.raises(InvalidEventError):
        index.add(pattern, "token")
    assert len(index) == 0


def test_values_to_be_resolved_later_are_let_through() -> None:
    class Reference:
        def resolve(self) -> str:
            raise NotImplementedError

    check_pattern({"a": [Reference()], "b": Reference()})


def test_the_index_knows_what_it_holds() -> None:
    index: PatternIndex[str] = PatternIndex()
    index.add({"a": [1, 2]}, "one")
    index.add({"a": [2, 3]}, "two")
    index.add({"b": [1]}, "three")
    assert len(index) == 3
    assert "two" in index
    assert sorted(index.matching({"a": 2, "b": 1})) == ["one", "three", "two"]
    with pytest.raises(KeyError):
        index.add({"c": [1]}, "two")
    index.remove("two")
    assert "two" not in index
    assert index.matching({"a": 2}) == ["one"]
    with pytest.raises(KeyError):
        index.remove("two")
    index.add({"a": [3]}, "two")
    assert index.matching({"a": 3}) == ["two"]


def test_nothing_is_left_of_what_was_removed() -> None:
    index: PatternIndex[int] = PatternIndex()
    for number in range(10):
        index.add({"a": [number, number + 1], "b": {"c": ["x"]}}, number)
    for number in range(10):
        index.remove(number)
    assert (len(index), index._of_body._shapes) == (0, {})


def test_a_pattern_of_many_combinations_takes_little_room() -> None:
    index: PatternIndex[str] = PatternIndex()
    index.add({field: list(range(100)) for field in "abcd"}, "token")
    (shape,) = index._of_body._shapes.values()
    assert len(shape.table) == 100
    assert index.matching(dict.fromkeys("abcd", 99)) == ["token"]
    assert index.matching({**dict.fromkeys("abcd", 99), "d": 100}) == []


def test_a_document_with_long_arrays_is_no_heavy_work() -> None:
    index: PatternIndex[int] = PatternIndex()
    for number in range(100):
        index.add({field: [number] for field in "abcd"}, number)
    document = {field: list(range(99, 2000)) for field in "abcd"}
    begin = time.process_time()
    assert index.matching(document) == [99]
    assert time.process_time() - begin < 1, "there are 10**13 combinations"


def test_a_document_costs_the_same_however_many_patterns_there_are() -> None:
    index: PatternIndex[int] = PatternIndex()
    for number in range(20_000):
        index.add({"table": [f"t{number}"], "date": ["2030-01-01"]}, number)
    begin = time.process_time()
    for number in range(1000):
        assert index.matching({"table": f"t{number}", "date": "2030-01-01"}) == [number]
    assert time.process_time() - begin < 5, "looking at each pattern would take a minute"


@pytest.mark.parametrize("depth", [500, 980, 3000, 100_000])
def test_a_document_nested_too_deep_disturbs_nobody(depth: int) -> None:
    document: Any = 1
    for _ in range(depth):
        document = [document]
    index: PatternIndex[str] = PatternIndex()
    index.add({"a": [1]}, "deep")
    index.add({"b": [1]}, "flat")
    found = index.matching({"a": document, "b": 1})
    assert found in (["flat"], ["deep", "flat"])
    assert matches({"a": [1]}, {"a": document}) in (False, True)
    while isinstance(document, list):  # freeing it at once would recurse too
        document = document.pop()


def test_an_index_takes_json_text_as_matches_does() -> None:
    index: PatternIndex[str] = PatternIndex()
    index.add({"table": ["orders"]}, "orders")
    for documents in (['{"table": "orders"}', b'{"table": "orders"}'], ['[{"table": "orders"}]']):
        assert [index.matching(one) for one in documents] == [["orders"]] * len(documents)
    assert index.matching(b"{broken") == []
    index.add({"$message": {"key": [{"exists": False}]}}, "no key")
    assert sorted(index.matching(b'{"table": "orders"}')) == ["no key", "orders"]
