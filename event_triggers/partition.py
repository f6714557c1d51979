"""The candidates of one correlation value by their time stamps, and where in time they make the group complete.

Stamps are whole microseconds here. A :class:`Frame` says what is asked, and :class:`Partition` finds it: for a window
that begins at some moment, each open event *ends* with the last of the messages it lacks (of a sequence: those at or
after the end of the event before). The group is complete in the window when the condition holds of the events that end
inside it. Moving the beginning on only moves ends on, so from a window that will not do the search goes at once to the
next one in which another event can end. That is why a look costs no more where there are many candidates: a crowded
event ends in every window, and only sparse ones move the search on.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from typing import Any

from event_triggers.condition import Condition

__all__ = ["AT_ANY_TIME", "NEVER", "Candidate", "Chosen", "Frame", "Link", "Partition", "micros"]

AT_ANY_TIME = -(10**20)
NEVER = 10**20
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_MICROSECOND = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A message that has come for an event and may be chosen for it."""

    event: str
    id: str
    stamp: datetime
    """The broker's time stamp, else when it was received; aware."""
    arrival: int
    """The order of arrival here; it grows."""
    value: Hashable | None
    """The correlation value; ``None`` when the group does not correlate."""
    item: Any = field(default=None, compare=False, repr=False)
    """The caller's own."""


Chosen = dict[str, tuple[Candidate, ...]]


def micros(stamp: datetime) -> int:
    """Microseconds since 1970."""
    return (stamp - _EPOCH) // _MICROSECOND


@dataclass(frozen=True, slots=True)
class Link:
    """An event's place in a sequence."""

    event: str
    fixed_until: int
    """The stamp of its last message that is fixed already."""
    not_after: int
    """The first stamp that is fixed of the events behind it."""


@dataclass(frozen=True, slots=True)
class Frame:
    """What is asked of a partition: the group, and what of it is settled already."""

    condition: Condition
    come: frozenset[str]
    needs: Mapping[str, int]
    """The open events, each with how many messages it lacks."""
    sequence: tuple[Link, ...]
    within: int | None
    earliest: int = AT_ANY_TIME
    """A window that holds what is fixed begins here at the earliest,"""
    latest: int = NEVER
    """and here at the latest."""


class _Line:
    """The candidates of one event, by stamp and arrival."""

    __slots__ = ("items", "keys")

    def __init__(self) -> None:
        self.keys: list[tuple[int, int]] = []
        self.items: list[Candidate] = []

    def add(self, candidate: Candidate) -> None:
        key = (micros(candidate.stamp), candidate.arrival)
        at = bisect_left(self.keys, key)
        self.keys.insert(at, key)
        self.items.insert(at, candidate)

    def remove(self, candidate: Candidate) -> None:
        at = bisect_left(self.keys, (micros(candidate.stamp), candidate.arrival))
        while self.items[at].id != candidate.id:
            at += 1
        del self.keys[at], self.items[at]

    def place(self, stamp: int) -> int:
        """Where the candidates of this stamp and later ones begin."""
        return bisect_left(self.keys, (stamp, AT_ANY_TIME))


