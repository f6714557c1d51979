"""Sources in memory that fail and hesitate call by call as a machine wants, and watch how the hub treats them."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict, deque
from collections.abc import AsyncIterator, Hashable, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import count
from typing import ClassVar

from event_triggers.errors import StreamError
from event_triggers.message import Message
from event_triggers.sources.base import LogStream, Opening, Position, Settlement, Source, Stream
from event_triggers.testing import MemoryLog, MemoryQueue
from tests.unit.hub_kit import UnreadMessages

__all__ = ["HOW", "WHERE", "Faults", "FaultyLog", "FaultyQueue"]

WHERE = ("open", "close", "watch", "unwatch", "pull", "settle", "locate", "forget")
HOW = ("fail", "lose", "hang")


class Faults:
    """What goes wrong at the broker: ``fail`` without effect, ``lose`` the answer, or ``hang`` until it is let go."""

    current: ClassVar[Faults]

    def __init__(self) -> None:
        Faults.current = self
        self.unread = False
        """Whether logs yield what they have read as batches whose messages are made when they are wanted."""
        self.redelivery = 0.0
        """Seconds within which queues say that a copy comes of what they were not told of."""
        self.wrong: list[str] = []
        """What the hub must not have done."""
        self._plan: defaultdict[str, deque[str]] = defaultdict(deque)
        self._hanging: list[asyncio.Future[None]] = []
        self._open: Counter[Hashable] = Counter()
        self._serial = count()
        self._newest: dict[Hashable, int] = {}
        self._told: set[int] = set()

    def add(self, where: str, how: str) -> None:
        """The next call of this kind that is not spoken for."""
        self._plan[where].append(how)

    def end(self) -> None:
        """Nothing goes wrong any more."""
        self._plan.clear()
        self.let_go()

    def let_go(self) -> None:
        """Let those calls go on that hang."""
        for future in self._hanging:
            if not future.done():
                future.set_result(None)

    @asynccontextmanager
    async def at(self, where: str) -> AsyncIterator[None]:
        """Around the effect of one call."""
        how = self._plan[where].popleft() if self._plan[where] else ""
        await asyncio.sleep(0)  # every call takes time
        if how == "fail":
            raise StreamError(f"{where} failed")
        if how == "hang":
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._hanging.append(future)
            try:
                await future
            finally:
                self._hanging.remove(future)
        yield
        if how == "lose":
            raise StreamError(f"the answer of {where} was lost")

    @contextmanager
    def alone(self, key: Hashable) -> Iterator[None]:
        """A connection, or what must not happen beside it."""
        self._open[key] += 1
        if self._open[key] > 1:
            self.wrong.append(f"{key} is used twice at the same time")
        try:
            yield
        finally:
            self._open[key] -= 1

    def delivered(self, session: str, message: Message) -> None:
        """Give each delivery a receipt of its own; only the newest of a message is good for anything."""
        serial = next(self._serial)
        self._newest[session, message.receipt] = serial
        message.receipt = (*message.receipt, serial)

    def valid(self, session: str, settlements: Sequence[Settlement]) -> list[Settlement]:
        """What the broker goes by."""
        return [
            Settlement(replace(one.message, receipt=one.message.receipt[:2]), one.outcome)
            for one in settlements
            if self._newest[session, one.message.receipt[:2]] == one.message.receipt[2]
        ]

    def told(self, settlements: Sequence[Settlement]) -> None:
        """The hub knows that the broker has heard."""
        for message, outcome in settlements:
            if message.receipt[2] in self._told:
                self.wrong.append(f"{message} is told once more, as {outcome}")
            self._told.add(message.receipt[2])


class _FaultyStream(Stream):
    def __init__(self, inner: Stream, session: str | None) -> None:
        self._inner = inner
        self._session = session
        self._faults = Faults.current

    async def __aiter__(self) -> AsyncIterator[Sequence[Message]]:
        async with aclosing(self._inner.__aiter__()) as batches:  # type: ignore[type-var]
            async for batch in batches:
                if self._session is not None:
                    for message in batch:
                        self._faults.delivered(self._session, message)
                yield UnreadMessages(batch) if self._faults.unread else batch
                try:
                    async with self._faults.at("pull"):
                        pass
                except StreamError as error:
                    if "lost" in str(error):
                        return  # a stream must not end by itself; this one does
                    raise

    async def settle(self, settlements: Sequence[Settlement]) -> None:
        assert self._session is not None
        async with self._faults.at("settle"):
            await self._inner.settle(self._faults.valid(self._session, settlements))
        self._faults.told(settlements)

    async def watch(self, source: Source) -> None:
        async with self._faults.at("watch"):
            await self._inner.watch(source)

    async def unwatch(self, source: Source) -> None:
        async with self._faults.at("unwatch"):
            await self._inner.unwatch(source)


class _FaultyLogStream(_FaultyStream, LogStream):
    def position(self) -> Position:
        assert isinstance(self._inner, LogStream)
        return self._inner.position()

    async def locate(self, since: datetime) -> Position:
        assert isinstance(self._inner, LogStream)
        async with self._faults.at("locate"):
            return await self._inner.locate(since)


@dataclass(frozen=True)
class FaultyLog(MemoryLog):
    """A log of the broker in memory."""

    @asynccontextmanager
    async def open(self, opening: Opening) -> AsyncIterator[Stream]:
        async with Faults.current.at("open"):
            pass
        async with super().open(opening) as inner:
            try:
                yield _FaultyLogStream(inner, None)
            finally:
                async with Faults.current.at("close"):
                    pass


@dataclass(frozen=True)
class FaultyQueue(MemoryQueue):
    """A queue of the broker in memory; one connection at a time for a key, and none while its session is removed."""

    @property
    def redelivery(self) -> float:
        return Faults.current.redelivery

    @asynccontextmanager
    async def open(self, opening: Opening) -> AsyncIterator[Stream]:
        with Faults.current.alone(self.key(opening.group)):
            async with Faults.current.at("open"):
                pass
            async with super().open(opening) as inner:
                try:
                    yield _FaultyStream(inner, opening.group if self.per_group else "")
                finally:
                    async with Faults.current.at("close"):
                        pass

    async def forget(self, opening: Opening) -> None:
        with Faults.current.alone(self.key(opening.group)):
            async with Faults.current.at("forget"):
                await super().forget(opening)
