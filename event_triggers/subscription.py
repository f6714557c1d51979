"""What one group sees of the hub: the deliveries that are its own, and how it answers them.

Flow: a channel offers a message to the subscription, which becomes one :class:`~event_triggers.delivery.Delivery`
however many events of the group it satisfies; the group records it and calls ``accept()`` on it, which tells the
channel. Leaving answers all that is open.

Nothing here survives a restart: the group subscribes again with what it still misses.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Collection, Iterable, Sequence
from datetime import datetime

from event_triggers.clock import Clock, SystemClock
from event_triggers.delivery import Answer, Delivery, Handout
from event_triggers.entry import Entry, Responder
from event_triggers.flag import Flag
from event_triggers.message import Message
from event_triggers.sources.base import Position
from event_triggers.text import plain_logger

__all__ = ["Subscription"]

log = plain_logger(__name__)


class Subscription:
    """The messages of one group, from all its streams.

    Made by :meth:`event_triggers.hub.Hub.subscribe`.

    :param group: whose.
    :param clock: the time to go by.
    :param comparing: held by the one group that looks for what came nearest; the same for all that share a loop.
    """

    def __init__(self, group: str, clock: Clock | None = None, comparing: asyncio.Lock | None = None) -> None:
        self.group = group
        self._clock = clock or SystemClock()
        self._comparing = comparing or asyncio.Lock()
        self.entries: list[Entry] = []
        self.over = False
        """Set when the group has ended for good; what it leaves open is then declined instead of abandoned."""
        self._inbox: list[Delivery] = []
        self._open: dict[Delivery, None] = {}
        self._unsettled = 0
        self._changed = Flag()
        self._error: BaseException | None = None
        # What the hub has to say belongs into this group's own task log, which Airflow finds by context variables.
        self._context = contextvars.copy_context()

    def now(self) -> datetime:
        """The current moment."""
        return self._clock.now()

    async def receive(self) -> list[Delivery]:
        """Wait for messages; give all that have come, oldest first.

        :raises ConfigurationError: when one of the streams can never be opened as it is configured.
        """
        await self._wait_for(lambda: bool(self._inbox))
        deliveries, self._inbox = self._inbox, []
        return deliveries

    @property
    def waiting(self) -> int:
        """How many deliveries :meth:`receive` would give at once."""
        return len(self._inbox)

    async def live(self) -> None:
        """Wait until nothing can be missed any more: every stream that is needed is open, and its past is read.

        :raises ConfigurationError: when one of the streams can never be opened as it is configured.
        """
        await self._wait_for(lambda: all(entry.live or entry.remaining <= 0 for entry in self.entries))

    async def settled(self) -> None:
        """Wait until the brokers have been told of what this group has answered, or that is given up.

        What other groups have not answered yet is theirs to see through, and not waited for.
        """
        await self._wait_for(lambda: not self._unsettled)

    async def repaid(self) -> None:
        """Wait until no copy of what this group has recorded can come any more; at once, unless it was interrupted.

        Bound it: while a broker is away, its time stands still.
        """
        for entry in self.entries:
            await entry.responder.repaid(entry.seen)

    async def _wait_for(self, condition: Callable[[], bool]) -> None:
        while not condition():
            if self._error is not None:
                raise self._error
            self._changed.clear()
            await self._changed.wait()

    async def misses(self) -> list[str]:
        """Of each event that is still missing although messages came: what came nearest; for people.

        The nearest of all comes first: most likely that is what was meant.
        """
        found = []
        # Groups that began together ask together. One at a time: else each turn of the loop would take as long as
        # comparing for all of them.
        async with self._comparing:
            for entry in self.entries:
                if entry.remaining > 0:
                    miss = entry.responder.miss(entry)
                    if miss.seen > miss.received:
                        found.append(miss)
                        await asyncio.sleep(0)
        return [str(miss) for miss in sorted(found, key=lambda miss: miss.far)]

    def position(self) -> Position | None:
        """In a log of a single interest: whatever lies before this has been answered, or was not wanted.

        ``None`` while that is not known.
        """
        (entry,) = self.entries
        offered = entry.responder.offered(entry)
        if offered is None:
            return None
        position = dict(offered)
        for delivery in self._open:
            message = delivery.message
            if message.partition in position and message.offset < position[message.partition]:
                position[message.partition] = message.offset
        return position

    def know(self, event: str, recorded: Collection[str], recalled: Iterable[Message]) -> None:
        """Another wait of the same group has recorded these messages for the event, and may have died since."""
        for entry in self.entries:
            if entry.interest.name == event and not entry.interest.source.replayable:
                entry.know(recorded)
                entry.responder.know(recorded, recalled)

    def drop(self, event: str) -> None:
        """This event is wanted no longer (a person marked its marker)."""
        for entry in self.entries:
            if entry.interest.name == event:
                entry.responder.drop(entry)

    # For channels and the hub only.

    def offer(self, handout: Handout, names: Sequence[str], responder: Responder) -> None:
        """Take a message in."""
        delivery = Delivery(handout, tuple(names), self, responder)
        handout.open += 1
        self._open[delivery] = None
        self._unsettled += 1
        self._inbox.append(delivery)
        self._changed.set()

    def answered(self, delivery: Delivery) -> None:
        """A delivery is off the group's hands."""
        self._open.pop(delivery, None)

    def settlement_done(self) -> None:
        """The broker has been told of one delivery, or need not be."""
        self._unsettled -= 1
        self._changed.set()

    def changed(self) -> None:
        """Somebody who waits may have what he waits for."""
        self._changed.set()

    def fail(self, error: BaseException) -> None:
        """A stream can never be opened: whoever waits is told."""
        self._error = error
        self._changed.set()

    def owes(self, responder: Responder) -> bool:
        """Whether something of this channel is not answered yet."""
        return any(delivery.is_from(responder) for delivery in self._open)

    def answer_all(self, answer: Answer) -> None:
        """Answer everything still open; the group is leaving."""
        for delivery in list(self._open):
            delivery.answer(answer)
        self._inbox.clear()

    def tell(self, level: int, text: str, *args: object) -> None:
        """Write into this group's task log."""
        self._context.run(log.log, level, text, *args)