class Partition:
    """The candidates of one correlation value."""

    def __init__(self, value: Hashable | None) -> None:
        self.value = value
        self.ready: int | None = None
        """The arrival that made it complete; ``None`` when nothing has yet."""
        self.enough: set[str] = set()
        """The events that have as many candidates as they lack, wherever in time."""
        self._lines: dict[str, _Line] = {}

    def __bool__(self) -> bool:
        return bool(self._lines)

    def __iter__(self) -> Iterator[Candidate]:
        for line in self._lines.values():
            yield from line.items

    def add(self, candidate: Candidate, frame: Frame) -> None:
        line = self._lines.setdefault(candidate.event, _Line())
        line.add(candidate)
        if len(line.items) >= frame.needs[candidate.event]:
            self.enough.add(candidate.event)

    def remove(self, candidate: Candidate, frame: Frame) -> None:
        line = self._lines[candidate.event]
        line.remove(candidate)
        if len(line.items) < frame.needs.get(candidate.event, 1):
            self.enough.discard(candidate.event)
        if not line.items:
            del self._lines[candidate.event]

    def completes(self, candidate: Candidate, frame: Frame) -> bool:
        """Whether the group is complete now, when it was not before this candidate was added."""
        if candidate.event not in frame.condition.names or not self._may_hold(frame):
            return False
        if frame.within is None:
            return self._first(frame, AT_ANY_TIME, AT_ANY_TIME) is not None
        stamp = micros(candidate.stamp)
        return self._first(frame, stamp - frame.within, stamp) is not None

    def completed_at(self, frame: Frame) -> int | None:
        """The arrival that makes the group complete, of those that are here; looks at all of them."""
        if not self._may_hold(frame) or self._first(frame, AT_ANY_TIME, NEVER) is None:
            return None
        again = Partition(self.value)
        for candidate in sorted(self, key=lambda one: one.arrival):
            again.add(candidate, frame)
            if again.completes(candidate, frame):
                return candidate.arrival
        return None

    def choose(self, frame: Frame) -> Chosen | None:
        """The earliest messages of the earliest window in which the group is complete; ``None`` when it is in none."""
        begin = self._first(frame, AT_ANY_TIME, NEVER)
        return None if begin is None else self.choose_from(begin, frame)

    def choose_from(self, begin: int, frame: Frame) -> Chosen:
        """The earliest messages of each event that has all of its own in this window."""
        until = NEVER if frame.within is None else begin + frame.within
        return {
            event: tuple(self._lines[event].items[place : place + frame.needs[event]])
            for event, (end, place) in self._ends(frame, begin).items()
            if end <= until
        }

    def _may_hold(self, frame: Frame) -> bool:
        return frame.condition.holds(frame.come | self.enough)

    def _first(self, frame: Frame, earliest: int, latest: int) -> int | None:
        """Where the first window begins in which the group is complete. It begins with a message."""
        begin, latest = max(earliest, frame.earliest), min(latest, frame.latest)
        if frame.within is None:
            return AT_ANY_TIME if frame.condition.holds(frame.come | self._ends(frame, AT_ANY_TIME).keys()) else None
        while begin <= latest:
            ends = self._ends(frame, begin)
            if not frame.condition.holds(frame.come | ends.keys()):
                return None  # however far the window goes, and those that begin later have less
            until = begin + frame.within
            if frame.condition.holds(frame.come | {event for event, (end, _) in ends.items() if end <= until}):
                return self._message_from(begin, frame)
            wanted = (end for event, (end, _) in ends.items() if end > until and event in frame.condition.names)
            begin = (max(wanted) if frame.condition.no_choice else min(wanted)) - frame.within
        return None

    def _message_from(self, begin: int, frame: Frame) -> int:
        firsts = [frame.latest]
        for event in frame.needs:
            line = self._lines.get(event)
            place = line.place(begin) if line else 0
            if line and place < len(line.keys):
                firsts.append(line.keys[place][0])
        return min(firsts)

    def _ends(self, frame: Frame, begin: int) -> dict[str, tuple[int, int]]:
        """Of each open event that can end: the stamp with which it does, and the place of its first message."""
        ends: dict[str, tuple[int, int]] = {}
        chained = {link.event for link in frame.sequence}
        for event in frame.needs:
            if event not in chained:
                self._end(frame, event, begin, NEVER, ends)
        after = begin
        for link in frame.sequence:
            if link.event in frame.needs and not self._end(frame, link.event, after, link.not_after, ends):
                break
            after = max(after, link.fixed_until, ends.get(link.event, (after, 0))[0])
        return ends

    def _end(self, frame: Frame, event: str, after: int, not_after: int, ends: dict[str, tuple[int, int]]) -> bool:
        line = self._lines.get(event)
        if line is None:
            return False
        place = line.place(after)
        last = place + frame.needs[event] - 1
        if last >= len(line.keys) or line.keys[last][0] > not_after:
            return False
        ends[event] = (line.keys[last][0], place)
        return True
