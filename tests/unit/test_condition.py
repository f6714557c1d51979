"""Conditions: what they mean, what is refused and how the refusal is worded."""

from __future__ import annotations

from contextlib import suppress
from itertools import chain, combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from event_triggers.condition import Condition, at_least
from event_triggers.condition_parts import Part, Parts, holds, make_parts, names_of, rest_of, written
from event_triggers.errors import InvalidEventError

GROUP = {"orders": True, "stock": True, "override": True}
NAMES = ["a", "b", "c", "d", "And", "all", "not-this.one"]


def parse(text: str, **events: bool) -> Condition:
    return Condition.parse(text, events or GROUP)


def satisfying(condition: Condition) -> set[str]:
    """The smallest sets of events with which it holds, as strings of the first letters."""
    names = sorted(condition.names)
    sets = [
        set(chosen)
        for chosen in chain.from_iterable(combinations(names, n) for n in range(len(names) + 1))
        if condition.holds(chosen)
    ]
    return {" ".join(sorted(one)) for one in sets if not any(other < one for other in sets)}


@pytest.mark.parametrize(
    ("text", "smallest"),
    [
        ("all", {"a b c"}),
        ("ALL", {"a b c"}),
        (" any ", {"a", "b", "c"}),
        (at_least(1), {"a", "b", "c"}),
        (at_least(2), {"a b", "a c", "b c"}),
        ("At_Least ( 3 )", {"a b c"}),
        ("(a and b) or c", {"a b", "c"}),
        ("a and b or c", {"a b", "c"}),
        ("c or a AND b", {"a b", "c"}),
        ("a and (b or c)", {"a b", "a c"}),
        ("((a)) and((b)or(c))", {"a b", "a c"}),
        ("all(a, b) or any(c)", {"a b", "c"}),
        ("a and any(b, c)", {"a b", "a c"}),
        ("at_least(2, a, b, c)", {"a b", "a c", "b c"}),
        ("at_least(1, a and b, c)", {"a b", "c"}),
        ("at_least(2, a or b, c)", {"a c", "b c"}),
        ("'a' and \"b\" or c", {"a b", "c"}),
        ("a and a and b and c", {"a b c"}),
    ],
)
def test_what_it_means(text: str, smallest: set[str]) -> None:
    condition = Condition.parse(text, {"a": True, "b": True, "c": True})
    assert satisfying(condition) == smallest
    assert condition.text == text
    assert condition.names == {"a", "b", "c"}
    assert condition.is_all == condition.no_choice == (smallest == {"a b c"})


def test_names_that_are_words_of_the_language() -> None:
    condition = Condition.parse(
        "'all' and 'Or' or x.y-z_1 and 7 and é", dict.fromkeys(["all", "Or", "x.y-z_1", "7", "é"], True)
    )
    assert condition.holds({"all", "Or"})
    assert condition.holds({"x.y-z_1", "7", "é"})
    assert not condition.holds({"all", "7"})
    assert condition.needed({"é"}) == "('all' and 'Or') or (x.y-z_1 and 7)"


def test_optional_events_are_not_looked_at() -> None:
    condition = parse("all", orders=True, note=False, stock=True)
    assert condition.names == {"orders", "stock"}
    assert condition.holds(["orders", "stock"])
    assert not condition.is_all
    assert condition.no_choice
    assert parse("any", orders=True, note=False).holds({"note"}) is False


def test_what_is_still_needed() -> None:
    condition = parse("(orders and stock) or override")
    assert condition.needed([]) == "(orders and stock) or override"
    assert condition.needed(["stock"]) == "orders or override"
    assert condition.needed([], ["override"]) == "orders and stock"
    assert condition.needed(["orders"], ["override"]) == "stock"
    assert condition.needed(["override"]) == ""
    assert condition.needed([], ["override", "stock"]) == "(orders and stock) or override"
    assert parse("all").needed(["stock"]) == "orders and override"
    assert parse(at_least(2)).needed([]) == "at_least(2, orders, stock, override)"
    assert parse(at_least(2)).needed(["stock"]) == "orders or override"
    assert parse("orders and (stock or override)").needed(["x"]) == "orders and (stock or override)"


