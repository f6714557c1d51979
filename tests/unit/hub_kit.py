"""What the tests of the hub share: a broker in memory with a hub on it, and a source that they move step by step."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import accumulate, groupby
from typing import Any, ClassVar, TypeVar

import anyio

from event_triggers.delivery import Delivery
from event_triggers.entry import Interest
from event_triggers.errors import ConnectionMissingError
from event_triggers.hub import Hub
from event_triggers.message import Message
from event_triggers.sources.base import (
    BrokerConnection,
    LogStream,
    Opening,
    Outcome,
    Position,
    Settlement,
    Source,
    Stream,
)
from event_triggers.statistics import ChannelStatistics
from event_triggers.subscription import Subscription
from event_triggers.testing import ManualClock, MemoryBroker, MemoryLog, MemoryQueue
from event_triggers.unread import Unread

__all__ = [
    "LOG",
    "QUEUE",
    "Kit",
    "ScriptLog",
    "ScriptQueue",
    "ScriptStream",
    "UnreadLog",
    "UnreadMessages",
    "idle",
    "names",
    "numbers",
    "scripted",
    "soon",
    "until",
    "want",
]

LOG, QUEUE = MemoryLog("log"), MemoryQueue("queue")

T = TypeVar("T")


async def soon(awaitable: Awaitable[T], within: float = 5) -> T:
    """The result of something that must not take long."""
    with anyio.fail_after(within):
        return await awaitable


async def idle() -> None:
    """Let everything run that can run without the clock: all that these tests start needs far fewer steps."""
    for _ in range(100):
        await asyncio.sleep(0)


async def until(condition: Callable[[], bool], within: float = 5) -> None:
    """Wait for something that threads bring about, for which :func:`idle` does not wait."""
    with anyio.fail_after(within):
        while not condition():  # noqa: ASYNC110 - threads cannot set an asyncio event
            await asyncio.sleep(0.001)


def want(source: Source, name: str = "event", **options: Any) -> Interest:
    """An interest."""
    return Interest(name, source, **options)


def numbers(deliveries: Sequence[Delivery]) -> list[Any]:
    """The numbers in the bodies of messages ``{"n": number}``."""
    return [delivery.message.json["n"] for delivery in deliveries]


def names(deliveries: Sequence[Delivery]) -> list[tuple[str, ...]]:
    """Which events they are for."""
    return [delivery.events for delivery in deliveries]


async def _no_connection(conn_id: str) -> BrokerConnection:
    raise ConnectionMissingError(conn_id)


class UnreadMessages(Unread):
    """A batch whose messages, as far as the hub can tell, are not made yet; those of a partition stand together."""

    def __init__(self, batch: Sequence[Message]) -> None:
        self._messages = sorted(batch, key=lambda message: message.partition)
        runs = groupby(self._messages, key=lambda message: message.partition)
        super().__init__([one.body for one in self._messages], list(accumulate(len(list(run)) for _, run in runs)))

    def message(self, place: int) -> Message:
        return self._messages[place]

    def part(self, begin: int, end: int) -> UnreadMessages:
        return UnreadMessages(self._messages[begin:end])


class _UnreadLogStream(LogStream):
    def __init__(self, inner: LogStream) -> None:
        self._inner = inner

    def position(self) -> Position:
        return self._inner.position()

    async def locate(self, since: datetime) -> Position:
        return await self._inner.locate(since)

    async def watch(self, source: Source) -> None:
        await self._inner.watch(source)

    async def __aiter__(self) -> AsyncIterator[Sequence[Message]]:
        async for batch in self._inner:
            yield UnreadMessages(batch)


@dataclass(frozen=True)
class UnreadLog(MemoryLog):
    """A log that yields batches of :class:`UnreadMessages`."""

    @asynccontextmanager
    async def open(self, opening: Opening) -> AsyncIterator[Stream]:
        async with super().open(opening) as inner:
            assert isinstance(inner, LogStream)
            yield _UnreadLogStream(inner)


class Kit:
    """A hub on a broker in memory, with a clock that the test turns."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.broker = MemoryBroker(clock=self.clock)
        self.hub = Hub(_no_connection, clock=self.clock)

    @property
    def start(self) -> datetime:
        """When the test began."""
        return ManualClock().now()

    def ago(self, seconds: float) -> datetime:
        """A moment before now."""
        return self.clock.now() - timedelta(seconds=seconds)

    def publish(self, *values: int, to: Source = LOG, **options: Any) -> None:
        """Send ``{"n": value}`` for each value."""
        for value in values:
            self.broker.publish(to.name, {"n": value}, **options)

    @asynccontextmanager
    async def group(self, *interests: Interest, name: str = "group", live: bool = True) -> AsyncIterator[Subscription]:
        """A group that listens, from the moment where it cannot miss anything any more."""
        async with self.hub.subscribe(name, interests) as subscription:
            if live:
                await soon(subscription.live())
            yield subscription

    async def take(self, subscription: Subscription, count: int) -> list[Delivery]:
        """Receive until there are at least ``count`` deliveries."""
        deliveries: list[Delivery] = []
        with anyio.fail_after(5):
            while len(deliveries) < count:
                deliveries += await subscription.receive()
        return deliveries

    async def received(self, subscription: Subscription, count: int) -> list[Delivery]:
        """The next ``count`` deliveries; fails when there are more."""
        deliveries = await self.take(subscription, count)
        await idle()
        assert len(deliveries) == count
        assert await self.nothing(subscription)
        return deliveries

    @asynccontextmanager
    async def collecting(self, *subscriptions: Subscription) -> AsyncIterator[list[list[int]]]:
        """Receive and accept everything that these groups are handed; of each, the numbers so far."""
        collected: list[list[int]] = [[] for _ in subscriptions]

        async def collect(subscription: Subscription, into: list[int]) -> None:
            while True:
                for delivery in await subscription.receive():
                    into += numbers([delivery])
                    delivery.accept()

        async with anyio.create_task_group() as group:
            for subscription, into in zip(subscriptions, collected, strict=True):
                group.start_soon(collect, subscription, into)
            yield collected
            group.cancel_scope.cancel()

    async def nothing(self, subscription: Subscription) -> bool:
        """Whether nothing more arrives."""
        await idle()
        with anyio.move_on_after(0):
            return not await subscription.receive()
        return True

    def outcomes(self, source: Source = QUEUE) -> list[tuple[int, Outcome]]:
        """How messages ended at the broker, by their numbers."""
        return [(one.message.json["n"], one.outcome) for one in self.broker.settled(source.name)]

    @property
    def channel(self) -> ChannelStatistics:
        """Of the only channel."""
        (statistics,) = self.hub.statistics().channels
        return statistics

    async def later(self, seconds: float = 60) -> None:
        """Let time pass, and everything run that waited for it."""
        await idle()
        self.clock.advance(seconds)
        await idle()

    async def check_nothing_left(self) -> None:
        """After the last group: no channel, no open stream, no task."""
        await idle()
        assert self.hub.statistics().channels == ()
        assert self.broker.statistics().open_streams == 0
        left = [task.get_name() for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        assert left == []


# ------------------------------------------------------------------ a source under the test's control


def scripted(number: int, *, partition: str = "0", receipt: Any = None, stored: bool = False) -> Message:
    """The message ``{"n": number}``, at offset ``number``."""
    return Message(
        source="script",
        stream="script",
        position=f"{partition}@{number}",
        id=f"{partition}@{number}",
        body=b'{"n": %d}' % number,
        stored=stored,
        partition=partition,
        offset=number,
        receipt=receipt,
    )


class ScriptStream(LogStream):
    """Yields what the test feeds (``None`` ends it), and remembers what it is told."""

    def __init__(self, opening: Opening) -> None:
        self.opening = opening
        self.feed: asyncio.Queue[Sequence[Message] | BaseException | None] = asyncio.Queue()
        self.place: dict[str, Any] = dict(opening.start or {"0": 0})
        self.located: dict[str, Any] = {"0": 0}
        self.told: list[tuple[Any, Outcome]] = []
        """The receipts, or else the ids, that were settled, and how."""
        self.watched: list[Source] = []
        self.on_settle: Callable[[], Awaitable[None]] | None = None
        self.on_locate: Callable[[], Awaitable[None]] | None = None
        self.on_watch: Callable[[Source], Awaitable[None]] | None = None
        self.closed = False

    async def __aiter__(self) -> AsyncIterator[Sequence[Message]]:
        while True:
            item = await self.feed.get()
            if item is None:
                return
            if isinstance(item, BaseException):
                raise item
            ends = [item[end - 1] for _, end in item.runs()] if isinstance(item, Unread) else item
            for message in ends:
                self.place[message.partition] = message.offset + 1
            yield item

    async def watch(self, source: Source) -> None:
        if self.on_watch is not None:
            await self.on_watch(source)
        self.watched.append(source)

    async def unwatch(self, source: Source) -> None:
        self.watched.remove(source)

    def position(self) -> Position:
        return dict(self.place)

    async def locate(self, since: datetime) -> Position:
        if self.on_locate is not None:
            await self.on_locate()
        return dict(self.located)

    async def settle(self, settlements: Sequence[Settlement]) -> None:
        if self.on_settle is not None:
            await self.on_settle()
        self.told += [(one.message.receipt or one.message.id, one.outcome) for one in settlements]


class ScriptQueue(Source):
    """Opens a :class:`ScriptStream` each time. Equal to itself only; ``shared`` ones have one key."""

    kind: ClassVar[str] = "script"

    def __init__(self, shared: Hashable = None) -> None:
        self.shared = shared or id(self)
        self.streams: list[ScriptStream] = []
        self.on_open: Callable[[Opening], Awaitable[None]] | None = None
        self.on_close: Callable[[], Awaitable[None]] | None = None
        self.on_forget: Callable[[Opening], Awaitable[None]] | None = None
        self.forgotten: list[str] = []

    @property
    def name(self) -> str:
        return "script"

    @property
    def stream(self) -> ScriptStream:
        """The stream opened last."""
        return self.streams[-1]

    def key(self, group: str) -> Hashable:
        return self.shared

    @asynccontextmanager
    async def open(self, opening: Opening) -> AsyncIterator[Stream]:
        if self.on_open is not None:
            await self.on_open(opening)
        stream = ScriptStream(opening)
        self.streams.append(stream)
        try:
            yield stream
        finally:
            if self.on_close is not None:
                await self.on_close()
            stream.closed = True

    async def forget(self, opening: Opening) -> None:
        if self.on_forget is not None:
            await self.on_forget(opening)
        self.forgotten.append(opening.group)


class ScriptLog(ScriptQueue):
    """The same as a log."""

    replayable: ClassVar[bool] = True
