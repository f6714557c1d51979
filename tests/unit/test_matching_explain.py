"""Why a document does not match, in one safe line."""

from __future__ import annotations

from typing import Any

import pytest

from event_triggers.matching import explain

ORDER = {
    "table": "orders",
    "date": "2026-11-21",
    "detail": {"rows": 0, "state": None},
    "tags": ["a", "b", "c", "d", "e"],
    "items": [{"sku": "a", "count": 1}, {"sku": "b", "count": 2}],
    "none": [],
}


@pytest.mark.parametrize(
    ("pattern", "text", "holding"),
    [
        ({"table": ["orders"], "date": ["2026-11-22"]}, "date: got '2026-11-21', wanted '2026-11-22'", 1),
        ({"table": ["stock"], "date": ["2026-11-22"]}, "table: got 'orders', wanted 'stock'", 0),
        ({"detail": {"rows": [{"numeric": [">", 0, "<=", 9]}]}}, "detail.rows: got 0, wanted a number > 0 and <= 9", 0),
        ({"detail": {"rows": ["0", 5]}}, "detail.rows: got 0, wanted '0' or 5", 0),
        ({"detail": {"state": [True]}}, "detail.state: got null, wanted true", 0),
        ({"detail": {"size": [1]}}, "detail.size: missing, wanted 1", 0),
        ({"detail": [1]}, "detail: got an object, wanted 1", 0),
        ({"none": [{"exists": True}]}, "none: got an empty array, wanted any value", 0),
        ({"table": [{"exists": False}]}, "table: got 'orders', wanted a missing field", 0),
        ({"table": [{"prefix": "x"}]}, "table: got 'orders', wanted prefix 'x'", 0),
        (
            {"table": [{"suffix": {"equals-ignore-case": "x"}}]},
            "table: got 'orders', wanted suffix equals-ignore-case 'x'",
            0,
        ),
        (
            {"table": [{"wildcard": "x*"}, {"cidr": "10.0.0.0/8"}]},
            "table: got 'orders', wanted wildcard 'x*' or an address in 10.0.0.0/8",
            0,
        ),
        ({"table": [{"anything-but": ["orders", "x"]}]}, "table: got 'orders', wanted anything but 'orders' or 'x'", 0),
        ({"tags": ["x"]}, "tags: got 'a', 'b', 'c' and 2 more, wanted 'x'", 0),
        (
            {"tags": list("uvwxyz12")},
            "tags: got 'a', 'b', 'c' and 2 more, wanted 'u' or 'v' or 'w' or 'x' or 'y' or 3 more",
            0,
        ),
        (
            {"items": {"sku": ["a"], "count": [2]}},
            "items: no single element has it all, wanted items.sku 'a' and items.count 2",
            2,
        ),
        (
            {"$or": [{"table": ["x"], "date": ["y"]}, {"table": ["orders"], "date": ["z"]}]},
            "date: got '2026-11-21', wanted 'z'",
            1,
        ),
    ],
    ids=str,
)
def test_the_nearest_reason(pattern: dict[str, Any], text: str, holding: int) -> None:
    mismatch = explain(pattern, ORDER)
    assert mismatch is not None
    assert str(mismatch) == text
    assert mismatch.holding == holding
    assert mismatch.missing == mismatch.leaves - holding


@pytest.mark.parametrize(
    ("document", "text"),
    [
        (b"no JSON", "the body is not JSON, wanted a JSON object"),
        ("5", "the body is 5, wanted a JSON object"),
        (b"[1, [2]]", "the body is an array without objects, wanted a JSON object"),
    ],
)
def test_a_body_that_cannot_be_looked_into(document: bytes | str, text: str) -> None:
    assert str(explain({"a": [1]}, document)) == text


def test_what_matches_needs_no_reason() -> None:
    assert explain({"table": ["orders"]}, ORDER) is None


def test_no_document_can_forge_a_line_of_the_log() -> None:
    evil = "x\n2026 ERROR \x1b[31m\u202e" + "y" * 100_000
    mismatch = explain({"a": {evil: [evil]}}, {"a": {evil: evil[::-1]}})
    assert str(mismatch).isprintable()
    assert len(str(mismatch)) < 1000


def test_near_and_far_can_be_ranked() -> None:
    pattern = {"a": [1], "b": [1], "c": [1]}
    documents: list[dict[str, int]] = [{}, {"a": 1, "b": 1}, {"a": 1}]
    mismatches = [explain(pattern, document) for document in documents]
    assert [one.missing for one in mismatches if one is not None] == [3, 1, 2]
