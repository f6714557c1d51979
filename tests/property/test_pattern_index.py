"""The plain reading of the rules is right, and the index finds exactly the patterns that match by it."""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Iterator
from typing import Any

import hypothesis.strategies as st
from hypothesis import event, given, settings

from event_triggers.matching import PatternIndex, explain, matches, parse_pattern
from event_triggers.matching.explain import distance, distances
from event_triggers.message import Message

# Few fields and values, so that patterns and documents often meet; some values are equal in Python and not in JSON.
FIELDS = st.sampled_from("abc")
TEXTS = st.sampled_from(["", "a", "ab", "aB", "AB", "b", "abab", "*", "\\", "ß", "SS", "1", "true", "10.0.0.1", "::1"])
NUMBERS = st.sampled_from([0, 1, 1.0, -0.0, 0.5, 2, -1, 3, 2**53 + 1, float(2**53), 10**30, -(10**400)])
SCALARS = TEXTS | NUMBERS | st.sampled_from([None, True, False])
AFFIXES = st.sampled_from(["a", "ab", "B", "SS"])
WILDCARDS = (
    st.lists(st.sampled_from(["*", "a", "b", r"\*", r"\\", "B"]), max_size=4)
    .map("".join)
    .filter(lambda text: "**" not in text)
)
FOLDED = TEXTS.map(lambda text: {"equals-ignore-case": text})
OPERATORS = st.one_of(
    TEXTS.map(lambda text: {"prefix": text}),
    TEXTS.map(lambda text: {"suffix": text}),
    FOLDED,
    FOLDED.map(lambda folded: {"prefix": folded}),
    FOLDED.map(lambda folded: {"suffix": folded}),
    WILDCARDS.map(lambda text: {"wildcard": text}),
    (TEXTS | NUMBERS | st.lists(TEXTS, min_size=1, max_size=3) | st.lists(NUMBERS, min_size=1, max_size=3)).map(
        lambda values: {"anything-but": values}
    ),
    st.tuples(st.sampled_from(["prefix", "suffix"]), AFFIXES | st.lists(AFFIXES, min_size=1, max_size=2)).map(
        lambda pair: {"anything-but": dict([pair])}
    ),
    (WILDCARDS | st.lists(WILDCARDS, min_size=1, max_size=2)).map(lambda some: {"anything-but": {"wildcard": some}}),
    (TEXTS | st.lists(TEXTS, min_size=1, max_size=2)).map(lambda some: {"anything-but": {"equals-ignore-case": some}}),
    st.tuples(st.sampled_from(["=", "<", "<=", ">", ">="]), NUMBERS).map(lambda pair: {"numeric": list(pair)}),
    st.tuples(st.sampled_from([">", ">="]), NUMBERS, st.sampled_from(["<", "<="]), NUMBERS)
    .filter(lambda four: four[1] < four[3])
    .map(lambda four: {"numeric": list(four)}),
    st.sampled_from(["10.0.0.0/8", "10.0.0.1/32", "10.0.0.1/31", "0.0.0.0/0", "::/64", "::2/127"]).map(
        lambda block: {"cidr": block}
    ),
    st.sampled_from([{"exists": True}, {"exists": False}]),
    TEXTS.map(lambda text: {"exactly": text}),
)
ITEMS = SCALARS | OPERATORS
LEAVES = SCALARS | st.lists(ITEMS, min_size=1, max_size=3)


