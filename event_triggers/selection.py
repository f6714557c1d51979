"""Selection: which of the messages that have come make a group complete together.

Each message is added as a :class:`Candidate`; :meth:`Selection.choose` then says which events are decided now, and with
which messages. Nothing here waits, keeps time or speaks to anybody.

* **Correlation.** Candidates of different values never complete the group together. Of several values that do, the one
  that was complete first is taken.
* **Within.** All messages that are chosen lie within this span of each other, by their stamps. It is the earliest such
  window, and the earliest messages in it.
* **Sequence.** An event's messages are stamped at or after the last message of the event before. Optional events stand
  outside. It needs a condition that wants each of its events.

With correlation or within nothing is decided before the condition holds; then every event is that has its messages in
the same value and window, optional ones too. Else each event is decided as soon as it has its messages, of a sequence
one after the other, and what is decided stays: a message of an earlier stamp that comes later changes nothing.

Invariants: what is decided never changes; once the condition holds nothing more is decided; a message of an event is
known by its id, and twice is the same as once. After a restart :meth:`Selection.taken` says what was decided, and what
is added again continues from there: in its value, in a window around it, in its place of the sequence. An event that a
person marked (:meth:`Selection.give`) counts as come and says nothing about values and times.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta

from event_triggers.condition import Condition
from event_triggers.errors import InvalidEventError
from event_triggers.partition import AT_ANY_TIME, NEVER, Candidate, Chosen, Frame, Link, Partition, micros

__all__ = ["Candidate", "OpenValues", "Selection"]

_MICROSECOND = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True)
class OpenValues:
    """How far the correlation values are."""

    count: int
    """How many values have candidates."""
    closest: Hashable | None
    """The one for which most events have enough messages; ``None`` when there is none."""
    ready: tuple[str, ...]
    """Those events."""


class Selection:
    """The candidates of a group and what of them is chosen; see the module.

    :param counts: how many messages each event takes, in the order of the group.
    :param condition: its names are events of ``counts``; the others are optional.
    :param sequence: whether the required events count in the order of ``counts`` only.
    :param within: the span in which all messages must lie, both ends included.
    :param most: how many candidates are kept of each event.
    :raises InvalidEventError: for a sequence under a condition that leaves a choice.
    """

    def __init__(
        self,
        counts: Mapping[str, int],
        condition: Condition,
        *,
        sequence: bool = False,
        within: timedelta | None = None,
        most: int = 1000,
    ) -> None:
        if sequence and not condition.no_choice:
            raise InvalidEventError(
                f"sequence=True needs condition='all', as each event is waited for in its turn; got {condition.text!r}"
            )
        if within is not None and within < timedelta(0):
            raise InvalidEventError(f"within must not be negative, got {within}")
        self._counts = dict(counts)
        self._condition = condition
        self._sequence = tuple(name for name in counts if name in condition.names) if sequence else ()
        self._within = None if within is None else within // _MICROSECOND
        self._most = {event: max(most, count) for event, count in counts.items()}
        self._fixed: Chosen = {}
        self._known: dict[str, Collection[str]] = {}
        self._given: set[str] = set()
        self._lost: set[str] = set()
        self._value: Hashable | None = None
        self._held: dict[str, dict[str, Candidate]] = {event: {} for event in counts}
        self._partitions: dict[Hashable, Partition] = {}
        self._ready: dict[Hashable, Partition] = {}
        self._frame = self._framed()

    @property
    def complete(self) -> bool:
        """Whether the condition holds with what is decided."""
        return self._condition.holds(self._frame.come)

    @property
    def decided(self) -> Mapping[str, tuple[Candidate, ...]]:
        """The events that have all their messages."""
        return {event: chosen for event, chosen in self._fixed.items() if self._lacks(event) == 0}

    def needs(self, event: str) -> bool:
        """Whether messages of this event can still be chosen."""
        return event in self._frame.needs

    def candidates(self, event: str) -> Sequence[Candidate]:
        """What was added of this event and was not chosen, by arrival; also when it is decided or given meanwhile."""
        return list(self._held[event].values())

    def values(self) -> OpenValues:
        """How far the correlation values are, for notes and logs."""
        closest = max(self._partitions.values(), key=lambda one: len(one.enough), default=None)
        if closest is None:
            return OpenValues(0, None, ())
        return OpenValues(len(self._partitions), closest.value, tuple(e for e in self._counts if e in closest.enough))

    def add(self, candidate: Candidate) -> list[Candidate]:
        """Take a candidate in. One whose event and id are known is ignored.

        :returns: what is not kept, for the caller to give back: the oldest candidate of this event when there are more
            than ``most``, or this one when nothing is needed of its event any more, or nothing of its value.
        """
        event = candidate.event
        held = self._held[event]
        if candidate.id in held or candidate.id in self._known.get(event, ()):
            return []
        if event not in self._frame.needs or not self._fits(candidate.value):
            return [candidate]
        gone = [self._drop(next(iter(held.values())))] if len(held) >= self._most[event] else []
        held[candidate.id] = candidate
        partition = self._put_in(candidate)
        if partition.ready is None and not self.complete and self._completes(partition, candidate):
            partition.ready = candidate.arrival
            self._ready[_key(candidate.value)] = partition
        return gone

    def give(self, event: str) -> None:
        """A person has marked this event: it counts as come, without messages. Its candidates are not needed."""
        if self._lacks(event) and event not in self._given:
            self._given.add(event)  # whether it is lost no longer matters
            self._reframe(event)
            self._look_again()

    def lose(self, event: str) -> None:
        """This event can never come any more. Its candidates are not needed."""
        if event in self._frame.needs:
            self._lost.add(event)
            self._reframe(event)

    def taken(self, event: str, messages: Sequence[Candidate]) -> None:
        """These messages were decided before. They may be fewer than it takes; the rest is chosen to fit."""
        if messages:
            self._fix(event, messages)
            self._reframe(event)
            self._look_again()

    def choose(self) -> Mapping[str, tuple[Candidate, ...]] | None:
        """What is decided now: each event with all its messages, by stamp. They are fixed from here on.

        :returns: ``None`` when there is nothing new.
        """
        if self.complete:
            return None
        together = self._partitions.get(None)
        if together is not None and self._progressive(together):
            chosen: Chosen | None = together.choose_from(AT_ANY_TIME, self._frame)
        else:
            chosen = self._choose_ready()
        if not chosen:
            return None
        for event, messages in chosen.items():
            self._fix(event, messages)
        self._reframe(*chosen)
        return {event: self._fixed[event] for event in self._counts if event in chosen}

    def _progressive(self, partition: Partition) -> bool:
        """Whether events are decided one by one."""
        return partition.value is None and self._within is None and self._value is None

    def _choose_ready(self) -> Chosen | None:
        ready = self._ready
        while ready:
            key = min(ready, key=lambda one: ready[one].ready or 0)
            chosen = ready[key].choose(self._frame)
            if chosen:
                return chosen
            # What completed it was let go or lost meanwhile.
            ready.pop(key).ready = None
        return None

    def _completes(self, partition: Partition, candidate: Candidate) -> bool:
        return not self._progressive(partition) and partition.completes(candidate, self._frame)

    def _look_again(self) -> None:
        """Something else than a message may have completed the group."""
        if self.complete:
            return
        for key, partition in self._partitions.items():
            if partition.ready is None and self._fits(partition.value) and not self._progressive(partition):
                partition.ready = partition.completed_at(self._frame)
                if partition.ready is not None:
                    self._ready[key] = partition

    def _fits(self, value: Hashable | None) -> bool:
        return self._value is None or _key(value) == _key(self._value)

    def _lacks(self, event: str) -> int:
        return max(0, self._counts[event] - len(self._fixed.get(event, ())))

    def _fix(self, event: str, messages: Sequence[Candidate]) -> None:
        known = {one.id: one for one in (*self._fixed.get(event, ()), *messages)}
        self._known[event] = known.keys()
        self._fixed[event] = tuple(sorted(known.values(), key=lambda one: (one.stamp, one.arrival)))
        for one in messages:
            if one.id in self._held[event]:
                self._drop(self._held[event][one.id])
            if self._value is None:
                self._value = one.value

    def _drop(self, candidate: Candidate) -> Candidate:
        del self._held[candidate.event][candidate.id]
        if candidate.event in self._frame.needs:
            self._take_out(candidate)
        return candidate

    def _put_in(self, candidate: Candidate) -> Partition:
        partition = self._partitions.setdefault(_key(candidate.value), Partition(candidate.value))
        partition.add(candidate, self._frame)
        return partition

    def _take_out(self, candidate: Candidate) -> None:
        key = _key(candidate.value)
        self._partitions[key].remove(candidate, self._frame)
        if not self._partitions[key]:
            del self._partitions[key]
            self._ready.pop(key, None)

    def _reframe(self, *events: str) -> None:
        """What is asked has changed by these events. The partitions hold the candidates of open events alone."""
        for candidate in [one for event in events if event in self._frame.needs for one in self._held[event].values()]:
            self._take_out(candidate)
        self._frame = self._framed()
        for candidate in [one for event in events if event in self._frame.needs for one in self._held[event].values()]:
            self._put_in(candidate)
        for key in [key for key, partition in self._ready.items() if not self._fits(partition.value)]:
            del self._ready[key]

    def _framed(self) -> Frame:
        closed = self._given | self._lost
        needs = {event: self._lacks(event) for event in self._counts if event not in closed and self._lacks(event)}
        # What a person marked says nothing about times, even where some of its messages had come before.
        fixed = {event: messages for event, messages in self._fixed.items() if event not in closed}
        links: list[Link] = []
        not_after = NEVER
        for event in reversed(self._sequence):
            stamps = [micros(one.stamp) for one in fixed.get(event, ())]
            links.append(Link(event, max(stamps, default=AT_ANY_TIME), not_after))
            not_after = min([not_after, *stamps])
        frame = Frame(
            condition=self._condition,
            come=frozenset(self._given.union(event for event in fixed if event not in needs)),
            needs=needs,
            sequence=tuple(link for link in reversed(links) if link.event not in closed),
            within=self._within,
        )
        if self._within is None or not fixed:
            return frame
        stamps = [micros(one.stamp) for messages in fixed.values() for one in messages]
        return replace(frame, earliest=max(stamps) - self._within, latest=min(stamps))


def _key(value: Hashable | None) -> Hashable:
    # To Python True is 1 and False is 0; to a message they are not.
    return (value,) if isinstance(value, bool) else value
