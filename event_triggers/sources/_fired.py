"""What triggers have fired in this process: how their events are told apart, and what nobody has taken in yet.

Invariants:

* Equal payloads of one trigger get different ids, by the how-manieth each is. A process counts for as long as it lives,
  so a stream that is opened again goes on counting.
* An event that was handed out and not settled when its stream closed is handed out again by the next stream of that
  trigger, if that comes within :data:`KEPT_FOR` seconds. Later it would be stale: another run would take it.
* A run that goes on after its stream has closed, because its trigger has lost the cancellation, can still fire: that
  event goes to the stream that is open by then, or is kept for the next.

A restart counts anew: the first event that is equal to one before has its id, and is known as the same. That is what
Airflow asks of triggers, whose payloads identify what has happened. What was not recorded is lost then, unless the
trigger fires it again.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Sequence

from event_triggers.message import Message

__all__ = ["KEPT_FOR", "Fired", "fired_by"]

KEPT_FOR = 300.0
"""Seconds for which an event that nobody has recorded is kept while no stream is open."""
_MOST_TRIGGERS = 1000
_MOST_PAYLOADS = 10_000
_MOST_KEPT = 1000


class Fired:
    """What one trigger has fired.

    :param identity: of the trigger.
    """

    def __init__(self, identity: str) -> None:
        self._identity = identity
        self._counts: OrderedDict[str, int] = OrderedDict()
        self._kept: list[Message] = []
        self._kept_at = 0.0
        self._receive: Callable[[Sequence[Message]], None] | None = None
        self.count = 0

    def next_id(self, body: bytes) -> str:
        """The id of an event with this body that has just been fired."""
        self.count += 1
        digest = hashlib.sha256(body).hexdigest()[:24]
        number = self._counts.pop(digest, 0) + 1
        self._counts[digest] = number
        if len(self._counts) > _MOST_PAYLOADS:
            self._counts.popitem(last=False)
        return f"{self._identity[:16]}-{digest}-{number}"

    @property
    def waiting(self) -> int:
        """How many events are kept for the next stream."""
        return len(self._kept)

    def open(self, receive: Callable[[Sequence[Message]], None], now: float) -> None:
        """A stream is there: it receives what is to be handed out again, now and later."""
        self._receive = receive
        receive(self.take(now))

    def close(self, receive: Callable[[Sequence[Message]], None]) -> None:
        """That stream receives no more."""
        if self._receive == receive:
            self._receive = None

    def keep(self, messages: Sequence[Message], now: float) -> int:
        """A closed stream is left with these; how many of them are too many to be kept."""
        if self._receive is not None:
            self._receive(messages)
            return 0
        kept = [*self.take(now), *messages]
        self._kept, self._kept_at = kept[:_MOST_KEPT], now
        return len(kept) - len(self._kept)

    def take(self, now: float) -> list[Message]:
        """What is to be handed out again."""
        kept, self._kept = self._kept, []
        return kept if now - self._kept_at <= KEPT_FOR else []


_all: OrderedDict[str, Fired] = OrderedDict()


def fired_by(identity: str) -> Fired:
    """What this trigger has fired; the ones that were not asked for longest are forgotten."""
    fired = _all.pop(identity, None)
    if fired is None:
        fired = Fired(identity)
    _all[identity] = fired
    if len(_all) > _MOST_TRIGGERS:
        _all.popitem(last=False)
    return fired
