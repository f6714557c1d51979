"""MQTT topic filters."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from event_triggers.sources._mqtt_topics import filter_error, matches

MATCHING = [
    ("a/b", "a/b", True),
    ("a/b", "a/b/c", False),
    ("a/b/c", "a/b", False),
    ("a/+", "a/b", True),
    ("a/+", "a/", True),
    ("a/+", "a", False),
    ("a/+/c", "a/b/c", True),
    ("a/+/c", "a//c", True),
    ("+", "a", True),
    ("+", "/a", False),
    ("/+", "/a", True),
    ("+/+", "/a", True),
    ("#", "a/b/c", True),
    ("#", "/", True),
    ("a/#", "a", True),
    ("a/#", "a/", True),
    ("a/#", "ab", False),
    ("+/b/#", "a/b/c/d", True),
    ("#", "$SYS/load", False),
    ("+/load", "$SYS/load", False),
    ("$SYS/#", "$SYS/load", True),
    ("$SYS/+", "$SYS/load", True),
    ("+/$x", "a/$x", True),
    ("$share/team/a/+", "a/b", True),
    ("$share/team/a/+", "b/b", False),
    ("$share/team/#", "$SYS/load", False),
    ("$share/team//", "/", True),
    ("A/b", "a/b", False),
    ("stra\u00dfe/+", "stra\u00dfe/1", True),
]


@pytest.mark.parametrize(("topic_filter", "topic", "expected"), MATCHING)
def test_matching(topic_filter: str, topic: str, expected: bool) -> None:
    assert filter_error(topic_filter) is None
    assert matches(topic_filter, topic) is expected


@pytest.mark.parametrize(
    "topic_filter",
    [
        "",
        "a#",
        "a/#/b",
        "#/a",
        "a+/b",
        "a/+b",
        "++",
        "a\0b",
        "x" * 65_536,
        "$share",
        "$share/",
        "$share/x",
        "$share//a",
        "$share/x/",
        "$share/+/a",
        "$share/x/a#",
    ],
)
def test_what_is_no_filter(topic_filter: str) -> None:
    assert filter_error(topic_filter)


LEVELS = st.lists(st.sampled_from(["", "a", "b", "$c"]), min_size=1, max_size=4)


@given(
    wanted=st.lists(st.sampled_from(["", "a", "b", "$c", "+"]), min_size=1, max_size=4),
    rest=st.booleans(),
    topic=LEVELS,
)
def test_filters_are_patterns(wanted: list[str], rest: bool, topic: list[str]) -> None:
    """As a regular expression says it, which is another way to do the same."""
    topic_filter = "/".join([*wanted, *(["#"] if rest else [])])
    pattern = "/".join("[^/]*" if level == "+" else re.escape(level) for level in wanted) + ("(/.*)?" if rest else "")
    hidden = wanted[0] == "+" and topic[0].startswith("$")
    assert matches(topic_filter, "/".join(topic)) is (re.fullmatch(pattern, "/".join(topic)) is not None and not hidden)
