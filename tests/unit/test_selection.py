"""The selection, case by case, and what it costs. What holds in general is in tests/property."""

from __future__ import annotations

import sys
from collections.abc import Callable, Hashable
from datetime import datetime, timedelta, timezone
from itertools import count
from types import FrameType

import pytest

from event_triggers.condition import Condition
from event_triggers.errors import InvalidEventError
from event_triggers.selection import Candidate, OpenValues, Selection

ZERO = datetime(2026, 11, 22, tzinfo=timezone.utc)
_arrivals = count()


def came(event: str, seconds: float = 0, value: Hashable | None = None, identity: str = "") -> Candidate:
    arrival = next(_arrivals)
    return Candidate(event, identity or f"m{arrival}", ZERO + timedelta(seconds=seconds), arrival, value)


def selecting(
    condition: str = "all",
    *,
    sequence: bool = False,
    within: float | None = None,
    most: int = 1000,
    optional: str = "",
    **counts: int,
) -> Selection:
    return Selection(
        counts,
        Condition.parse(condition, {name: name not in optional.split() for name in counts}),
        sequence=sequence,
        within=None if within is None else timedelta(seconds=within),
        most=most,
    )


def test_values_are_kept_apart_until_one_is_complete() -> None:
    selection = selecting(a=1, b=2, c=1, optional="c")
    assert selection.values() == OpenValues(0, None, ())
    first, note = came("a", value="x"), came("c", value="x")
    for one in (first, note, came("a", value="y"), came("b", value="y")):
        assert selection.add(one) == []
        assert selection.choose() is None
    assert selection.values() == OpenValues(2, "x", ("a", "c"))
    earlier, later = came("b", 5, "x"), came("b", 9, "x")
    selection.add(later)
    assert not selection.choose()
    selection.add(earlier)
    assert selection.choose() == {"a": (first,), "b": (earlier, later), "c": (note,)}
    assert selection.complete
    assert selection.decided["b"] == (earlier, later)
    assert not selection.needs("a")
    assert selection.choose() is None
    assert [one.value for one in selection.candidates("b")] == ["y"]


def test_an_optional_event_without_enough_messages_stays_out() -> None:
    selection = selecting(a=1, note=2, optional="note")
    selection.add(came("note", value=1))
    message = came("a", value=1)
    selection.add(message)
    assert selection.choose() == {"a": (message,)}


def test_true_is_not_one() -> None:
    selection = selecting(a=1, b=1)
    selection.add(came("a", value=True))
    selection.add(came("b", value=1))
    assert selection.choose() is None
    assert selection.values().count == 2
    one = came("a", value=1.0)
    selection.add(one)
    assert set(selection.choose() or ()) == {"a", "b"}


def test_a_mark_by_hand_completes_the_value_that_was_first() -> None:
    selection = selecting(a=1, b=1, c=1)
    for one in (came("a", value="x"), came("a", value="y"), came("b", value="y"), came("b", value="x")):
        selection.add(one)
    assert selection.choose() is None
    selection.give("c")
    assert {one.value for chosen in (selection.choose() or {}).values() for one in chosen} == {"y"}
    assert selection.complete


def test_within_takes_the_earliest_messages_of_the_earliest_window() -> None:
    selection = selecting(a=1, b=2, within=10)
    a_early, a_late, b_one, b_two = came("a", 0), came("a", 12), came("b", 8), came("b", 13)
    for one in (a_early, b_two, b_one):
        selection.add(one)
        assert selection.choose() is None
    selection.add(a_late)
    assert selection.choose() == {"a": (a_late,), "b": (b_one, b_two)}


@pytest.mark.parametrize(("apart", "complete"), [(10, True), (10.000001, False)])
def test_both_ends_of_the_span_count(apart: float, complete: bool) -> None:
    selection = selecting(a=1, b=1, within=10)
    selection.add(came("b", apart))
    selection.add(came("a", 0))
    assert bool(selection.choose()) is complete
    assert selection.complete is complete


