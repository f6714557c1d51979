"""Which messages count, in a group where that depends on the others: sequence, span of time, a value they agree on.

Flow: a message that matches is a *candidate*. :class:`~event_triggers.selection.Selection` says when some of them
complete the group together (in a sequence: when the next event has its messages); these are recorded as any arrival
is, and the rest go back to where they came from.

Invariants:

* No candidate exists only here. One from a log can be read again. One from a queue that others read too stays
  unanswered until it is decided, so its broker still has it. One from a queue that is this group's alone (a durable
  session, whose broker sends no more while too much is unanswered) is kept in the ledger before it is accepted.
* What was decided and recorded before a restart stays decided; the others are candidates again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

from event_triggers.correlation import NoValueError, same, value_of
from event_triggers.delivery import Delivery
from event_triggers.entry import Interest
from event_triggers.ledger import Received
from event_triggers.progress import EventProgress
from event_triggers.recording import Recorder
from event_triggers.selection import Candidate, Selection
from event_triggers.subscription import Subscription
from event_triggers.terms import Terms
from event_triggers.text import plain_logger, shown

__all__ = ["MOST_CANDIDATES", "Chooser"]

log = plain_logger(__name__)

MOST_CANDIDATES = 1000
"""How many messages of one event may wait for others to go with."""
_COMPLAINTS_SHOWN = 20


@dataclass(frozen=True, slots=True)
class _Item:
    received: Received
    delivery: Delivery | None
    """``None`` when it was answered already."""


class Chooser(Recorder):
    """Records what counts together with the others.

    :param terms: the group's.
    """

    unlimited = True

    def __init__(self, terms: Terms, **options: Any) -> None:
        super().__init__(**options)
        self._paths = terms.correlate or {}
        self._selection = Selection(
            {one.name: one.event.count for one in self._progress},
            self._progress.condition,
            sequence=terms.sequence,
            within=None if terms.within is None else timedelta(seconds=terms.within),
            most=MOST_CANDIDATES,
        )
        self._kept: dict[str, set[str]] = {}
        self._arrivals = 0
        self._complaints = 0

    async def restore(self) -> None:
        for one in self._progress:
            if one.done:
                self._settle(one)
        for one in self._progress.open():
            if one.event.source.private:
                for received in await self._book.kept(one.name):
                    self._kept.setdefault(one.name, set()).add(received.id)
                    self._add(self._candidate(one, received, None))
        await self._decide()

    def interests(self) -> list[Interest]:
        # What is kept comes again when it was not acknowledged: it is known then, and is no second candidate.
        return [
            replace(one, recorded=one.recorded | self._kept.get(one.name, frozenset())) for one in super().interests()
        ]

    async def dropped(self, event: str, subscription: Subscription) -> None:
        await super().dropped(event, subscription)
        self._settle(self._progress[event])
        await self._decide()

    def finish(self) -> None:
        for one in self._progress:
            for candidate in self._selection.candidates(one.name):
                if candidate.item.delivery is not None:
                    candidate.item.delivery.decline()

    def _settle(self, one: EventProgress) -> None:
        """What was decided elsewhere: in an earlier try, by another wait, by a person, by the clock."""
        if one.lost:
            self._selection.lose(one.name)
        elif one.by_hand is not None:
            self._selection.give(one.name)
        else:
            self._selection.taken(one.name, [self._candidate(one, received, None) for received in one.received])

    async def _take(self, deliveries: Sequence[Delivery], subscription: Subscription) -> None:
        received_at = self._now()
        for delivery in deliveries:
            await self._consider(delivery, received_at)
        await self._decide()
        for one in self._progress:
            if one.done:
                subscription.drop(one.name)

    async def _consider(self, delivery: Delivery, received_at: str) -> None:
        """Make a candidate of a message, or give it back."""
        candidates = []
        for name in delivery.events:
            one = self._progress[name]
            if one.done or self._too_late(name, delivery.message):
                continue
            received = self._received(delivery.message, one, one.event.count, received_at)
            try:
                received = self._with_value(received, name, delivery)
            except NoValueError as error:
                self._complain(name, delivery, error)
                continue
            candidates.append(self._candidate(one, received, delivery))
        if not candidates:
            delivery.decline()
            return
        source = self._progress[candidates[0].event].event.source
        if source.private:
            for candidate in candidates:
                await self._book.keep(candidate.event, [candidate.item.received])
        if source.private or source.replayable:
            delivery.accept()
        else:
            delivery.hold()
        for candidate in candidates:
            self._add(candidate)

    def _with_value(self, received: Received, name: str, delivery: Delivery) -> Received:
        path = self._paths.get(name)
        return received if path is None else replace(received, value=value_of(delivery.message, path))

    def _candidate(self, one: EventProgress, received: Received, delivery: Delivery | None) -> Candidate:
        self._arrivals += 1
        return Candidate(
            event=one.name,
            id=received.id,
            stamp=received.stamp,
            arrival=self._arrivals,
            value=None if received.value is None else same(received.value),
            item=_Item(received, delivery),
        )

    def _add(self, candidate: Candidate) -> None:
        for gone in self._selection.add(candidate):
            item: _Item = gone.item
            if gone is not candidate:
                log.error(
                    "event %s: too many messages wait for others to go with; the oldest, %s %s, is let go",
                    gone.event,
                    shown(item.received.stream),
                    shown(item.received.position),
                )
            if item.delivery is not None:
                item.delivery.decline()

    async def _decide(self) -> None:
        """Record what is decided now, as long as something is."""
        while chosen := self._selection.choose():
            await self._store({name: [one.item.received for one in messages] for name, messages in chosen.items()})
            for messages in chosen.values():
                self._known |= dict.fromkeys(candidate.id for candidate in messages)
                for candidate in messages:
                    self._answer(candidate)

    def _answer(self, candidate: Candidate) -> None:
        """It was chosen; another wait of the group may have recorded another one before."""
        delivery = candidate.item.delivery
        if delivery is None:
            return
        if self._progress[candidate.event].holds(candidate.id):
            delivery.accept()
        else:
            delivery.decline()

    def _complain(self, name: str, delivery: Delivery, error: NoValueError) -> None:
        self._complaints += 1
        if self._complaints > _COMPLAINTS_SHOWN:
            return
        more = "; further ones are not logged" if self._complaints == _COMPLAINTS_SHOWN else ""
        message = delivery.message
        log.warning(
            "event %s: the message at %s %s %s, so it cannot agree with the others; it does not count%s",
            name,
            shown(message.stream),
            shown(message.position),
            error,
            more,
        )
