"""A broker that lives in this process.

Flow: :meth:`MemoryBroker.publish` appends a record to a channel and wakes the streams that wait. A log stream reads a
channel from a position of its own. A queue stream reads it through a *session* that the broker keeps: a place in the
channel, the messages given back, in flight and released. One channel can be read both ways at once.

Invariants:

* A stream that ends, for whatever reason, gives back what it had in flight.
* A released message does not come again by itself, which would spin: it comes again when a stream opens on its session,
  or when a test calls :meth:`MemoryBroker.redeliver`.
* Everything is changed under the broker's lock, and streams are woken in their own event loop. So a test may publish
  from any thread, and one broker may serve several event loops, one after the other.

A restart of the process begins with empty brokers; :meth:`MemoryBroker.reset` does the same for a test.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from typing import Any, ClassVar, NamedTuple, TypeVar

import msgspec

from event_triggers.clock import Clock, SystemClock
from event_triggers.errors import ConfigurationError, StreamError
from event_triggers.sources.base import Outcome, Settlement
from event_triggers.testing.channel import Channel, Client, Record, Wakeup

__all__ = ["MemoryBroker", "MemoryStatistics"]

Headers = Mapping[str, str | bytes] | Iterable[tuple[str, str | bytes]]

_Client = TypeVar("_Client", bound=Client)


class MemoryStatistics(NamedTuple):
    """What a broker has seen since it was made or reset."""

    open_streams: int
    """Streams that are open now."""
    waiting: int
    """Open streams that wait for a message: whoever iterates them has pulled everything."""
    opened: int
    """Streams that were ever opened."""
    published: int
    delivered: int
    """Messages that streams have yielded, counting each time."""
    accepted: int
    released: int
    abandoned: int
    rejected: int


class MemoryBroker:
    """A broker for tests. Sources find it by name; ``"default"`` always exists.

    Channels are made when they are first used. Every method may be called from any thread, with or without a loop.

    :param name: a later broker of the same name takes the earlier one's place.
    :param clock: stamps the messages that are published without a timestamp.
    :param batch_size: the most messages that a stream yields at once.
    """

    _brokers: ClassVar[dict[str, MemoryBroker]] = {}

    def __init__(self, name: str = "default", *, clock: Clock | None = None, batch_size: int = 500) -> None:
        self.name = name
        self.batch_size = batch_size
        self.lock = threading.RLock()
        self.clock: Clock = clock or SystemClock()
        self._watchers: set[Wakeup] = set()
        self._clients: list[Client] = []
        self._clear()
        MemoryBroker._brokers[name] = self

    @classmethod
    def named(cls, name: str = "default") -> MemoryBroker:
        """The broker of this name.

        :raises ConfigurationError: when nobody has made it.
        """
        broker = cls._brokers.get(name)
        if broker is None and name == "default":
            broker = cls()
        if broker is None:
            raise ConfigurationError(f"there is no memory broker {name!r} in this process: make MemoryBroker({name!r})")
        return broker

    def _clear(self) -> None:
        self._channels: dict[str, Channel] = {}
        self._failing_opens: list[tuple[str | None, BaseException]] = []
        self._failing_settles: list[tuple[str | None, BaseException]] = []
        self._settled: list[tuple[str, Settlement]] = []
        self._counts: Counter[str] = Counter()

    def reset(self) -> None:
        """Break the streams that are open, and forget everything."""
        with self.lock:
            self.cut()
            self._clear()
            self.changed()

    def publish(
        self,
        name: str,
        body: Any,
        *,
        key: str | bytes | None = None,
        headers: Headers = (),
        timestamp: datetime | None = None,
        partition: int | None = None,
    ) -> str:
        """Append a message to the channel ``name``.

        :param body: bytes are taken as they are, ``None`` is a tombstone, anything else is encoded as JSON.
        :param timestamp: aware; by default the broker's clock says.
        :param partition: by default chosen by the key, or without one in turn.
        :returns: the message's id, as both kinds of source give it.
        :raises ValueError: for a timestamp without a zone.
        """
        if timestamp is not None and timestamp.tzinfo is None:
            raise ValueError(f"timestamp {timestamp.isoformat()} has no zone; make it aware")
        raw = body if body is None or isinstance(body, bytes) else msgspec.json.encode(body)
        raw_key = key.encode() if isinstance(key, str) else key
        with self.lock:
            channel = self.channel(name)
            number = len(channel.records)
            if partition is None:
                partition = (number if raw_key is None else sum(raw_key)) % len(channel.partitions)
            place = channel.partitions.setdefault(str(partition), [])
            record = Record(
                number, str(partition), len(place), raw, raw_key, _raw(headers), timestamp or self.clock.now()
            )
            place.append(record)
            channel.records.append(record)
            self._counts["published"] += 1
            self.changed()
        return record.identity(name)

    def partitions(self, name: str, count: int) -> None:
        """Give the channel at least ``count`` partitions, named ``"0"``, ``"1"``, ...; a new channel has one."""
        with self.lock:
            channel = self.channel(name)
            for number in range(count):
                channel.partitions.setdefault(str(number), [])
            self.changed()

    def skip(self, name: str, count: int = 1, *, partition: int = 0) -> None:
        """Use ``count`` offsets for nothing, as the marks of transactions and compacted-away messages do."""
        with self.lock:
            self.channel(name).partitions.setdefault(str(partition), []).extend([None] * count)
            self.changed()

    def undelivered(self, name: str, *, group: str = "") -> int:
        """How many messages a queue keeps: not yet reached, given back, in flight or released.

        :param group: of a queue with a session per group, whose session.
        """
        with self.lock:
            return self.channel(name).undelivered(group)

    def sessions(self, name: str) -> set[str]:
        """The groups that have a session of their own on the channel."""
        with self.lock:
            return set(self.channel(name).sessions) - {""}

    def settled(self, name: str) -> list[Settlement]:
        """How the messages of the channel were settled, in the order in which that was told."""
        with self.lock:
            return [settlement for channel, settlement in self._settled if channel == name]

    def redeliver(self, name: str, *, in_flight: bool = False) -> None:
        """Make released messages available again, as queues do after some time.

        :param in_flight: also those that are in flight, as when their visibility has run out.
        """
        with self.lock:
            for session in self.channel(name).sessions.values():
                session.wake_released()
                if in_flight:
                    session.give_back(session.in_flight)
                    session.in_flight.clear()
            self.changed()

    def cut(self, name: str | None = None, *, error: Exception | None = None) -> None:
        """Break open streams: each raises at its next pull, and takes no settlement any more.

        :param name: only those that were opened for this channel.
        :param error: what they raise; by default a :class:`StreamError`.
        """
        with self.lock:
            for client in [c for c in self._clients if name is None or c.name == name]:
                client.broken = error or StreamError(
                    f"memory broker {self.name!r} cut the connection of {client.name!r}"
                )
                self._disconnect(client)

    def fail_next_open(self, error: BaseException, *, name: str | None = None, times: int = 1) -> None:
        """Refuse the next ``times`` openings (of the channel ``name``) with ``error``."""
        with self.lock:
            self._failing_opens += [(name, error)] * times

    def fail_next_settle(self, error: BaseException, *, name: str | None = None, times: int = 1) -> None:
        """Refuse the next ``times`` settlings (on streams opened for ``name``) with ``error``; nothing is settled."""
        with self.lock:
            self._failing_settles += [(name, error)] * times

    def statistics(self) -> MemoryStatistics:
        """What the broker has seen, and what is open now."""
        with self.lock:
            count = self._counts
            return MemoryStatistics(
                open_streams=len(self._clients),
                waiting=sum(client.waiting for client in self._clients),
                opened=count["opened"],
                published=count["published"],
                delivered=count["delivered"],
                accepted=count[Outcome.ACCEPTED.value],
                released=count[Outcome.RELEASED.value],
                abandoned=count[Outcome.ABANDONED.value],
                rejected=count[Outcome.REJECTED.value],
            )

    async def until(self, condition: Callable[[MemoryStatistics], bool]) -> MemoryStatistics:
        """Return once ``condition`` holds, which is asked at every change of the broker. Bound it yourself."""
        wakeup = Wakeup()
        self._watchers.add(wakeup)
        try:
            while not condition(statistics := self.statistics()):
                await wakeup.wait()
            return statistics
        finally:
            self._watchers.discard(wakeup)

    def forget(self, name: str, group: str) -> None:
        """End the session of ``group`` on the channel, if it has one."""
        with self.lock:
            self.channel(name).sessions.pop(group, None)

    # For the streams; all but connected() are called under the lock.

    def channel(self, name: str) -> Channel:
        """The channel of this name, made when it is first asked for."""
        found = self._channels.get(name)
        if found is None:
            found = self._channels[name] = Channel()
        return found

    @contextmanager
    def connected(self, client: _Client) -> Iterator[_Client]:
        """A stream, open as long as the context.

        :raises BaseException: what :meth:`fail_next_open` asked for.
        """
        with self.lock:
            _raise_next(self._failing_opens, client.name)
            self._clients.append(client)
            self._counts["opened"] += 1
            self.tell_watchers()
        try:
            yield client
        finally:
            with self.lock:
                client.broken = client.broken or StreamError(f"this stream of {client.name!r} has been closed")
                self._disconnect(client)

    def _disconnect(self, client: Client) -> None:
        # Others may have what it had in flight. Happens twice to a stream that was cut.
        client.waiting = False
        if client in self._clients:
            self._clients.remove(client)
        for channel in self._channels.values():
            for session in channel.sessions.values():
                session.disown(client)
        client.wakeup.set()
        self.changed()

    def settle(self, name: str, settlement: Settlement) -> None:
        """Note how a message in flight ended."""
        self._settled.append((name, settlement))
        self._counts[settlement.outcome.value] += 1

    def check_settle(self, client: Client) -> None:
        """Raise what :meth:`fail_next_settle` asked for."""
        _raise_next(self._failing_settles, client.name)

    def delivered(self, count: int) -> None:
        """A stream is about to yield ``count`` messages."""
        self._counts["delivered"] += count
        self.tell_watchers()

    def changed(self) -> None:
        """There may be something to deliver: wake everybody."""
        for client in self._clients:
            client.waiting = False
            client.wakeup.set()
        self.tell_watchers()

    def tell_watchers(self) -> None:
        """The statistics have changed."""
        for wakeup in tuple(self._watchers):
            wakeup.set()


def _raise_next(failing: list[tuple[str | None, BaseException]], name: str) -> None:
    for place, (wanted, error) in enumerate(failing):
        if wanted is None or wanted == name:
            del failing[place]
            raise error


def _raw(headers: Headers) -> tuple[tuple[str, bytes], ...]:
    pairs = headers.items() if isinstance(headers, Mapping) else headers
    return tuple((name, value.encode() if isinstance(value, str) else value) for name, value in pairs)
