"""What one group sees of the hub: the deliveries that are its own, and how it answers them.

Flow: a channel offers a message to the subscription, which becomes one :class:`Delivery` however many events of the group it
satisfies; the group records it and calls :meth:`Delivery.accept`; the channel is told once every group has answered.

Invariants:

* An event is handed at most as many messages as it still wants (:attr:`Entry.remaining` counts down when a message is handed
  over, not when it is recorded), so what a group holds in memory is bounded by what it asked for.
* Every delivery is answered exactly once: accepted, declined (the group is over and does not want it) or abandoned (the group
  leaves without having recorded it). Leaving answers all that is open.

Nothing here survives a restart: the group subscribes again with what it still misses.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum
from typing import TYPE_CHECKING, Any

from event_triggers.message import Message
from event_triggers.sources.base import Outcome, Source

if TYPE_CHECKING:
    from event_triggers.channel import Channel

__all__ = ["Answer", "Delivery", "Entry", "Interest", "Subscription"]

log = logging.getLogger(__name__)


class Answer(Enum):
    """What a group says of a message it was handed."""

    ACCEPTED = "accepted"
    DECLINED = "declined"
    ABANDONED = "abandoned"


@dataclass(frozen=True)
class Interest:
    """One event that a group waits for.

    :param name: the event's name.
    :param source: where it comes from.
    :param pattern: the body must match this; ``None`` takes every body.
    :param accepts: a callable that must agree; runs in a thread of its own.
    :param count: how many messages are still wanted; 0 wants none but knows ``recorded`` again.
    :param since: messages stamped before do not count; in a log, reading starts here (``None``: behind the newest message).
    :param recorded: ids of messages that were recorded before; when a queue delivers one again it is acknowledged.
    """

    name: str
    source: Source
    pattern: Mapping[str, Any] | None = None
    accepts: Callable[[Message], bool] | None = None
    count: int = 1
    since: datetime | None = None
    recorded: frozenset[str] = frozenset()


@dataclass(slots=True, eq=False)
class Entry:
    """An interest, as the index of a channel holds it."""

    subscription: Subscription
    interest: Interest
    remaining: int
    live: bool = False
    held: list[Message] | None = None
    """While the past is read for this entry, live messages wait here so that order is kept."""
    seen: set[str] = field(init=False)
    """Ids that were taken, or recorded before; a broker may deliver one again."""

    def __post_init__(self) -> None:
        self.seen = set(self.interest.recorded)

    def took(self, message: Message) -> None:
        """Count this message."""
        self.remaining -= 1
        self.seen.add(message.id)

    def admits(self, message: Message) -> bool:
        """Whether what the pattern cannot say holds too: time and routing."""
        since = self.interest.since
        if since is not None and message.timestamp is not None and message.timestamp < since:
            return False
        return self.interest.source.routes(message)


@dataclass(slots=True, eq=False)
class Handout:
    """One message on its way through all the groups that want it."""

    message: Message
    open: int = 0
    accepted: bool = False
    abandoned: bool = False
    deliveries: list[Delivery] = field(default_factory=list)

    @property
    def outcome(self) -> Outcome:
        """How it ended, once nothing is open."""
        if self.abandoned:
            return Outcome.ABANDONED
        return Outcome.ACCEPTED if self.accepted else Outcome.RELEASED


class Delivery:
    """A message handed to one group, for one or several of its events."""

    __slots__ = ("_answered", "_channel", "_handout", "_subscription", "events", "message")

    def __init__(
        self, handout: Handout, events: tuple[str, ...], subscription: Subscription, channel: Channel
    ) -> None:
        self.message = handout.message
        self.events = events
        self._handout = handout
        self._subscription = subscription
        self._channel = channel
        self._answered = False

    def accept(self) -> None:
        """It is recorded: the broker may forget it. Twice is the same as once."""
        self._answer(Answer.ACCEPTED)

    def decline(self) -> None:
        """The group does not need it after all."""
        self._answer(Answer.DECLINED)

    def abandon(self) -> None:
        """The group leaves before it could record it."""
        self._answer(Answer.ABANDONED)

    def settlement_done(self) -> None:
        """The broker has been told, or need not be."""
        self._subscription.settlement_done()

    def _answer(self, answer: Answer) -> None:
        if self._answered:
            return
        self._answered = True
        self._subscription.answered(self)
        self._handout.accepted |= answer is Answer.ACCEPTED
        self._handout.abandoned |= answer is Answer.ABANDONED
        self._handout.open -= 1
        self._channel.answered(self._handout)


class Subscription:
    """The messages of one group, from all its streams.

    Made by :meth:`event_triggers.hub.Hub.subscribe`.
    """

    def __init__(self, group: str) -> None:
        self.group = group
        self.entries: list[tuple[Channel, Entry]] = []
        self.over = False
        """Set when the group has ended for good; what it leaves open is then declined instead of abandoned."""
        self._inbox: deque[Delivery] = deque()
        self._open: dict[Delivery, None] = {}
        self._unsettled = 0
        self._changed = asyncio.Event()
        self._error: BaseException | None = None
        # What the hub has to say belongs into this group's own task log, which Airflow finds by context variables.
        self._context = contextvars.copy_context()

    async def receive(self) -> list[Delivery]:
        """Wait for messages; give all that have come, oldest first.

        :raises ConfigurationError: when one of the streams can never be opened as it is configured.
        """
        await self._wait_for(lambda: bool(self._inbox))
        deliveries = list(self._inbox)
        self._inbox.clear()
        return deliveries

    async def live(self) -> None:
        """Wait until every stream is open and the past has been read, so that nothing can be missed any more."""
        await self._wait_for(lambda: all(entry.live or not entry.interest.count for _, entry in self.entries))

    async def settled(self) -> None:
        """Wait until the brokers have been told of everything this group has answered."""
        await self._wait_for(lambda: not self._unsettled)

    async def _wait_for(self, condition: Callable[[], bool]) -> None:
        while not condition():
            if self._error is not None:
                raise self._error
            self._changed.clear()
            await self._changed.wait()

    def drop(self, event: str) -> None:
        """This event is wanted no longer (a person marked its marker)."""
        for channel, entry in self.entries:
            if entry.interest.name == event:
                channel.drop(entry)

    def offer(self, handout: Handout, names: Sequence[str], channel: Channel) -> None:
        """Take a message in. Only channels call this."""
        delivery = Delivery(handout, tuple(names), self, channel)
        handout.open += 1
        handout.deliveries.append(delivery)
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

    def went_live(self) -> None:
        """One more entry has caught up."""
        self._changed.set()

    def fail(self, error: BaseException) -> None:
        """A stream can never be opened: whoever waits is told."""
        self._error = error
        self._changed.set()

    def answer_all(self, answer: Answer) -> None:
        """Answer everything still open; the group is leaving."""
        for delivery in list(self._open):
            delivery._answer(answer)
        self._inbox.clear()

    def tell(self, level: int, text: str, *args: object) -> None:
        """Write into this group's task log."""
        self._context.run(log.log, level, text, *args)