def test_whether_it_can_still_hold() -> None:
    condition = parse("orders and (stock or override)")
    assert condition.can_hold([])
    assert condition.can_hold({"stock"})
    assert not condition.can_hold({"stock", "override"})
    assert not condition.can_hold(("orders",))
    assert condition.can_hold(["unknown"])


@pytest.mark.parametrize("n", [0, -1, True, 1.0, "2", None])
def test_at_least_takes_whole_numbers(n: object) -> None:
    with pytest.raises(InvalidEventError, match="at_least takes a whole number from 1"):
        at_least(n)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "condition '': it is empty; write 'all', 'any', at_least(2), or an expression such as orders or stock"),
        ("   ", "it is empty"),
        ("(orders and stok) or override", "no event 'stok' (position 13); did you mean 'stock'?"),
        ("orders and zzz or stock", "no event 'zzz' (position 12); the group has 'orders', 'stock', 'override'"),
        ("Orders and stock and override", "no event 'Orders' (position 1); did you mean 'orders'?"),
        ("orders and", "expected an event's name or '(' at its end, position 11"),
        ("orders stock", "expected 'and', 'or' or the end at position 8, found 'stock'"),
        ("orders and or stock", "expected an event's name or '(' at position 12, found 'or'"),
        ("(orders and stock", "expected ')' to close the bracket at its end, position 18"),
        ("orders and stock)", "expected 'and', 'or' or the end at position 17, found ')'"),
        ("()", "expected an event's name or '(' at position 2, found ')'"),
        ("''", "no event '' (position 1)"),
        ("any(orders, stock", "expected ')' or ',' in the list of any at its end"),
        ("any()", "expected an event's name or '(' at position 5, found ')'"),
        ("any(orders,)", "expected an event's name or '(' at position 12, found ')'"),
        ("orders & stock", "'&' is no part of a condition; write 'and', at position 8"),
        ("orders ? stock", "'?' is no part of a condition, at position 8"),
        ("orders and 'stock", "the quote is not closed, at position 12"),
        ("not orders", "there is no 'not'; nothing tells that an event will not come"),
        ("orders and not stock", "there is no 'not'"),
        ("orders not stock", "there is no 'not'"),
        ("!orders", "there is no 'not'"),
        ("at_least(4)", "at_least(4) at position 10 can never hold, the group has only 3 required events"),
        ("at_least(0)", "at_least(0) at position 10 asks for nothing"),
        ("at_least(-1)", "expected a whole number, how many must come, at position 10, found '-1'"),
        ("at_least(two)", "expected a whole number, how many must come, at position 10, found 'two'"),
        ("at_least()", "expected a whole number, how many must come, at position 10, found ')'"),
        ("at_least(" + "9" * 5000 + ")", "can never hold"),
        (
            "at_least(4, orders, stock, override)",
            "at_least(4, ...) at position 1 can never hold, it lists only 3 events",
        ),
        ("at_least(2, orders, orders) or stock or override", "at_least at position 1 holds the same thing twice"),
        ("orders and at_least(1)", "list its events: at_least(2, orders, stock, override)"),
        ("all or override", "'all' at position 1 stands for the whole group"),
        ("orders or any", "list its events: any(orders, stock, override)"),
        ("at_least(2) or orders", "stands for the whole group"),
        ("orders or override", "does not name the event 'stock', which would never be waited for; name it, or say"),
        ("(" * 51 + "orders" + ")" * 51, "more than 50 brackets inside each other"),
        ("any(" * 5000 + "orders" + ")" * 5000, "it is longer than 20000 characters"),
        ("any(" * 1000 + "orders" + ")" * 1000, "more than 50 brackets inside each other"),
    ],
)
def test_what_is_refused(text: str, says: str) -> None:
    with pytest.raises(InvalidEventError) as caught:
        parse(text)
    assert says in str(caught.value)
    assert str(caught.value).startswith(("condition '", 'condition "'))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_an_optional_event_cannot_be_named() -> None:
    with pytest.raises(InvalidEventError, match=r"'note' at position 11 is required=False, so nothing can wait for it"):
        parse("orders or note", orders=True, note=False)


