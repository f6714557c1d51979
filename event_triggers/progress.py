"""How far the events of one group are: what has been received, what a person has decided, what is missing.

Nothing here waits or speaks to anybody. Received messages are kept without payload: the ledger has those.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from event_triggers.condition import Condition
from event_triggers.event import Event
from event_triggers.ledger import Received
from event_triggers.message import same_message
from event_triggers.text import storable

__all__ = ["EventProgress", "GroupProgress"]


@dataclass(slots=True)
class EventProgress:
    """How far one event is."""

    name: str
    event: Event
    received: tuple[Received, ...] = ()
    by_hand: str | None = None
    """The state in which a person has put its marker."""
    known: bool = True
    """Whether ``received`` is what the ledger holds; of a marker that was green already it is read when needed."""
    recording: int = 0
    """How many messages are on their way into the ledger now."""
    late: bool = False
    """Whether its own time was up before it came."""
    left_out: bool = False
    """Whether the group was complete without it."""

    @property
    def done(self) -> bool:
        """Whether it is waited for no longer."""
        if self.late or self.left_out or self.by_hand is not None or not self.known:
            return True
        return len(self.received) >= self.event.count

    @property
    def lost(self) -> bool:
        """Whether it can never come any more."""
        return self.late or self.by_hand == "failed"

    @property
    def missing(self) -> int:
        """How many messages it still takes."""
        return 0 if self.done else self.event.count - len(self.received)

    def holds(self, identity: str) -> bool:
        """Whether the message of this id is among those received."""
        identity = storable(identity)
        return any(same_message(one.id, identity) for one in self.received)

    def describe(self) -> str:
        """The name, and how far it is: ``orders``, ``shifts (1 of 3)``."""
        count = f" ({len(self.received)} of {self.event.count})" if self.event.count > 1 else ""
        return f"{self.name}{count}{', came but not recorded yet' if self.recording else ''}"

    def outcome(self) -> Any:
        """What the sensor's XCom says of it; ``None`` when there is nothing to say."""
        facts = [one.facts() for one in self.received]
        if self.by_hand is not None:
            return {"marked_by_hand": self.by_hand, "messages": facts}
        if not facts:
            return None
        return facts if self.event.count > 1 else facts[-1]


class GroupProgress:
    """All events of a group, and what completes it.

    :raises InvalidEventError: when the condition is none over these events.
    """

    def __init__(self, events: Mapping[str, Event], condition: str = "all") -> None:
        self._events = {name: EventProgress(name, event) for name, event in events.items()}
        self.condition = Condition.parse(condition, {name: event.required for name, event in events.items()})

    def __getitem__(self, name: str) -> EventProgress:
        return self._events[name]

    def __iter__(self) -> Iterator[EventProgress]:
        return iter(self._events.values())

    @property
    def complete(self) -> bool:
        """Whether the condition holds."""
        return self.condition.holds([one.name for one in self if one.done and not one.lost])

    @property
    def hopeless(self) -> bool:
        """Whether the condition can never hold any more."""
        return not self.condition.can_hold(self.lost)

    @property
    def lost(self) -> list[str]:
        """The events that can never come any more."""
        return [one.name for one in self if one.lost]

    @property
    def recording(self) -> bool:
        """Whether something is on its way into the ledger."""
        return any(one.recording for one in self)

    def open(self) -> list[EventProgress]:
        """The events that may still come, whether the group needs them or not."""
        return [one for one in self if not one.done]

    def missing(self) -> list[str]:
        """What is waited for and not there yet, each with how far it is."""
        return [one.describe() for one in self if not one.done and one.event.required]

    def counts(self) -> dict[str, int]:
        """Of each event that has received something, how many messages."""
        return {one.name: len(one.received) for one in self if one.received}

    def outcomes(self) -> dict[str, Any]:
        """What the sensor's XCom says."""
        found = {one.name: one.outcome() for one in self}
        return {name: outcome for name, outcome in found.items() if outcome is not None}
