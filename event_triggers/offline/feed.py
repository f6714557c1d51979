"""Streams that stand for the brokers of a group: they deliver what the file holds, and nothing is settled anywhere.

A source that stands for another can be serialised and loaded again, in this process: a feed is found by its name for as
long as somebody holds it.
"""

from __future__ import annotations

import asyncio
import uuid
from abc import abstractmethod
from collections.abc import AsyncIterator, Collection, Hashable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, ClassVar
from weakref import WeakValueDictionary

from event_triggers.errors import InvalidEventError
from event_triggers.event import Event
from event_triggers.message import Message
from event_triggers.offline.lines import Line
from event_triggers.sources.base import LogStream, Opening, Outcome, Position, Settlement, Source, Stream, load_source
from event_triggers.sources.kafka import KafkaTopic
from event_triggers.sources.mqtt import MqttTopic
from event_triggers.sources.sqs import SqsQueue

__all__ = ["Feed", "impersonated", "stands_for"]

_PARTITION = "file"


class Feed:
    """What one source delivers."""

    def __init__(self) -> None:
        self.name = uuid.uuid4().hex
        _feeds[self.name] = self
        self.messages: list[Message] = []
        self.waiting: list[Message] = []
        """Of a queue: what is to be delivered, again or for the first time."""
        self.streams: set[_Stream] = set()

    def push(self, message: Message) -> None:
        """Deliver one more."""
        message.offset = len(self.messages)
        self.messages.append(message)
        self.give_back(message)

    def give_back(self, message: Message) -> None:
        """Deliver this one, which was not taken."""
        self.waiting.append(message)
        for stream in self.streams:
            stream.wake()


_feeds: WeakValueDictionary[str, Feed] = WeakValueDictionary()


def _load_feed(name: str) -> Feed:
    try:
        return _feeds[name]
    except KeyError:
        raise InvalidEventError(f"nobody delivers the messages of feed {name!r} any more") from None


@dataclass(frozen=True)
class _Source(Source):
    """A source of the DAG, with a feed in the place of its broker; or both, as :meth:`serialize` gives them.

    With another feed it is another source: a group does not get what was sent to the group before it.
    """

    real: Source
    feed: Feed

    def __post_init__(self) -> None:
        if isinstance(self.real, Mapping):
            object.__setattr__(self, "real", load_source(self.real))
        if isinstance(self.feed, str):
            object.__setattr__(self, "feed", _load_feed(self.feed))

    def serialize(self) -> dict[str, Any]:
        path = f"{type(self).__module__}.{type(self).__qualname__}"
        return {"type": path, "real": self.real.serialize(), "feed": self.feed.name}

    @property
    def name(self) -> str:
        return self.real.name

    @property
    def label(self) -> str:
        return self.real.label

    def key(self, group: str) -> Hashable:
        return ("offline", id(self.feed))

    def routes(self, message: Message) -> bool:
        return self.real.routes(message)


class _Log(_Source):
    kind: ClassVar[str] = "offline-log"
    replayable: ClassVar[bool] = True

    @asynccontextmanager
    async def open(self, opening: Opening) -> AsyncIterator[Stream]:
        start = len(self.feed.messages) if opening.start is None else opening.start[_PARTITION]
        yield _LogStream(self.feed, start)


class _Queue(_Source):
    kind: ClassVar[str] = "offline-queue"

    @asynccontextmanager
    async def open(self, opening: Opening) -> AsyncIterator[Stream]:
        yield _QueueStream(self.feed)


class _PrivateQueue(_Queue):
    private: ClassVar[bool] = True


class _Stream(Stream):
    def __init__(self, feed: Feed) -> None:
        self.feed = feed
        self._more = asyncio.Event()

    def wake(self) -> None:
        """There is something to deliver."""
        self._more.set()

    async def __aiter__(self) -> AsyncIterator[Sequence[Message]]:
        self.feed.streams.add(self)
        try:
            while True:
                self._more.clear()
                if batch := self.take():
                    yield batch
                    continue
                await self._more.wait()
        finally:
            self.feed.streams.discard(self)

    @abstractmethod
    def take(self) -> list[Message]:
        """What can be delivered now."""


class _QueueStream(_Stream):
    def take(self) -> list[Message]:
        taken, self.feed.waiting = self.feed.waiting, []
        return taken

    async def settle(self, settlements: Sequence[Settlement]) -> None:
        # A released one would come again too; what nobody wants now, nobody wants later.
        for message, outcome in settlements:
            if outcome is Outcome.ABANDONED:
                self.feed.give_back(message)


class _LogStream(_Stream, LogStream):
    def __init__(self, feed: Feed, start: int) -> None:
        super().__init__(feed)
        self._next = start

    def take(self) -> list[Message]:
        taken = self.feed.messages[self._next :]
        self._next += len(taken)
        return taken

    def position(self) -> Position:
        return {_PARTITION: self._next}

    async def locate(self, since: datetime) -> Position:
        stamps = [message.timestamp for message in self.feed.messages]
        found = (place for place, stamp in enumerate(stamps) if stamp is not None and stamp >= since)
        return {_PARTITION: next(found, len(stamps))}


def impersonated(events: Mapping[str, Event]) -> tuple[dict[str, Event], dict[Source, Feed]]:
    """The events with a feed in the place of each broker; equal sources share one."""
    feeds: dict[Source, Feed] = {}
    changed: dict[str, Event] = {}
    for name, event in events.items():
        real = event.source
        feed = feeds.setdefault(real, Feed())
        kind = _Log if real.replayable else _PrivateQueue if real.private else _Queue
        changed[name] = replace(event, source=kind(real, feed))
    return changed, feeds


def stands_for(line: Line, source: Source, now: datetime, events: Collection[str] = ()) -> Message | None:
    """The message that this line is on this source; ``None`` when it comes from elsewhere.

    :param events: the names of the events that wait for this source.
    """
    if line.event is not None and line.event not in events:
        return None
    if line.source is not None and line.source != source.kind:
        return None
    stream = _stream(line, source)
    if stream is None:
        return None
    # Only an MQTT broker does not stamp what it is sent.
    stamped = line.timestamp or (None if isinstance(source, MqttTopic) else now)
    return Message(
        source=source.kind,
        stream=stream,
        position=f"line {line.number}",
        id=f"line {line.number}",
        body=line.body,
        key=line.key,
        headers=line.headers,
        timestamp=stamped,
        partition=_PARTITION,
    )


def _stream(line: Line, source: Source) -> str | None:
    if isinstance(source, KafkaTopic):
        return _one_of(line.stream, source.topics)
    if isinstance(source, SqsQueue):
        return _one_of(line.stream, (source.name, source.name.rstrip("/").rpartition("/")[2]))
    if isinstance(source, MqttTopic) and line.stream is not None:
        probe = Message(source=source.kind, stream=line.stream, position="", id="", body=b"")
        return line.stream if source.routes(probe) else None
    return _one_of(line.stream, (source.name,))


def _one_of(stream: str | None, known: Sequence[str]) -> str | None:
    return known[0] if stream is None else stream if stream in known else None
