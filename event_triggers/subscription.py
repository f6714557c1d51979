"""What one group sees of the hub: the deliveries that are its own, and how it answers them.

Flow: a channel offers a message to the subscription, which becomes one :class:`Delivery` however many events of the
group it satisfies; the group records it and calls :meth:`Delivery.accept`, which tells the channel.

Invariants:

* An event is handed at most as many messages as it still wants (:attr:`Entry.remaining` counts down when a message is
  handed over, not when it is recorded), so what a group holds in memory is bounded by what it asked for.
* Every delivery is answered exactly once: accepted, declined (the group is over and does not want it) or abandoned (the
  group leaves without having recorded it). Leaving answers all that is open.

Nothing here survives a restart: the group subscribes again with what it still misses.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum
from typing import Any, Protocol

from event_triggers.clock import Clock, SystemClock
from event_triggers.flag import Flag
from event_triggers.message import Message
from event_triggers.sources.base import Outcome, Position, Source
from event_triggers.text import plain_logger

__all__ = ["ENDLESS", "Answer", "Delivery", "Entry", "Handout", "Interest", "Responder", "Subscription"]

log = plain_logger(__name__)

_NONE: frozenset[str] = frozenset()
ENDLESS = 2**62
"""How many messages somebody wants who never has enough."""
MOST_SEEN = 100_000
"""How many messages of one interest are known again by it."""


class Answer(Enum):
    """What a group says of a message it was handed."""

    ACCEPTED = "accepted"
    DECLINED = "declined"
    ABANDONED = "abandoned"


@dataclass(frozen=True, slots=True)
class Interest:
    """One event that a group waits for.

    :param name: the event's name.
    :param source: where it comes from.
    :param pattern: the body must match this; ``None`` takes every body.
    :param accepts: a callable that must agree; runs in a thread of its own.
    :param count: how many messages are still wanted; 0 wants none but knows ``recorded`` again.
    :param since: messages stamped before do not count; in a log, reading starts here (``None``: with what the
        shared stream has yet to deliver; behind the newest message, unless the stream is away or far behind).
    :param start: instead of ``since``, for a log: begin exactly at this position.
    :param until: messages stamped later do not count; one that its broker does not stamp is stamped when it comes.
    :param recorded: ids of messages that were recorded before; when a queue delivers one again it is acknowledged.
    :param recalled: of these, the ones that can be acknowledged at once; somebody may have died before doing so.
    """

    name: str
    source: Source
    pattern: Mapping[str, Any] | None = None
    accepts: Callable[[Message], bool] | None = None
    count: int = 1
    since: datetime | None = None
    until: datetime | None = None
    recorded: frozenset[str] = frozenset()
    recalled: tuple[Message, ...] = ()
    start: Position | None = None


class Past(Protocol):
    """The reading of what an entry has missed."""

    def hold(self, message: Message, entry: Entry) -> None:
        """Keep a live message until the past is through, so that order is kept."""

    def offered(self) -> dict[str, Any]:
        """Everything before this position was offered."""


class Missed(Protocol):
    """What an event was waited for in vain with; its ``str`` is for people."""

    @property
    def seen(self) -> int:
        """How many messages there were."""

    @property
    def received(self) -> int:
        """How many of them count."""

    @property
    def far(self) -> tuple[int, int]:
        """How far the nearest was from counting; the less, the nearer."""


class Responder(Protocol):
    """The channel, as a group sees it."""

    def drop(self, entry: Entry) -> None:
        """This entry is wanted no longer."""

    def answered(self, delivery: Delivery, handout: Handout) -> None:
        """A group has answered."""

    def hold(self, handout: Handout) -> None:
        """A group keeps it for long."""

    def know(self, recorded: Collection[str], recalled: Iterable[Message]) -> None:
        """These are recorded, and the broker may not know."""

    async def repaid(self, identities: Collection[str]) -> None:
        """Wait until no copy of these messages can come any more."""

    def miss(self, entry: Entry) -> Missed:
        """What came nearest to an event that is still waited for."""

    def offered(self, entry: Entry) -> Position | None:
        """In a log: everything before this position was offered to the entry; ``None`` while nothing is known."""


@dataclass(slots=True, eq=False)
class Entry:
    """An interest, as the index of a channel holds it."""

    subscription: Subscription
    interest: Interest
    responder: Responder
    """The channel that it is in."""
    remaining: int = field(init=False)
    live: bool = False
    """Whether it sees every message from now on."""
    watched: bool = False
    """Whether its queue was asked for its messages since it joined."""
    past: Past | None = None
    """While what it missed is read, live messages are held there."""
    held: int = 0
    """How many are."""
    seen: frozenset[str] | set[str] = _NONE
    """Ids that were taken, or recorded before; a broker may deliver one again."""
    seen_before: int = 0
    """How many messages its channel had seen when it joined."""
    seen_past: int = 0
    """How many were seen in what it had missed."""
    complaints: int = 0
    """How often its callable or source has failed."""

    def __post_init__(self) -> None:
        self.remaining = self.interest.count
        self.know(self.interest.recorded)

    def open_for(self, message: Message) -> bool:
        """Whether more is wanted, and this is none that was taken before."""
        return self.remaining > 0 and message.id not in self.seen

    def took(self, message: Message) -> None:
        """Count this message."""
        self.remaining -= 1
        self.know((message.id,))

    def know(self, identities: Collection[str]) -> None:
        """Messages of these ids are not wanted any more."""
        if identities:
            # Most entries never see one, and an empty set of their own is larger than all the rest of them.
            self.seen = self.seen if isinstance(self.seen, set) else set()
            if len(self.seen) >= MOST_SEEN:
                # Only who never ends comes so far. Copies of what was acknowledged are known to the channel, too.
                self.seen.clear()
            self.seen.update(identities)

    def admits(self, message: Message) -> bool:
        """Whether what the pattern cannot say holds too: time and routing."""
        return self.in_time(message) and self.interest.source.routes(message)

    def in_time(self, message: Message) -> bool:
        """Whether it is stamped neither too early nor too late."""
        since, until = self.interest.since, self.interest.until
        if since is not None and message.timestamp is not None and message.timestamp < since:
            return False
        return until is None or (message.timestamp or self.subscription.now()) <= until


@dataclass(slots=True, eq=False)
class Handout:
    """One message on its way through all the groups that want it."""

    message: Message
    open: int = 0
    accepted_for: set[tuple[str, str]] = field(default_factory=set)
    """The events, each with its group, that have recorded it."""
    abandoned_for: set[tuple[str, str]] = field(default_factory=set)
    """The events that were left before they could."""
    held: bool = False
    """Whether a group keeps it, so that it does not count as under way: see :meth:`Delivery.hold`."""

    @property
    def outcome(self) -> Outcome:
        """How it ended, once nothing is open."""
        # A group may be here twice for a moment, when it starts again; then it is enough that one has recorded it. But
        # one of its events does not answer for another, which may have been handed the message later.
        if self.abandoned_for - self.accepted_for:
            return Outcome.ABANDONED
        return Outcome.ACCEPTED if self.accepted_for else Outcome.RELEASED


class Delivery:
    """A message handed to one group, for one or several of its events."""

    __slots__ = ("_answered", "_handout", "_responder", "_subscription", "events", "message")

    def __init__(
        self, handout: Handout, events: tuple[str, ...], subscription: Subscription, responder: Responder
    ) -> None:
        self.message = handout.message
        self.events = events
        self._handout = handout
        self._subscription = subscription
        self._responder = responder
        self._answered = False

    def accept(self) -> None:
        """It is recorded: the broker may forget it. Twice is the same as once."""
        self.answer(Answer.ACCEPTED)

    def decline(self) -> None:
        """The group does not need it after all."""
        self.answer(Answer.DECLINED)

    def abandon(self) -> None:
        """The group leaves before it could record it: its queue is to deliver it again, to whoever waits then."""
        self.answer(Answer.ABANDONED)

    def answer(self, answer: Answer) -> None:
        """Say how it ended. Only the first answer counts."""
        if self._answered:
            return
        self._answered = True
        events = ((self._subscription.group, event) for event in self.events)
        if answer is Answer.ACCEPTED:
            self._handout.accepted_for.update(events)
        elif answer is Answer.ABANDONED:
            self._handout.abandoned_for.update(events)
        self._handout.open -= 1
        self._subscription.answered(self)
        self._responder.answered(self, self._handout)

    def hold(self) -> None:
        """It is not answered for long: until then it does not count among what its channel has under way.

        So who waits for other messages to go with it does not pause the broker that is to bring them. Whoever holds
        messages bounds how many.
        """
        if not self._answered:
            self._responder.hold(self._handout)

    def is_from(self, responder: Responder) -> bool:
        """Whether it came over this channel."""
        return self._responder is responder

    @property
    def subscription(self) -> Subscription:
        """The group's."""
        return self._subscription

    def settlement_done(self) -> None:
        """The broker has been told, or need not be."""
        self._subscription.settlement_done()


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
