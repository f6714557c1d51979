"""The selection is held to a reference that tries all combinations."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from itertools import combinations, product

from hypothesis import given, settings
from hypothesis import strategies as st

from event_triggers.condition import Condition
from event_triggers.selection import Candidate, Selection

ZERO = datetime(2026, 11, 22, tzinfo=timezone.utc)
Choice = Mapping[str, Sequence[Candidate]]


@dataclass(frozen=True)
class Group:
    """What is asked, and what is known of it so far."""

    counts: dict[str, int]
    condition: Condition
    sequence: bool = False
    within: timedelta | None = None
    given: frozenset[str] = frozenset()
    lost: frozenset[str] = frozenset()
    fixed: Choice = field(default_factory=dict)

    def selection(self, most: int = 1000) -> Selection:
        return Selection(self.counts, self.condition, sequence=self.sequence, within=self.within, most=most)

    @property
    def order(self) -> list[str]:
        return [name for name in self.counts if name in self.condition.names] if self.sequence else []

    def is_valid(self, choice: Choice) -> bool:
        """Whether these messages may stand together."""
        messages = [one for chosen in choice.values() for one in chosen]
        if any(len(set(chosen)) != self.counts[event] for event, chosen in choice.items()):
            return False
        if any(one.event != event for event, chosen in choice.items() for one in chosen):
            return False
        if len({one.value for one in messages}) > 1:
            return False
        stamps = [one.stamp for one in messages]
        if self.within is not None and stamps and max(stamps) - min(stamps) > self.within:
            return False
        chain = [[one.stamp for one in choice[event]] for event in self.order if event in choice]
        return all(max(earlier) <= min(later) for earlier, later in combinations(chain, 2))

    def choices(self, candidates: Sequence[Candidate]) -> Iterator[Choice]:
        """Everything that completes the group."""
        open_events = [event for event in self.counts if event not in self.given | self.lost]
        for size in range(1, len(open_events) + 1):
            for events in combinations(open_events, size):
                if self.condition.holds(self.given | set(events)):
                    of = [combinations([one for one in candidates if one.event == e], self.counts[e]) for e in events]
                    for chosen in product(*of):
                        choice = dict(zip(events, chosen, strict=True))
                        if self.is_valid(choice):
                            yield choice

    def can_complete(self, candidates: Sequence[Candidate]) -> bool:
        return self.condition.holds(self.given) or any(True for _ in self.choices(candidates))

    def decision(self, candidates: Sequence[Candidate]) -> Choice:
        """Without a sequence: the one decision that is right, by the words of the rule."""
        completed = min(
            (one for one in candidates if self.can_complete([c for c in candidates if c.arrival <= one.arrival])),
            key=lambda one: one.arrival,
        )
        mine = [one for one in candidates if one.value == completed.value]
        for start in sorted({one.stamp for one in mine}):
            inside = [c for c in mine if self.within is None or start <= c.stamp <= start + self.within]
            enough = {
                event: sorted((one for one in inside if one.event == event), key=lambda one: (one.stamp, one.arrival))
                for event in self.counts
                if event not in self.given | self.lost
            }
            found = {e: tuple(has[: self.counts[e]]) for e, has in enough.items() if len(has) >= self.counts[e]}
            if self.condition.holds(self.given | found.keys()):
                return found
        raise AssertionError("the group is not complete")


NAMES = ["a", "b", "c", "d"]
CONDITIONS = ["all", "any", "at_least(2)", "a and b or c", "a and (b or c)"]


@st.composite
def groups(draw: st.DrawFn, sequence: bool | None = None) -> Group:
    counts = {
        name: draw(st.sampled_from([1, 1, 1, 2])) for name in draw(st.permutations(NAMES[: draw(st.integers(1, 4))]))
    }
    in_sequence = draw(st.booleans()) if sequence is None else sequence
    text = "all" if in_sequence else draw(st.sampled_from(CONDITIONS))
    required = {name: draw(st.sampled_from([True, True, True, False])) for name in counts}
    if text not in ("all", "any"):
        required = {name: name != "d" for name in counts}
    needed = 3 if "c" in text else 2 if text.startswith("at_least") else 1
    if sum(required.values()) < needed or not any(required.values()):
        text, required = "all", dict.fromkeys(counts, True)
    return Group(counts, Condition.parse(text, required), in_sequence)


def candidates_of(group: Group, correlated: bool, most: int = 8) -> st.SearchStrategy[list[Candidate]]:
    value = st.sampled_from(["x", "y"]) if correlated else st.none()
    made = st.tuples(st.sampled_from(sorted(group.counts)), st.integers(0, 9), value)
    return st.lists(made, max_size=most).map(
        lambda those: [
            Candidate(event, f"m{n}", ZERO + timedelta(seconds=seconds), n, value, item=object())
            for n, (event, seconds, value) in enumerate(those)
        ]
    )


spans = st.integers(0, 6).map(lambda seconds: timedelta(seconds=seconds))


@st.composite
def whole(draw: st.DrawFn, sequence: bool | None = None) -> tuple[Group, list[Candidate]]:
    """A group that is decided as a whole, and what comes for it."""
    group = draw(groups(sequence))
    correlated = draw(st.booleans())
    within = draw(spans if not correlated else st.none() | spans)
    group = Group(group.counts, group.condition, group.sequence, within)
    return group, draw(candidates_of(group, correlated))


def chosen_by(selection: Selection) -> dict[str, tuple[Candidate, ...]]:
    return dict(selection.choose() or {})


@settings(max_examples=200, deadline=None)
@given(whole())
def test_it_completes_exactly_when_some_choice_does(made: tuple[Group, list[Candidate]]) -> None:
    group, candidates = made
    selection = group.selection()
    for number, candidate in enumerate(candidates, 1):
        assert selection.add(candidate) == []
        chosen = chosen_by(selection)
        assert selection.complete == bool(chosen) == group.can_complete(candidates[:number])
        if chosen:
            assert group.is_valid(chosen)
            assert group.condition.holds(chosen)
            assert selection.decided == chosen
            assert group.sequence or chosen == group.decision(candidates[:number])
            break
    assert not chosen_by(selection)


@settings(max_examples=100, deadline=None)
@given(whole(), st.data())
def test_marks_by_hand_and_lost_events(made: tuple[Group, list[Candidate]], data: st.DataObject) -> None:
    group, candidates = made
    given_at = data.draw(
        st.dictionaries(st.sampled_from(sorted(group.counts)), st.integers(0, len(candidates)), max_size=2)
    )
    lost_at = data.draw(
        st.dictionaries(st.sampled_from(sorted(group.counts)), st.integers(0, len(candidates)), max_size=1)
    )
    selection, known = group.selection(), list[Candidate]()
    for number in range(len(candidates) + 1):
        for event in [event for event, at in lost_at.items() if at == number and event not in group.given]:
            selection.lose(event)
            group = Group(
                group.counts, group.condition, group.sequence, group.within, group.given, group.lost | {event}
            )
        for event in [event for event, at in given_at.items() if at == number]:
            selection.give(event)
            given = group.given | {event}
            group = Group(group.counts, group.condition, group.sequence, group.within, given, group.lost - {event})
        chosen = chosen_by(selection)
        assert selection.complete == group.can_complete(known)
        assert not set(chosen) & (group.given | group.lost)
        if selection.complete:
            assert group.is_valid(chosen)
            if chosen and not group.sequence:
                assert chosen == group.decision(known)
            return
        if number < len(candidates):
            candidate = candidates[number]
            useless = candidate.event in group.given | group.lost
            assert selection.add(candidate) == ([candidate] if useless else [])
            known.append(candidate)
            chosen = chosen_by(selection)
            assert selection.complete == group.can_complete(known)
            if selection.complete:
                assert group.is_valid(chosen)
                return


@settings(max_examples=100, deadline=None)
@given(whole(), st.data())
def test_a_restart_continues_what_was_decided(made: tuple[Group, list[Candidate]], data: st.DataObject) -> None:
    group, candidates = made
    first = group.selection()
    for candidate in candidates:
        first.add(candidate)
    decided = chosen_by(first)
    recorded: dict[str, list[Candidate]] = {}
    for event, messages in decided.items():
        kept = data.draw(st.lists(st.sampled_from(messages), unique_by=lambda one: one.id))
        if kept:
            recorded[event] = kept
    second = group.selection()
    early = data.draw(st.booleans())
    again = data.draw(st.permutations(candidates))
    for step in ("taken", "added") if early else ("added", "taken"):
        if step == "taken":
            for event, kept in recorded.items():
                second.taken(event, kept)
        else:
            for arrival, one in enumerate(again):
                second.add(Candidate(one.event, one.id, one.stamp, arrival, one.value))
    chosen_by(second)
    assert second.complete == bool(decided)
    complete = second.decided
    assert group.condition.holds(complete) == bool(decided)
    assert group.is_valid(complete)
    whole_already = [event for event, kept in recorded.items() if len(kept) == group.counts[event]]
    if group.condition.holds(whole_already):
        # Nothing more is decided then: an optional event of which only a part was recorded stays as it is.
        assert set(complete) == set(whole_already)
        recorded = {event: recorded[event] for event in whole_already}
    for event, kept in recorded.items():
        assert {one.id for one in kept} <= {one.id for one in complete[event]}


@settings(max_examples=100, deadline=None)
@given(groups(sequence=True), st.data())
def test_a_sequence_is_decided_event_after_event(group: Group, data: st.DataObject) -> None:
    candidates = data.draw(candidates_of(group, correlated=False))
    restart = data.draw(st.integers(0, len(candidates)))
    selection, decided = group.selection(), dict[str, tuple[Candidate, ...]]()
    for number, candidate in enumerate(candidates, 1):
        selection.add(candidate)
        new = chosen_by(selection)
        assert not new.keys() & decided.keys()
        decided |= new
        assert group.is_valid(decided)
        order = [event in decided for event in group.order]
        assert order == sorted(order, reverse=True)
        assert selection.complete == all(order)
        if selection.complete:
            break
        for event in group.counts.keys() - set(group.order) - decided.keys():
            assert sum(one.event == event for one in candidates[:number]) < group.counts[event]
        following = next(event for event in group.order if event not in decided)
        last = max((one.stamp for event in group.order for one in decided.get(event, ())), default=ZERO)
        here = [one for one in candidates[:number] if one.event == following and one.stamp >= last]
        assert len(here) < group.counts[following]
        if number == restart:
            selection = group.selection()
            for event, messages in decided.items():
                selection.taken(event, messages)
            for one in candidates[:number]:
                selection.add(one)
            assert not chosen_by(selection)


@settings(max_examples=100, deadline=None)
@given(groups(sequence=False), st.data())
def test_without_any_of_it_events_are_decided_as_they_come(group: Group, data: st.DataObject) -> None:
    candidates = data.draw(candidates_of(group, correlated=False))
    selection, decided = group.selection(), dict[str, tuple[Candidate, ...]]()
    for number, candidate in enumerate(candidates, 1):
        selection.add(candidate)
        decided |= chosen_by(selection)
        came = {
            event: [one for one in candidates[:number] if one.event == event][:count]
            for event, count in group.counts.items()
        }
        assert {event: set(messages) for event, messages in decided.items()} == {
            event: set(messages) for event, messages in came.items() if len(messages) == group.counts[event]
        }
        assert selection.complete == group.condition.holds(decided)
        if selection.complete:
            break


@settings(max_examples=100, deadline=None)
@given(whole(), st.integers(1, 3), st.booleans())
def test_no_more_are_kept_than_wanted(made: tuple[Group, list[Candidate]], most: int, often: bool) -> None:
    group, candidates = made
    selection = group.selection(most)
    kept: dict[str, list[Candidate]] = {event: [] for event in group.counts}
    for candidate in candidates:
        gone = selection.add(candidate)
        selection.add(candidate)
        mine = kept[candidate.event]
        mine.append(candidate)
        assert gone == (mine[:1] if len(mine) > max(most, group.counts[candidate.event]) else [])
        del mine[: len(gone)]
        assert {event: list(selection.candidates(event)) for event in kept} == kept
        if often:
            chosen = chosen_by(selection)
            assert bool(chosen) == group.can_complete(everything(kept.values()))
            if chosen:
                break
    if not often:
        chosen = chosen_by(selection)
        assert bool(chosen) == group.can_complete(everything(kept.values()))
        assert group.is_valid(chosen)


def everything(kept: Iterable[Sequence[Candidate]]) -> list[Candidate]:
    return [one for candidates in kept for one in candidates]