def test_a_word_that_is_also_an_event_must_be_quoted() -> None:
    with pytest.raises(InvalidEventError, match=r"or write 'any' in quotes for the event of that name"):
        Condition.parse("orders or any", {"orders": True, "any": True})


@pytest.mark.parametrize(
    ("events", "why"), [({}, "the group has no events"), ({"a": False}, "all events of the group are")]
)
def test_a_group_with_nothing_to_wait_for(events: dict[str, bool], why: str) -> None:
    with pytest.raises(InvalidEventError, match=why):
        Condition.parse("all", events)


def test_a_condition_is_text() -> None:
    with pytest.raises(InvalidEventError, match="condition must be a string such as"):
        Condition.parse(2, GROUP)  # type: ignore[arg-type]


def test_conditions_are_immutable_and_equal_by_what_they_are() -> None:
    condition = parse("all")
    with pytest.raises(AttributeError):
        condition.text = "any"  # type: ignore[misc]
    assert condition == parse("all")
    assert len({condition, parse("all"), parse("any")}) == 2


def test_long_lists_are_no_deep_nesting() -> None:
    events = {f"event_{n}": True for n in range(500)}
    assert not Condition.parse(" and ".join(events), events).holds(list(events)[1:])
    assert Condition.parse(" or ".join(events), events).holds(["event_499"])


def parts_of(inner: st.SearchStrategy[Part]) -> st.SearchStrategy[Part]:
    lists = st.lists(inner, min_size=1, max_size=4, unique=True)
    return lists.flatmap(lambda parts: st.builds(make_parts, st.integers(1, len(parts)), st.just(parts)))


conditions = st.recursive(st.sampled_from(NAMES), parts_of, max_leaves=8)
some_names = st.sets(st.sampled_from(NAMES))


def plain(part: Part, come: set[str]) -> bool:
    """What it means, told in another way: some choice of as many parts as it asks for, each of which holds."""
    if not isinstance(part, Parts):
        return part in come
    return any(all(plain(one, come) for one in chosen) for chosen in combinations(part.parts, part.n))


@settings(deadline=None)
@given(conditions, some_names, st.sampled_from(NAMES))
def test_more_events_never_undo_it(part: Part, come: set[str], further: str) -> None:
    condition = Condition.parse(written(part), dict.fromkeys(names_of(part), True))
    assert condition.holds(condition.names)
    assert not condition.holds([])
    assert condition.holds(come) <= condition.holds(come | {further})
    assert condition.can_hold(come | {further}) <= condition.can_hold(come)


@settings(deadline=None)
@given(conditions, some_names)
def test_what_is_written_is_read_again(part: Part, come: set[str]) -> None:
    condition = Condition.parse(written(part), dict.fromkeys(names_of(part), True))
    assert condition.holds(come) == holds(part, come) == plain(part, come)
    assert condition.needed([]) == written(part)


@settings(deadline=None)
@given(conditions, some_names, some_names, some_names)
def test_what_is_left_is_what_lacks(part: Part, come: set[str], lost: set[str], later: set[str]) -> None:
    lost -= come
    rest = rest_of(part, come, lost)
    left = rest if isinstance(rest, bool) else holds(rest, later - lost)
    assert left == holds(part, come | (later - lost))
    assert isinstance(rest, bool) or not set(names_of(rest)) & (come | lost)


@settings(deadline=None)
@given(st.text(alphabet="ab ,()'2_", max_size=12) | st.text(max_size=12))
def test_whatever_is_written_is_read_or_refused(text: str) -> None:
    with suppress(InvalidEventError):
        assert Condition.parse(text, {"a": True, "b": True}).holds({"a", "b"})
