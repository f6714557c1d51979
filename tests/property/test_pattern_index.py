"""The index finds exactly the patterns that the plain reading of the rules says match."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
from hypothesis import event, given, settings

from event_triggers.matching import PatternIndex, matches

# Few fields and values, so that patterns and documents often meet; some values are equal in Python and not in JSON.
FIELDS = st.sampled_from("abc")
SCALARS = st.sampled_from([None, True, False, 0, 1, 1.0, -0.0, "", "1", "a", "true"])
LEAVES = SCALARS | st.lists(SCALARS, min_size=1, max_size=4)
PATTERNS: st.SearchStrategy[dict[str, Any]] = st.recursive(
    st.dictionaries(FIELDS, LEAVES, min_size=1, max_size=3),
    lambda inner: st.dictionaries(FIELDS, LEAVES | inner, min_size=1, max_size=3),
    max_leaves=4,
)
DOCUMENTS = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(FIELDS, inner, max_size=3),
    max_leaves=25,
)


def reference(pattern: Any, value: Any) -> bool:
    """The rules once more, said without any care for speed."""
    if isinstance(value, list):
        return any(reference(pattern, element) for element in value)
    if isinstance(pattern, dict):
        return isinstance(value, dict) and all(f in value and reference(node, value[f]) for f, node in pattern.items())
    allowed = pattern if isinstance(pattern, list) else [pattern]
    return any(same(one, value) for one in allowed)


def same(one: Any, other: Any) -> bool:
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    return bool(one == other)


@settings(max_examples=300, deadline=None)
@given(PATTERNS, DOCUMENTS)
def test_matching_follows_the_rules(pattern: dict[str, Any], document: Any) -> None:
    expected = reference(pattern, document)
    event(f"matches: {expected}")
    if not isinstance(document, str):
        assert matches(pattern, document) is expected


@settings(max_examples=300, deadline=None)
@given(st.lists(PATTERNS, max_size=12), st.sets(st.integers(0, 11)), st.lists(DOCUMENTS, min_size=1, max_size=6))
def test_the_index_agrees_with_the_rules(
    patterns: list[dict[str, Any]], removed: set[int], documents: list[Any]
) -> None:
    index: PatternIndex[int] = PatternIndex()
    for token, pattern in enumerate(patterns):
        index.add(pattern, token)
    left = dict(enumerate(patterns))
    for token in removed & set(left):
        index.remove(token)
        del left[token]
    for document in documents:
        found = index.matching(document)
        assert sorted(found) == [token for token, pattern in left.items() if reference(pattern, document)]
        assert len(set(found)) == len(found)
        event(f"found: {min(len(found), 3)}")
