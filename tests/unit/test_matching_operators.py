"""Each operator of event patterns by its documented meaning: which values it holds for, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from event_triggers.errors import InvalidEventError
from event_triggers.matching import PatternIndex, check_pattern, matches

# The operator, values that it holds for, values that it does not hold for.
TABLE: list[tuple[Any, list[Any], list[Any]]] = [
    ("", [""], [None, " ", 0, False]),
    (0, [0, -0.0, 0.0], [False, "", None, "0"]),
    (1, [1, 1.0], [True, "1", 1.0000001]),
    (True, [True], [1, "true", 1.0]),
    (2**53 + 1, [2**53 + 1], [2.0**53, 2**53]),
    (10**400, [10**400], [10**400 + 1, 1e308]),
    (0.1, [0.1], [0.1 + 1e-17 + 0.0000001]),
    ("10.0.0.1", ["10.0.0.1"], ["010.0.0.1"]),
    ({"exactly": "prefix"}, ["prefix"], ["Prefix", ""]),
    ({"prefix": "ab"}, ["ab", "abc"], ["a", "", "cab", "Ab", None, True]),
    ({"prefix": ""}, ["", "a"], [0, None, True]),
    ({"prefix": "4"}, ["4", "42"], [4, 42]),
    ({"suffix": "ab"}, ["ab", "cab"], ["b", "abc", 5]),
    ({"suffix": ""}, ["", "a"], [0, None]),
    ({"equals-ignore-case": "Done"}, ["done", "DONE", "Done"], ["done ", "don", None]),
    ({"equals-ignore-case": "Straße"}, ["STRASSE", "strasse", "straße"], ["strase"]),
    ({"prefix": {"equals-ignore-case": "aB"}}, ["ab", "ABC"], ["cab", "a", 5]),
    ({"prefix": {"equals-ignore-case": "ss"}}, ["ßa", "SSa", "ß"], ["s", "aß"]),
    ({"suffix": {"equals-ignore-case": "aB"}}, ["ab", "CAB"], ["abc", "b", None]),
    ({"suffix": {"equals-ignore-case": ""}}, ["", "x"], [None]),
    ({"wildcard": "*"}, ["", "a", "*"], [5, None]),
    ({"wildcard": ""}, [""], ["a"]),
    ({"wildcard": "a*b*c"}, ["abc", "a1b2c", "abbc", "abcbc"], ["ab", "acb", "abcd", "xabc"]),
    ({"wildcard": "*ab*ab*"}, ["abab", "xabyabz"], ["ab", "aba"]),
    ({"wildcard": "ab*ba"}, ["abba", "abxba"], ["aba"]),
    ({"wildcard": r"a\*b"}, ["a*b"], ["ab", "axb", r"a\*b"]),
    ({"wildcard": r"a\\*"}, ["a\\", "a\\b"], ["ab", "a*"]),
    ({"wildcard": r"\\\*"}, [r"\*"], ["\\", "*"]),
    ({"anything-but": "a"}, ["b", "", 1, None, True, "A"], ["a"]),
    ({"anything-but": ["a", "b"]}, ["c", 0], ["a", "b"]),
    ({"anything-but": 1}, [2, "1", None, True], [1, 1.0]),
    ({"anything-but": [1, 2.5]}, [3, "1"], [1, 2.5]),
    ({"anything-but": {"prefix": "ab"}}, ["b", 5, None, "a"], ["ab", "abc"]),
    ({"anything-but": {"prefix": ["a", "b"]}}, ["c", ""], ["ab", "ba"]),
    ({"anything-but": {"suffix": "ab"}}, ["b", 5], ["ab", "cab"]),
    ({"anything-but": {"suffix": [".tmp", ".bak"]}}, ["a", None], ["a.tmp", "a.bak"]),
    ({"anything-but": {"wildcard": "*/lib/*"}}, ["lib", 5], ["/lib/", "a/lib/b"]),
    ({"anything-but": {"wildcard": ["a*", "*b"]}}, ["cd"], ["ax", "xb"]),
    ({"anything-but": {"equals-ignore-case": "ab"}}, ["a", 5], ["AB", "ab"]),
    ({"anything-but": {"equals-ignore-case": ["ab", "c"]}}, ["a"], ["AB", "C"]),
    ({"numeric": ["=", 5]}, [5, 5.0], [True, "5", 6]),
    ({"numeric": ["=", 1]}, [1], [True, "1"]),
    ({"numeric": ["<", 5]}, [4.999, -(10**400)], [5, "4", None, True]),
    ({"numeric": ["<=", 5]}, [5, -1], [5.000001]),
    ({"numeric": [">", 5]}, [5.1, 10**400], [5, "6"]),
    ({"numeric": [">=", 5]}, [5], [4]),
    ({"numeric": [">", 0, "<=", 5]}, [5, 0.1], [0, 5.1, False, True is None]),
    ({"numeric": [">=", 5, "<=", 5]}, [5], [4, 6]),
    ({"numeric": [">=", "2.5"]}, [2.5], [2]),
    ({"numeric": [">", 10**400, "<", 10**400 + 2]}, [10**400 + 1], [10**400, 1]),
    ({"numeric": [">", 1e-300, "<", 2e-300]}, [1.5e-300], [1e-300, 1e300, 10**400]),
    ({"cidr": "10.0.0.0/8"}, ["10.255.0.1"], ["11.0.0.1", "10.0.0", "010.0.0.1", "10.0.0.1/8", 10, "::1", "a\0"]),
    ({"cidr": "10.1.2.3/24"}, ["10.1.2.0", "10.1.2.255"], ["10.1.3.0"]),
    ({"cidr": "10.0.0.1/32"}, ["10.0.0.1"], ["10.0.0.2"]),
    ({"cidr": "0.0.0.0/0"}, ["1.2.3.4"], ["::1", "ä"]),
    ({"cidr": "2001:db8::/32"}, ["2001:DB8::5", "2001:db8:0:0:0:0:0:1"], ["2001:db9::", "1.2.3.4"]),
    ({"cidr": "::1/128"}, ["0:0::1"], ["::2"]),
    ({"exists": True}, [None, "", 0, False, [1], [[None]]], [[], {}, {"b": 1}, [[]], [{}]]),
    ({"exists": False}, [[], {}, {"b": 1}, [{"b": 1}]], [None, "", [1], [{}, 1]]),
]


@pytest.mark.parametrize(("operator", "holding", "others"), TABLE, ids=lambda one: repr(one)[:60])
def test_operators(operator: Any, holding: list[Any], others: list[Any]) -> None:
    pattern = {"a": [operator]}
    check_pattern(pattern)
    index: PatternIndex[int] = PatternIndex()
    for token in range(12):  # so many that they are found by the operator
        index.add({"kind": ["x"], **pattern}, token)
    index.add(pattern, 12)
    for value in holding:
        assert matches(pattern, {"a": value}), value
        assert matches(pattern, {"a": [[], "no such value", value]}) or operator == {"exists": False}, value
        assert sorted(index.matching({"kind": "x", "a": value})) == list(range(13)), value
    for value in others:
        assert not matches(pattern, {"a": value}), value
        assert index.matching({"kind": "x", "a": value}) == [], value
    missing = operator == {"exists": False}
    assert matches(pattern, {}) is missing
    assert matches({"a": [operator, {"exists": False}]}, {})
    assert matches({"a": [operator, "no such value"]}, {"a": "no such value"})


@pytest.mark.parametrize(
    ("leaf", "text"),
    [
        ([{}], "match['a'][0]: expected one operator, such as {'prefix': 'a'}, got {} (dict)"),
        ([1, {"prefix": "a", "suffix": "b"}], "match['a'][1]: expected one operator"),
        ([{"like": "a"}], "match['a'][0]['like']: there is no operator 'like'"),
        ([{1: "a"}], "match['a'][0][1]: there is no operator 1 (int)"),
        (
            [{"suffix": ["a"]}],
            "match['a'][0]['suffix']: expected a string or {'equals-ignore-case': a string}, got ['a']",
        ),
        (
            [{"prefix": {"wildcard": "a"}}],
            "match['a'][0]['prefix']: expected a string or {'equals-ignore-case': a string}",
        ),
        (
            [{"prefix": {"equals-ignore-case": 1}}],
            "match['a'][0]['prefix']['equals-ignore-case']: expected a string, got 1",
        ),
        ([{"equals-ignore-case": None}], "match['a'][0]['equals-ignore-case']: expected a string, got None"),
        ([{"wildcard": "a**"}], "match['a'][0]['wildcard']: '**' at character 3"),
        (
            [{"wildcard": "a\\b"}],
            "match['a'][0]['wildcard']: '\\' at character 2 must stand before '*' or another '\\'",
        ),
        ([{"wildcard": "a\\"}], "match['a'][0]['wildcard']: '\\' at character 2 must stand before"),
        ([{"anything-but": []}], "match['a'][0]['anything-but']: an empty list excludes nothing"),
        ([{"anything-but": ["a", 1]}], "match['a'][0]['anything-but']: expected all strings or all numbers"),
        (
            [{"anything-but": ["a", None]}],
            "match['a'][0]['anything-but'][1]: expected a string, a number, a list of either",
        ),
        ([{"anything-but": True}], "match['a'][0]['anything-but']: expected a string, a number, a list of either"),
        ([{"anything-but": {"numeric": ["=", 1]}}], "match['a'][0]['anything-but']: expected one operator of"),
        (
            [{"anything-but": {"prefix": ["a", ""]}}],
            "match['a'][0]['anything-but']['prefix'][1]: every string has the empty",
        ),
        ([{"anything-but": {"suffix": 5}}], "match['a'][0]['anything-but']['suffix']: expected a string, got 5"),
        ([{"anything-but": {"wildcard": "**"}}], "match['a'][0]['anything-but']['wildcard']: '**'"),
        ([{"anything-but": {"prefix": []}}], "match['a'][0]['anything-but']['prefix']: an empty list excludes nothing"),
        ([{"numeric": 5}], "match['a'][0]['numeric']: expected a list of a comparison and a number"),
        ([{"numeric": ["=", 1, "=", 2]}], "match['a'][0]['numeric'][0]: expected '>', '>=', got '='"),
        ([{"numeric": ["!=", 1]}], "match['a'][0]['numeric'][0]: expected '=', '<', '<=', '>', '>=', got '!='"),
        ([{"numeric": [">", "x"]}], "match['a'][0]['numeric'][1]: expected a number, got 'x' (str)"),
        ([{"numeric": [">", True]}], "match['a'][0]['numeric'][1]: expected a number, got True (bool)"),
        ([{"numeric": [">", 5, "<", 5]}], "match['a'][0]['numeric']: no number is > 5 and < 5"),
        ([{"cidr": "10.0.0.0"}], "match['a'][0]['cidr']: expected a block of addresses"),
        ([{"cidr": "10.0.0.0/33"}], "match['a'][0]['cidr']: expected a block of addresses"),
        ([{"cidr": "example.org/8"}], "match['a'][0]['cidr']: expected a block of addresses"),
        ([{"exists": "yes"}], "match['a'][0]['exists']: expected true or false, got 'yes'"),
        ([{"exactly": 5}], "match['a'][0]['exactly']: expected a string, got 5"),
        ({"prefix": "x"}, "match['a']['prefix']: an operator stands in a list"),
        ({"exists": True}, "match['a']['exists']: an operator stands in a list"),
        ({"numeric": [">", 5]}, "match['a']['numeric']: an operator stands in a list"),
    ],
    ids=str,
)
def test_what_is_refused(leaf: Any, text: str) -> None:
    for rendered in (False, True):
        with pytest.raises(InvalidEventError) as refused:
            check_pattern({"a": leaf}, rendered=rendered)
        assert str(refused.value).startswith(text)


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        ({"$or": {"a": [1]}}, "match['$or']: expected a list of two patterns or more"),
        ({"$or": [{"a": [1]}]}, "match['$or']: expected a list of two patterns or more"),
        ({"$or": [{"a": [1]}, 5]}, "match['$or'][1]: expected a mapping of fields to allowed values, got 5"),
        ({"x": {"$or": [{"a": [1]}, {"b": []}]}}, "match['x']['$or'][1]['b']: an empty list allows nothing"),
        ({"$or": [{"prefix": "a"}, {"suffix": "b"}]}, "match['$or'][0]['prefix']: expected a field, got an operator"),
        ({"$or": [{"a": [1]}, {}]}, "match['$or'][1]: an empty mapping says nothing"),
        ({"$message": ["key"]}, "match['$message']: expected a mapping of key, headers, topic"),
        ({"$message": {"tags": [1]}}, "match['$message']['tags']: a message has key, headers"),
        ({"$message": {"body": [1]}}, "match['$message']['body']: expected a mapping of the body's fields"),
        ({"$message": {"$or": [{"key": [1]}, {"kee": [2]}]}}, "match['$message']['$or'][1]['kee']: a message has"),
        ({str(n): {"$or": [{"a": [1]}, {"b": [1]}]} for n in range(10)}, "match: its '$or' lists combine to 1024"),
    ],
    ids=str,
)
def test_what_is_refused_of_whole_patterns(pattern: Any, text: str) -> None:
    with pytest.raises(InvalidEventError) as refused:
        check_pattern(pattern)
    assert str(refused.value).startswith(text)


def test_a_pattern_that_is_nested_too_deep_is_refused() -> None:
    pattern: Any = [1]
    for _ in range(2000):
        pattern = {"a": pattern}
    with pytest.raises(InvalidEventError, match="nested 100 levels deep"):
        check_pattern(pattern)


class Reference:
    def resolve(self) -> str:
        raise NotImplementedError


@pytest.mark.parametrize("value", ["{{ ds }}", "{% if x %}y{% endif %}", Reference()], ids=str)
def test_values_that_come_later_are_let_through_until_then(value: Any) -> None:
    pattern = {
        "a": value,
        "b": [value, {"prefix": value}, {"suffix": {"equals-ignore-case": value}}, {"wildcard": value}],
        "c": [{"anything-but": value}, {"anything-but": [1, value]}, {"anything-but": {"prefix": [value]}}],
        "d": [{"numeric": [">=", value, "<", 5]}, {"cidr": value}, {"exists": value}, {"equals-ignore-case": value}],
        "$message": {"key": [value]},
    }
    check_pattern(pattern)
    with pytest.raises(InvalidEventError):
        check_pattern(pattern, rendered=True)
    if isinstance(value, Reference):
        check_pattern({"$or": value, "$message": value, "a": [value]})


@pytest.mark.parametrize(
    ("pattern", "document", "expected"),
    [
        ({"a": ["x"], "$or": [{"a": ["y"]}, {"b": [1]}]}, {"a": ["x", "y"]}, True),
        ({"a": ["x"], "$or": [{"a": ["y"]}, {"b": [1]}]}, {"a": "y"}, False),
        ({"$or": [{"a": [1], "b": [1]}, {"c": [1]}]}, {"a": 1, "c": 1}, True),
        ({"$or": [{"a": [1], "b": [1]}, {"c": [1]}]}, {"a": 1}, False),
        ({"$or": [{"a": [1]}, {"b": [1]}], "c": {"$or": [{"d": [1]}, {"e": [1]}]}}, {"b": 1, "c": {"e": 1}}, True),
        ({"$or": [{"a": [1]}, {"b": [1]}], "c": {"$or": [{"d": [1]}, {"e": [1]}]}}, {"b": 1, "c": {"f": 1}}, False),
        ({"i": {"x": [1], "$or": [{"y": [1]}, {"z": [1]}]}}, {"i": [{"x": 1}, {"y": 1}]}, False),
        ({"i": {"x": [1], "$or": [{"y": [1]}, {"z": [1]}]}}, {"i": [{"x": 2, "y": 1}, {"x": 1, "z": 1}]}, True),
        ({"$or": [{"a": [{"exists": False}]}, {"b": [1]}]}, {"b": 1, "a": 5}, True),
        ({"i": {"x": {"y": [1]}, "z": [2]}}, {"i": [[{"x": [{"y": 1}], "z": [[2]]}]]}, True),
        ({"i": {"x": [{"exists": False}]}}, {"i": []}, True),
        ({"i": {"x": [{"exists": False}]}}, {"i": 5}, True),
        ({"i": {"x": [{"exists": False}, 1], "y": [2]}}, {"i": [{"x": 5, "y": 2}, {"y": 2}]}, True),
        ({"i": {"x": [{"exists": False}, 1]}}, {"i": [{"x": 5}, {"y": 2}]}, False),
        ({"a": [{"exists": False}]}, [{"a": 1}, {"b": 1}], True),
        ({"a": [{"exists": False}]}, 5, False),
        ({"a": [{"exists": False}]}, [[], 5, None], False),
        ({"k": ["x"], "a": [{"prefix": "y"}]}, {"k": "x", "a": ["z", ["yz"]]}, True),
        ({"k": ["x"], "a": {"b": [{"prefix": "y"}]}}, {"k": "x", "a": [{"b": "z"}, {"b": "y"}]}, True),
        ({"k": ["x"], "a": {"b": [{"exists": False}]}}, {"k": "x", "a": [{"b": "z"}]}, False),
        ({"a.b": [1]}, {"a": {"b": 1}}, False),
        ({"a": {"prefix": ["x"]}}, {"a": {"prefix": "x"}}, True),
        ({"a": {"numeric": [{"exactly": ">"}, 5]}}, {"a": {"numeric": 5}}, True),
    ],
    ids=str,
)
def test_alternatives_and_arrays(pattern: dict[str, Any], document: Any, expected: bool) -> None:
    assert matches(pattern, document) is expected
    index: PatternIndex[str] = PatternIndex()
    index.add(pattern, "token")
    assert index.matching(document) == (["token"] if expected else [])
