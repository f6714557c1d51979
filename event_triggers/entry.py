"""What one group asks of one channel: an interest, and the entry for it in the channel's index.

An event is handed at most as many messages as it still wants (:attr:`Entry.remaining` counts down when a message is
handed over, not when it is recorded), so what a group holds in memory is bounded by what it asked for. Nothing here
survives a restart: the group subscribes again with what it still misses.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, Protocol

from event_triggers.message import Message
from event_triggers.sources.base import Position, Source

if TYPE_CHECKING:
    from event_triggers.delivery import Delivery, Handout
    from event_triggers.subscription import Subscription

__all__ = ["ENDLESS", "Entry", "Interest", "Missed", "Past", "Responder"]

_NONE: frozenset[str] = frozenset()
ENDLESS = 2**62
"""How many messages somebody wants who never has enough."""
MOST_SEEN = 100_000
"""How many messages of one interest are known again by it."""


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
