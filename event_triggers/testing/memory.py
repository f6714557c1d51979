"""Sources on a broker in this process: a log and a queue, for tests of this package and of its users' DAGs and sources.

Both read a :class:`~event_triggers.testing.MemoryBroker`, whose module says what is kept, and what a restart does.
"""

from __future__ import annotations

import heapq
from abc import abstractmethod
from collections.abc import AsyncIterator, Hashable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from typing import ClassVar

from event_triggers.errors import InvalidEventError, StreamError
from event_triggers.message import Message
from event_triggers.sources.base import LogStream, Opening, Outcome, Position, Settlement, Source, Stream
from event_triggers.testing.broker import MemoryBroker
from event_triggers.testing.channel import Record, Wakeup

__all__ = ["MemoryLog", "MemoryQueue", "MemorySource"]


@dataclass(frozen=True)
class MemorySource(Source):
    """What :class:`MemoryLog` and :class:`MemoryQueue` have in common: a channel of a memory broker."""

    channel: str

    @property
    def name(self) -> str:
        return self.channel

    def validate(self) -> None:
        channel: object = self.channel  # nothing has checked yet what the author wrote
        if not isinstance(channel, str) or not channel:
            raise InvalidEventError(f"{type(self).__name__} needs the name of a channel, not {channel!r}")


@dataclass(frozen=True)
class MemoryLog(MemorySource):
    """A channel of a memory broker, read as a log.

    :param channel: as given to :meth:`MemoryBroker.publish`.
    :param keys: only messages with one of these keys; logs of one channel share one stream whatever their keys.
    :param broker: the name of the broker.
    """

    keys: tuple[str, ...] = ()
    broker: str = "default"

    kind: ClassVar[str] = "memory-log"
    replayable: ClassVar[bool] = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "keys", tuple(self.keys))

    def key(self, group: str) -> Hashable:
        return (self.kind, self.broker, self.channel)

    def routes(self, message: Message) -> bool:
        return not self.keys or (message.key or b"").decode("utf-8", errors="replace") in self.keys

    @asynccontextmanager
    async def open(self, opening: Opening) -> AsyncIterator[Stream]:
        broker = MemoryBroker.named(self.broker)
        with broker.connected(_LogStream(broker, self.channel, opening.start)) as stream:
            yield stream


@dataclass(frozen=True)
class MemoryQueue(MemorySource):
    """A channel of a memory broker, read as a queue.

    A rejected message is gone, an abandoned one comes again at once. A released one comes again when a stream opens,
    or on :meth:`MemoryBroker.redeliver`.

    :param channel: as given to :meth:`MemoryBroker.publish`.
    :param per_group: each group has a session of its own, which begins when it is first opened, receives every message
        and stays until it is forgotten; else all share the queue.
    :param shared: queues that name the same connection here share one stream, as the filters of one client do.
    :param broker: the name of the broker.
    """

    per_group: bool = False
    shared: str = ""
    broker: str = "default"

    kind: ClassVar[str] = "memory-queue"

    def key(self, group: str) -> Hashable:
        place = ("connection", self.shared) if self.shared else ("channel", self.channel)
        return (self.kind, self.broker, *place, self._session(group))

    def _session(self, group: str) -> str:
        return group if self.per_group else ""

    def routes(self, message: Message) -> bool:
        return message.stream == self.channel

    @asynccontextmanager
    async def open(self, opening: Opening) -> AsyncIterator[Stream]:
        broker = MemoryBroker.named(self.broker)
        with broker.connected(_QueueStream(broker, self.channel, self._session(opening.group))) as stream:
            yield stream

    async def forget(self, opening: Opening) -> None:
        if self.per_group:
            MemoryBroker.named(self.broker).forget(self.channel, opening.group)


class _MemoryStream(Stream):
    """What both kinds of stream have in common: waiting, breaking, and the channels they deliver."""

    def __init__(self, broker: MemoryBroker, name: str) -> None:
        self.broker = broker
        self.name = name
        self.wakeup = Wakeup()
        self.waiting = False
        self.broken: Exception | None = None
        self.sources: list[MemorySource] = []

    async def watch(self, source: Source) -> None:
        if not isinstance(source, MemorySource):
            raise TypeError(f"a stream of a memory broker cannot watch a {type(source).__name__}")
        with self.broker.lock:
            if source.channel not in {known.channel for known in self.sources}:
                self.begin(source.channel)
            self.sources.append(source)
            self.wakeup.set()

    async def unwatch(self, source: Source) -> None:
        with self.broker.lock:
            self.sources = [known for known in self.sources if known != source]
            if source.name not in {known.channel for known in self.sources}:
                self.end(source.name)

    async def __aiter__(self) -> AsyncIterator[Sequence[Message]]:
        while True:
            with self.broker.lock:
                if self.broken is not None:
                    raise self.broken
                batch = self.next_batch(self.broker.batch_size)
                self.waiting = not batch
                self.broker.delivered(len(batch))
            if batch:
                yield batch
                continue
            try:
                await self.wakeup.wait()
            finally:
                self.waiting = False

    @abstractmethod
    def begin(self, channel: str) -> None:
        """Start to deliver a channel. Called under the broker's lock, as all of these."""

    @abstractmethod
    def end(self, channel: str) -> None:
        """Stop to deliver a channel."""

    @abstractmethod
    def next_batch(self, size: int) -> list[Message]:
        """Up to ``size`` messages that can be delivered now; they count as delivered."""