def test_a_restart_stays_in_its_window_and_value() -> None:
    selection = selecting(a=1, b=1, c=2, within=10)
    kept = came("a", 20, "x"), came("c", 25, "x")
    selection.taken("a", kept[:1])
    selection.taken("c", kept[1:])
    assert selection.needs("c")
    assert selection.add(came("c", 25, "x", kept[1].id)) == []
    other = came("b", 21, "y")
    assert selection.add(other) == [other]
    for one in (came("b", 14, "x"), came("b", 30.5, "x"), came("c", 14, "x"), came("c", 31, "x")):
        assert selection.add(one) == []
        assert selection.choose() is None
    fits = came("b", 15, "x"), came("c", 16, "x")
    selection.add(fits[0])
    selection.add(fits[1])
    assert selection.choose() == {"b": (fits[0],), "c": (fits[1], kept[1])}
    assert selection.complete


def test_a_sequence_goes_event_by_event() -> None:
    selection = selecting(first=1, second=2, note=1, third=1, sequence=True, optional="note")
    third, early = came("third", 50), came("second", 5)
    selection.add(third)
    selection.add(early)
    assert not selection.choose()
    note, first = came("note", 99), came("first", 10)
    selection.add(note)
    assert selection.choose() == {"note": (note,)}
    selection.add(first)
    assert selection.choose() == {"first": (first,)}
    twice = came("second", 10), came("second", 50)
    selection.add(twice[1])
    assert not selection.choose()
    selection.add(twice[0])
    assert selection.choose() == {"second": twice, "third": (third,)}
    assert selection.complete
    assert list(selection.candidates("second")) == [early]


@pytest.mark.parametrize("within", [None, 5])
def test_a_mark_by_hand_imposes_no_time(within: float | None) -> None:
    selection = selecting(a=1, b=2, c=1, sequence=True, within=within)
    selection.taken("b", [came("b", 70)])
    selection.give("b")
    messages = came("a", 80), came("c", 81)
    selection.add(messages[1])
    selection.add(messages[0])
    assert selection.choose() == {"a": messages[:1], "c": messages[1:]}


def test_what_is_fixed_bounds_the_events_before_it() -> None:
    selection = selecting(a=1, b=2, c=1, sequence=True)
    fixed = came("b", 50)
    selection.taken("b", [fixed])
    selection.add(came("a", 51))
    assert not selection.choose()
    a, b, c = came("a", 40), came("b", 45), came("c", 49)
    selection.add(a)
    assert selection.choose() == {"a": (a,)}
    selection.add(c)
    selection.add(b)
    assert selection.choose() == {"b": (b, fixed)}
    late = came("c", 50)
    selection.add(late)
    assert selection.choose() == {"c": (late,)}


def test_messages_of_the_same_stamp_are_in_order() -> None:
    selection = selecting(a=1, b=1, sequence=True)
    selection.taken("b", [came("b", 50)])
    selection.add(came("a", 50.000001))
    assert not selection.choose()
    same = came("a", 50)
    selection.add(same)
    assert selection.choose() == {"a": (same,)}


def test_an_optional_event_outside_the_window_changes_nothing() -> None:
    selection = selecting(a=1, b=1, note=1, within=10, optional="note")
    for one in (came("note", 1000), came("a", 0), came("b", 20)):
        selection.add(one)
        assert selection.choose() is None
    selection.add(came("a", 15))
    assert set(selection.choose() or ()) == {"a", "b"}


def test_the_window_holds_what_is_fixed() -> None:
    selection = selecting(a=1, b=1, note=1, within=10, optional="note")
    selection.taken("a", [came("a", 0)])
    selection.add(came("note", 14))
    selection.add(came("b", 5))
    assert set(selection.choose() or ()) == {"b"}


def test_a_sequence_within_a_span_tries_every_beginning() -> None:
    selection = selecting(a=1, b=1, c=1, sequence=True, within=10)
    for one in (came("a", 0), came("b", 6), came("c", 11), came("c", 3), came("b", 4)):
        selection.add(one)
        assert selection.choose() is None
    second = came("a", 5)
    selection.add(second)
    assert {event: chosen[0].stamp.second for event, chosen in (selection.choose() or {}).items()} == {
        "a": 5,
        "b": 6,
        "c": 11,
    }


def test_the_same_message_counts_once() -> None:
    selection = selecting(a=2)
    selection.add(came("a", identity="same"))
    assert selection.add(came("a", 7, identity="same")) == []
    assert selection.choose() is None
    selection.add(came("a"))
    assert selection.complete is False
    assert selection.choose()
    assert selection.add(came("a", identity="same")) == []
    more = came("a")
    assert selection.add(more) == [more]