def objects(values: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Patterns with these values, perhaps with alternatives."""
    plain = st.dictionaries(FIELDS, values, min_size=1, max_size=3)
    ways = st.lists(plain, min_size=2, max_size=3)
    return plain | st.builds(lambda fields, ways: {**fields, "$or": ways}, plain | st.just({}), ways)


PATTERNS = st.recursive(objects(LEAVES), lambda inner: objects(LEAVES | inner), max_leaves=4)
DOCUMENTS = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(FIELDS, inner, max_size=3),
    max_leaves=25,
)

Membership = dict[int, int]
Scalar = tuple[tuple[str, ...], Any, Membership]


def holds(pattern: dict[str, Any], document: Any) -> bool:
    """The rules once more, said as event-ruler does: flat fields that know in which elements of arrays they are."""
    if isinstance(document, list):
        return any(holds(pattern, one) for one in document if isinstance(one, (dict, list)))
    fields = list(flat(document, (), {}, iter(range(10**9)))) if isinstance(document, dict) else []
    return isinstance(document, dict) and any(chosen(leaves, fields, {}, []) for leaves in alternatives(pattern, ()))


def flat(value: Any, path: tuple[str, ...], membership: Membership, numbers: Iterator[int]) -> Iterator[Scalar]:
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from flat(inner, (*path, name), membership, numbers)
    elif isinstance(value, list):
        array = next(numbers)
        for place, element in enumerate(value):
            inside = {**membership, array: place} if isinstance(element, (dict, list)) else membership
            yield from flat(element, path, inside, numbers)
    else:
        yield path, value, membership


def alternatives(pattern: dict[str, Any], path: tuple[str, ...]) -> list[list[tuple[tuple[str, ...], list[Any]]]]:
    ways: list[list[tuple[tuple[str, ...], list[Any]]]] = [[]]
    for field, node in pattern.items():
        if field == "$or":
            more = [leaves for way in node for leaves in alternatives(way, path)]
        elif isinstance(node, dict):
            more = alternatives(node, (*path, field))
        else:
            more = [[((*path, field), node if isinstance(node, list) else [node])]]
        ways = [leaves + others for leaves in ways for others in more]
    return ways


def chosen(
    leaves: list[tuple[tuple[str, ...], list[Any]]],
    fields: list[Scalar],
    membership: Membership,
    absent: list[tuple[str, ...]],
) -> bool:
    """Whether a field can be chosen for each leaf, all from the same elements, and the absent ones not be in those."""
    if not leaves:
        return not any(path in absent and agree(membership, inside) for path, _, inside in fields)
    (path, items), *others = leaves
    if {"exists": False} in items and chosen(others, fields, membership, [*absent, path]):
        return True
    return any(
        at == path
        and agree(membership, inside)
        and any(passes(item, value) for item in items)
        and chosen(others, fields, {**membership, **inside}, absent)
        for at, value, inside in fields
    )


def agree(one: Membership, other: Membership) -> bool:
    return all(one.get(array, place) == place for array, place in other.items())


def passes(item: Any, value: Any) -> bool:
    if not isinstance(item, dict):
        return same(item, value)
    ((name, operand),) = item.items()
    if name in ("prefix", "suffix") and isinstance(operand, dict):
        operand, value = fold(operand["equals-ignore-case"]), fold(value)
    if name == "anything-but":
        kind, operands = next(iter(operand.items())) if isinstance(operand, dict) else ("", operand)
        operands = operands if isinstance(operands, list) else [operands]
        return not any(passes({kind: one} if kind else one, value) for one in operands)
    if name == "numeric":
        return is_number(value) and all(
            compare(sign, value, number) for sign, number in zip(operand[::2], operand[1::2], strict=True)
        )
    if name == "exists":
        return bool(operand)
    if not isinstance(value, str):
        return False
    if name == "cidr":
        try:
            return ipaddress.ip_address(value) in ipaddress.ip_network(operand, strict=False)
        except ValueError:
            return False
    if name == "wildcard":
        parts = re.findall(r"\\.|\*|[^\\*]", operand)
        return bool(re.fullmatch("".join(".*" if part == "*" else re.escape(part[-1]) for part in parts), value))
    if name in ("prefix", "suffix"):
        return value.startswith(operand) if name == "prefix" else value.endswith(operand)
    return bool(fold(operand) == fold(value) if name == "equals-ignore-case" else operand == value)


def fold(value: Any) -> Any:
    return value.casefold() if isinstance(value, str) else value


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def same(one: Any, other: Any) -> bool:
    return one is other if isinstance(one, bool) or isinstance(other, bool) else bool(one == other)


def compare(sign: str, value: Any, number: Any) -> bool:
    return bool(
        {"=": value == number, "<": value < number, "<=": value <= number, ">": value > number, ">=": value >= number}[
            sign
        ]
    )


@settings(max_examples=300, deadline=None)
@given(PATTERNS, DOCUMENTS)
def test_matching_follows_the_rules(pattern: dict[str, Any], document: Any) -> None:
    if isinstance(document, str):
        document = [document]
    expected = holds(pattern, document)
    event(f"matches: {expected}")
    assert matches(pattern, document) is expected
    index: PatternIndex[str] = PatternIndex()  # with others it would look at more fields, and otherwise
    index.add(pattern, "token")
    assert index.matching(document) == ["token"] * expected
    reason = explain(pattern, document)
    assert (reason is None) is expected
    parsed, far = parse_pattern(pattern), reason and (reason.missing, -reason.holding)
    assert distance(parsed, document) == far
    assert list(distances(parsed, [Message("s", "s", "0", "0", json.dumps(document).encode())])) == [far]
    if reason is not None:
        assert str(reason).isprintable()
        assert 0 <= reason.holding <= reason.leaves


@settings(max_examples=150, deadline=None)
@given(st.lists(PATTERNS, max_size=30), st.sets(st.integers(0, 29)), st.lists(DOCUMENTS, min_size=1, max_size=6))
def test_the_index_agrees_with_the_rules(
    patterns: list[dict[str, Any]], removed: set[int], documents: list[Any]
) -> None:
    index: PatternIndex[int] = PatternIndex()
    for token, pattern in enumerate(patterns):
        index.add(pattern, token)
    left = dict(enumerate(patterns))
    agrees(index, left, documents[:2])
    for token in removed & set(left):
        index.remove(token)
        del left[token]
    agrees(index, left, documents)
    for token in left:
        index.remove(token)
    kept = index._of_body
    assert (len(index), kept._shapes, kept._root.below, kept._loose) == (0, {}, {}, None)


def agrees(index: PatternIndex[int], patterns: dict[int, dict[str, Any]], documents: list[Any]) -> None:
    for document in documents:
        found = index.matching(document)
        told: Any = [document] if isinstance(document, str) else document
        assert sorted(found) == [token for token, pattern in patterns.items() if matches(pattern, told)]
        event(f"found: {min(len(found), 3)}")


@settings(max_examples=60, deadline=None)
@given(st.lists(OPERATORS, min_size=12, max_size=40), st.lists(SCALARS, min_size=1, max_size=8))
def test_many_patterns_that_differ_in_an_operator_alone(operators: list[Any], values: list[Any]) -> None:
    index: PatternIndex[int] = PatternIndex()
    patterns = [{"kind": ["x"], "a": [operator]} for operator in operators]
    for token, pattern in enumerate(patterns):
        index.add(pattern, token)
        index.add({"a": pattern["a"]}, -1 - token)
    for document in ({"kind": "x"}, *({"kind": "x", "a": value} for value in [*values, values])):
        expected = {token for token, pattern in enumerate(patterns) if holds(pattern, document)}
        assert set(index.matching(document)) == expected | {-1 - token for token in expected}
        if not isinstance(document.get("a"), list):
            assert set(index.matching(json.loads(json.dumps([document])))) == set(index.matching(document))
