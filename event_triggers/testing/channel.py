"""What a broker in memory keeps: channels, their records, and the sessions that read them as queues.

A record is never changed or moved. A message of a session is in exactly one place: not yet reached, given back, in
flight on one open stream, released, or settled for good. Nothing here is locked: the broker holds its lock
around every call.
"""

from __future__ import annotations

import asyncio
import heapq
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple, Protocol

from event_triggers.sources.base import Outcome

__all__ = ["Channel", "Client", "Record", "Session", "Wakeup"]


class Record(NamedTuple):
    """One published message, at its place in a channel."""

    number: int
    """Place in the channel, over all partitions."""
    partition: str
    offset: int
    """Place in the partition."""
    body: bytes | None
    key: bytes | None
    headers: tuple[tuple[str, bytes], ...]
    timestamp: datetime

    def identity(self, channel: str) -> str:
        """The message's id, the same however it is read."""
        return f"{channel}:{self.partition}@{self.offset}"


class Client(Protocol):
    """A stream, as the broker sees it."""

    name: str
    wakeup: Wakeup
    waiting: bool
    broken: Exception | None


@dataclass
class Session:
    """How far the readers of a queue have come, by record numbers."""

    next: int
    returned: list[int] = field(default_factory=list)
    in_flight: dict[int, Client] = field(default_factory=dict)
    released: set[int] = field(default_factory=set)
    attempts: Counter[int] = field(default_factory=Counter)

    def give_back(self, numbers: Iterable[int]) -> None:
        """Make these available again, before anything newer."""
        for number in numbers:
            heapq.heappush(self.returned, number)

    def take(self, end: int, count: int, client: Client) -> list[int]:
        """Up to ``count`` records below ``end`` for ``client``, oldest first; they are in flight now."""
        taken = [heapq.heappop(self.returned) for _ in range(min(count, len(self.returned)))]
        fresh = range(self.next, min(end, self.next + count - len(taken)))
        self.next += len(fresh)
        taken += fresh
        for number in taken:
            self.in_flight[number] = client
            self.attempts[number] += 1
        return taken

    def end(self, number: int, outcome: Outcome) -> None:
        """A message in flight has been settled."""
        del self.in_flight[number]
        if outcome is Outcome.RELEASED:
            self.released.add(number)
        elif outcome is Outcome.ABANDONED:
            self.give_back([number])
        else:
            del self.attempts[number]

    def disown(self, client: Client) -> None:
        """``client`` is gone: give back what it had."""
        numbers = [number for number, owner in self.in_flight.items() if owner is client]
        for number in numbers:
            del self.in_flight[number]
        self.give_back(numbers)

    def wake_released(self) -> None:
        """Make the released messages available again."""
        self.give_back(self.released)
        self.released.clear()


class Channel:
    """The records of one name, in the order of publishing and by partition; and the sessions on it."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.partitions: dict[str, list[Record | None]] = {"0": []}
        """By offset; ``None`` is an offset that no reader is shown."""
        self.sessions: dict[str, Session] = {}

    def session(self, group: str) -> Session:
        """The session of a group, made when it is first asked for; ``""`` is the queue's own."""
        # The queue itself keeps what was published before anybody read it; a group's session begins when it is made.
        return self.sessions.setdefault(group, Session(len(self.records) if group else 0))

    def undelivered(self, group: str) -> int:
        """How many messages of a session are not settled for good."""
        session = self.session(group)
        kept = len(session.returned) + len(session.in_flight) + len(session.released)
        return len(self.records) - session.next + kept


class Wakeup:
    """An event that belongs to the running event loop and may be set from any thread."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._event = asyncio.Event()

    def set(self) -> None:
        """Wake whoever waits, or will wait next."""
        try:
            here: asyncio.AbstractEventLoop | None = asyncio.get_running_loop()
        except RuntimeError:
            here = None
        if here is self._loop:
            self._event.set()
        else:
            with suppress(RuntimeError):  # that loop was closed with its stream still open: nobody waits there
                self._loop.call_soon_threadsafe(self._event.set)

    async def wait(self) -> None:
        """Return once it has been set since the last wait."""
        await self._event.wait()
        self._event.clear()