def test_the_oldest_is_let_go_and_may_come_again() -> None:
    selection = selecting(a=1, b=1, most=2)
    a = [came("a", value=n) for n in range(3)]
    assert [selection.add(one) for one in a] == [[], [], [a[0]]]
    selection.add(came("b", value=0))
    assert selection.choose() is None
    assert selection.values().count == 3
    assert selection.add(a[0]) == [a[1]]
    assert set(selection.choose() or ()) == {"a", "b"}


def test_as_many_are_kept_as_the_event_takes() -> None:
    selection = selecting(a=3, most=1)
    assert [selection.add(came("a", value="x")) for _ in range(3)] == [[], [], []]
    assert selection.choose()


def test_what_is_let_go_can_undo_what_was_not_chosen_yet() -> None:
    selection = selecting(a=1, b=1, most=1)
    selection.add(came("a", value="x"))
    selection.add(came("b", value="x"))
    selection.add(came("a", value="y"))
    assert selection.choose() is None
    selection.add(came("b", value="y"))
    assert {one.value for chosen in (selection.choose() or {}).values() for one in chosen} == {"y"}


def test_what_was_undone_can_be_complete_again() -> None:
    selection = selecting(a=1, b=1, most=1)
    selection.add(came("a", value="x"))
    selection.add(came("b", value="x"))
    selection.add(came("a", value="y"))
    assert selection.choose() is None
    selection.add(came("a", value="x"))
    assert {one.value for chosen in (selection.choose() or {}).values() for one in chosen} == {"x"}


def test_a_lost_event_takes_its_candidates_along() -> None:
    selection = selecting("any", a=1, b=1, within=5)
    message = came("a")
    selection.add(message)
    selection.lose("a")
    assert selection.choose() is None
    assert list(selection.candidates("a")) == [message]
    selection.give("a")
    assert selection.complete


def test_what_is_decided_cannot_be_lost_or_given() -> None:
    selection = selecting(a=1, b=1)
    message = came("a")
    selection.add(message)
    assert selection.choose() == {"a": (message,)}
    selection.lose("a")
    selection.give("a")
    assert selection.decided == {"a": (message,)}
    selection.give("b")
    assert selection.complete


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: selecting("any", a=1, b=1, sequence=True), "sequence=True needs condition='all'.* got 'any'"),
        (lambda: selecting(a=1, within=-1), "within must not be negative"),
    ],
)
def test_what_is_refused(make: Callable[[], Selection], says: str) -> None:
    with pytest.raises(InvalidEventError, match=says):
        make()


def operations(work: Callable[[], object]) -> int:
    """How many functions are called, of Python's own as well."""
    seen = 0

    def look(frame: FrameType, kind: str, argument: object) -> None:
        nonlocal seen
        seen += kind in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(look)
    try:
        work()
    finally:
        sys.setprofile(before)
    return seen


EVENTS = [f"event_{n}" for n in range(20)]
# When the n-th message of an event comes (the event by its place), and its correlation value. None of these groups is
# ever complete: the last event comes long after the others; the events take turns, in more time than the span; they
# come in the wrong order, so that a sequence needs a round of them for each event; they agree on no value.
SHAPES: dict[str, Callable[[int, int], tuple[float, Hashable | None]]] = {
    "apart": lambda n, place: (n * 0.05 + (10**6 if place == 19 else 0), None),
    "turns": lambda n, place: (n * 100 + place * 5, None),
    "sequence": lambda n, place: (n * 8 - place * 0.1, None),
    "values": lambda n, place: (n, (n // 2, place == 19)),
}


def operations_of_one_more(shape: str, crowd: int) -> float:
    required = Condition.parse("all", dict.fromkeys(EVENTS, True))
    counts = dict.fromkeys(EVENTS, 1 if shape == "turns" else 2)
    within = None if shape == "values" else timedelta(seconds=60)
    selection = Selection(counts, required, sequence=shape == "sequence", within=within)

    def add_and_choose(n: int) -> None:
        for place, event in enumerate(EVENTS):
            seconds, value = SHAPES[shape](n, place)
            selection.add(came(event, seconds, value))
            assert not selection.choose()

    for n in range(crowd - 1):
        add_and_choose(n)
    return operations(lambda: add_and_choose(crowd - 1)) / len(EVENTS)


@pytest.mark.parametrize("shape", SHAPES)
def test_one_more_costs_the_same_however_many_there_are(shape: str) -> None:
    few, many = operations_of_one_more(shape, 40), operations_of_one_more(shape, 1000)
    assert many < 1.2 * few
    assert many < 1000
