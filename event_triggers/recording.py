"""What a wait does with the messages that have come: recording them, and answering their brokers.

Invariants:

* A message is accepted only when the ledger holds it; what is not recorded goes back to its broker.
* What :attr:`EventProgress.recording` says is true at every ``await``, so that whoever has to decide something can wait
  for what is on its way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from event_triggers.clock import Clock, parse_datetime
from event_triggers.delivery import Delivery
from event_triggers.entry import Interest
from event_triggers.event import load_callable
from event_triggers.flag import Flag
from event_triggers.ledger import Arrival, Book, Received, payload_of
from event_triggers.message import Message
from event_triggers.notes import note_of
from event_triggers.progress import EventProgress, GroupProgress
from event_triggers.subscription import Subscription
from event_triggers.terms import since_of
from event_triggers.text import plain_logger, shown

__all__ = ["Recorder"]

log = plain_logger(__name__)

_UNLIMITED = 2**31
_NONE: frozenset[str] = frozenset()


class Recorder:
    """Records what comes, in a group where every message that matches counts.

    :param too_late: whether a message came after the time of this event was up.
    :param timezone: by which days and months go.
    :param payload_limit: payloads whose JSON is longer (in bytes) are kept as a reference.
    """

    unlimited = False
    """Whether more messages are asked for than an event takes."""

    def __init__(
        self,
        progress: GroupProgress,
        book: Book,
        *,
        clock: Clock,
        too_late: Callable[[str, Message], bool],
        payload_limit: int,
        timezone: str = "UTC",
    ) -> None:
        self._progress = progress
        self._book = book
        self._clock = clock
        self._too_late = too_late
        self._payload_limit = payload_limit
        self._timezone = timezone
        self._known: dict[str, None] = {}
        """The ids of recorded messages of which the hub knows."""
        self._recorded = Flag()
        self.busy = False
        """Whether messages are being taken in."""

    async def next_recorded(self) -> None:
        """Wait until something has been recorded, or turned out not to be wanted."""
        self._recorded.clear()
        await self._recorded.wait()

    def interests(self) -> list[Interest]:
        """What is asked of the hub: all that is missing, and to know again what a queue may deliver once more.

        :raises InvalidEventError: when a match callable cannot be imported.
        """
        interests = []
        for one in self._progress:
            source, match = one.event.source, one.event.match
            self._known |= dict.fromkeys(received.id for received in one.received)
            if one.done and (source.replayable or not one.received):
                continue
            interests.append(
                Interest(
                    one.name,
                    source,
                    pattern=match if isinstance(match, Mapping) else None,
                    # What is done asks for nothing any more, so its callable may be gone.
                    accepts=load_callable(match) if isinstance(match, str) and not one.done else None,
                    count=_UNLIMITED if self.unlimited and not one.done else one.missing,
                    since=since_of(one.event, self._timezone),
                    until=None if one.event.until is None else parse_datetime(one.event.until),
                    recorded=frozenset(received.id for received in one.received) if one.received else _NONE,
                    recalled=recalled(one),
                )
            )
        return interests

    async def restore(self) -> None:
        """Take in what earlier tries have left, before anything is received."""

    async def dropped(self, event: str, subscription: Subscription) -> None:
        """This event is waited for no longer: its marker was marked elsewhere, or its time is up."""
        self._tell_of_others(event, subscription)

    def finish(self) -> None:
        """The group is complete: give back what is still held."""

    async def take(self, deliveries: Sequence[Delivery], subscription: Subscription) -> None:
        """Record what counts, and answer for all."""
        self.busy = True
        try:
            await self._take(deliveries, subscription)
        finally:
            self.busy = False
            self._recorded.set()

    async def _take(self, deliveries: Sequence[Delivery], subscription: Subscription) -> None:
        new: dict[str, list[Received]] = {}
        received_at = self._now()
        for delivery in deliveries:
            for name in delivery.events:
                if not self._progress[name].done and not self._too_late(name, delivery.message):
                    messages = new.setdefault(name, [])
                    number = len(self._progress[name].received) + len(messages) + 1
                    messages.append(self._received(delivery.message, self._progress[name], number, received_at))
        if new:
            await self._store(new)
            self._known |= dict.fromkeys(delivery.message.id for delivery in deliveries)
            for name in new:
                self._tell_of_others(name, subscription)
        for delivery in deliveries:
            held = any(name in new and self._progress[name].holds(delivery.message.id) for name in delivery.events)
            if held:
                delivery.accept()
            else:
                delivery.decline()

    def _tell_of_others(self, name: str, subscription: Subscription) -> None:
        """What another wait of this group has recorded for an event may be unacknowledged, if that has died."""
        one = self._progress[name]
        others = {received.id for received in one.received} - self._known.keys()
        if others:
            self._known |= dict.fromkeys(others)
            subscription.know(name, others, [message for message in recalled(one) if message.id in others])

    async def _store(self, new: Mapping[str, Sequence[Received]]) -> None:
        """Record these messages, which count."""
        arrivals = []
        for name, messages in new.items():
            self._progress[name].recording = len(messages)
            arrivals.append(Arrival(name, tuple(messages), self._progress[name].event.count))
        try:
            held = await self._book.record(arrivals)
        finally:
            for name in new:
                self._progress[name].recording = 0
            self._recorded.set()
        for name in new:
            self._progress[name].received = held[name]
        for name in new:
            self._say_arrived(self._progress[name])

    def _now(self) -> str:
        return self._clock.now().isoformat(timespec="milliseconds")

    def _received(self, message: Message, one: EventProgress, number: int, received_at: str) -> Received:
        return Received(
            source=message.source,
            stream=message.stream,
            position=message.position,
            id=message.id,
            timestamp=message.timestamp.isoformat(timespec="milliseconds") if message.timestamp else None,
            received_at=received_at,
            payload=payload_of(message, self._payload_limit),
            note=note_of(message, received_at, number, one.event.count),
            receipt=one.event.source.receipt_of(message),
        )

    def _say_arrived(self, one: EventProgress) -> None:
        last = one.received[-1]
        where = f"{last.source} {shown(last.stream)} {shown(last.position)}"
        missing = ", ".join(self._progress.missing())
        rest = "complete" if self._progress.complete or not missing else f"missing: {missing}"
        log.info("event %s: %s; %s", one.describe(), where, rest)


def recalled(one: EventProgress) -> tuple[Message, ...]:
    """What is recorded of an event and can be acknowledged once more."""
    known = ((received.id, received.receipt) for received in one.received)
    messages = (one.event.source.recalled(identity, receipt) for identity, receipt in known if receipt is not None)
    return tuple(message for message in messages if message is not None)