class _LogStream(_MemoryStream, LogStream):
    """Reads from its own position; the broker knows nothing of it."""

    def __init__(self, broker: MemoryBroker, name: str, start: Position | None) -> None:
        super().__init__(broker, name)
        self._start = start
        self._next: dict[str, int] = {}

    def begin(self, channel: str) -> None:
        partitions = self.broker.channel(channel).partitions
        if self._start is None:
            self._next = {name: len(records) for name, records in partitions.items()}
        else:
            self._next = {name: self._start.get(name, 0) for name in partitions}

    def end(self, channel: str) -> None:
        """Nothing to stop: the stream has one channel, and it ends with it."""

    def next_batch(self, size: int) -> list[Message]:
        if not self.sources:
            return []
        partitions = self.broker.channel(self.name).partitions
        self._pass_gaps(partitions)
        begins = ((records, self._next[p]) for p, records in partitions.items())
        heads = [[record for record in records[begin : begin + size] if record] for records, begin in begins]
        taken = list(islice(heapq.merge(*heads), size))
        for record in taken:
            self._next[record.partition] = record.offset + 1
        self._pass_gaps(partitions)
        return [_log_message(self.name, record) for record in taken]

    def _pass_gaps(self, partitions: Mapping[str, Sequence[Record | None]]) -> None:
        for name, records in partitions.items():
            offset = self._next.setdefault(name, 0)
            while offset < len(records) and records[offset] is None:
                offset += 1
            self._next[name] = offset

    def position(self) -> Position:
        with self.broker.lock:
            return {name: self._next.get(name, 0) for name in self.broker.channel(self.name).partitions}

    async def locate(self, since: datetime) -> Position:
        with self.broker.lock:
            if self.broken is not None:
                raise self.broken
            return {
                name: next((r.offset for r in records if r is not None and r.timestamp >= since), len(records))
                for name, records in self.broker.channel(self.name).partitions.items()
            }


class _QueueStream(_MemoryStream):
    """Reads through a session that the broker keeps."""

    def __init__(self, broker: MemoryBroker, name: str, session: str) -> None:
        super().__init__(broker, name)
        self._session = session

    def begin(self, channel: str) -> None:
        self.broker.channel(channel).session(self._session).wake_released()

    def end(self, channel: str) -> None:
        """What is in flight stays so: it may still be settled."""

    def next_batch(self, size: int) -> list[Message]:
        batch: list[Message] = []
        for name in dict.fromkeys(source.channel for source in self.sources):
            channel = self.broker.channel(name)
            session = channel.session(self._session)
            taken = session.take(len(channel.records), size - len(batch), self)
            batch += [_queue_message(name, channel.records[number], session.attempts[number]) for number in taken]
        return batch

    async def settle(self, settlements: Sequence[Settlement]) -> None:
        with self.broker.lock:
            if self.broken is not None:
                raise StreamError(f"cannot settle on {self.name!r}: {self.broken}") from self.broken
            self.broker.check_settle(self)
            for settlement in settlements:
                name, number = settlement.message.receipt
                session = self.broker.channel(name).session(self._session)
                # Settled before, or given back meanwhile: then this is an old story.
                if session.in_flight.get(number) is self:
                    session.end(number, settlement.outcome)
                    self.broker.settle(name, settlement)
            if any(settlement.outcome is Outcome.ABANDONED for settlement in settlements):
                self.broker.changed()
            else:
                self.broker.tell_watchers()


def _log_message(channel: str, record: Record) -> Message:
    return Message(
        source=MemoryLog.kind,
        stream=channel,
        position=f"{record.partition}@{record.offset}",
        id=record.identity(channel),
        body=record.body,
        key=record.key,
        headers=record.headers,
        timestamp=record.timestamp,
        partition=record.partition,
        offset=record.offset,
    )


def _queue_message(channel: str, record: Record, attempt: int) -> Message:
    return Message(
        source=MemoryQueue.kind,
        stream=channel,
        position=str(record.number),
        id=record.identity(channel),
        body=record.body,
        key=record.key,
        headers=record.headers,
        timestamp=record.timestamp,
        receipt=(channel, record.number),
        attempt=attempt,
    )
