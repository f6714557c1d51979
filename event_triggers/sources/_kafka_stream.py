"""The live stream of one or several Kafka topics.

Flow::

    metadata -> partitions -> assigned, each from its next offset -> fetched ahead -> yielded (the next offset moves)
        ^                                                               |
        `-- every 30 s, and each second while something is missing      `-- the broker has no such offset: say so, go on

Invariants:

* ``_next`` is the position: what was yielded lies before it. It moves together with the yield, with nothing waited for
  in between, and also over records that nobody is shown (aborted transactions, the marks of transactions).
* A partition is read from its entry in ``_next``, and one without an entry from its beginning: it appeared later.
* Offsets never jump silently. What the log no longer has, and a topic that was deleted and created again, is an ERROR
  in the log of every group that listens, and reading goes on with the oldest message there is.
* Ids and positions hold the topic's own id, where the broker gives one: those of a topic that was created again are
  others, though its offsets begin anew.
* A partition that no broker answers for is a WARNING; when there is no answer for any, the stream raises.

Nothing is kept at the broker. After a restart the hub opens the stream at a position, or a moment, that it knows.
"""

from __future__ import annotations

import asyncio
import base64
import logging
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from datetime import datetime, timedelta, timezone
from typing import Any, Final

from event_triggers.clock import Clock
from event_triggers.errors import StreamError
from event_triggers.message import Message
from event_triggers.sources._kafka_client import KafkaClient, OffsetsGone, Partition
from event_triggers.sources._kafka_records import KafkaRecords, RecordPlace
from event_triggers.sources._kafka_silence import Silence
from event_triggers.sources.base import LogStream, Position
from event_triggers.text import plain_logger

__all__ = ["KafkaStream"]

log = plain_logger(__name__)

_BATCH: Final = 500
_WAIT: Final = 1.0
"""Seconds between two looks at what moves without messages (marks of transactions), and at whether brokers answer."""
_LOOK_AGAIN: Final = 1.0
"""Seconds between two looks for a topic or a partition that is missing."""
_GONE_AFTER: Final = 5.0
"""Seconds after which a missing topic counts as deleted, where its id is not known."""
_SLACK: Final = 5.0
"""Seconds beyond a request's time limit in which aiokafka may connect again by itself."""
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=timezone.utc)


class _Offset(int):
    """An offset, and of which topic, as topics of the same name may follow each other."""

    topic_id: bytes | None

    @classmethod
    def of(cls, topic_id: bytes | None, offset: int) -> _Offset:
        """An offset in the topic of this id; ``None`` where that is not known."""
        self = cls(offset)
        self.topic_id = topic_id
        return self

    def __ge__(self, other: int) -> bool:
        # Nothing of another topic's can be reached any more.
        ids = {self.topic_id, getattr(other, "topic_id", None)} - {None}
        return len(ids) == 2 or int(self) >= int(other)


class KafkaStream(LogStream):
    """Reads these topics. Call :meth:`begin` before anything else.

    :param tell: writes into the logs of those who listen.
    """

    def __init__(self, client: KafkaClient, topics: Sequence[str], clock: Clock, tell: Callable[..., None]) -> None:
        self._client = client
        self._tell = tell
        self._topics = topics
        self._clock = clock
        self._label = f"kafka {','.join(topics)} (connection {client.settings.conn_id!r})"
        self._next: dict[str, int] = {}
        self._oldest: dict[str, int] = {}
        """Where partitions began when that was last asked; logs only lose their beginnings."""
        self._firsts: dict[Partition, int] = {}
        """Where partitions began when a moment was last looked up."""
        self._places: dict[Partition, RecordPlace] = {}
        self._generation = -1
        self._ids: dict[str, bytes] = {}
        self._former_ids: set[bytes] = set()
        self._missing: dict[str, float] = {}
        self._headless: set[str] = set()
        """Partitions that wait for a leader to say where they begin."""
        self._incomplete = False
        self._looked = clock.monotonic()
        self._noted = clock.monotonic()
        self._silence = Silence(client.settings.request_timeout + _SLACK, self._label, tell)
        self._has_time_index = False
        """Whether the broker was seen to know when messages were stamped; an empty log does not tell."""

    # ------------------------------------------------------------------ the contract

    async def begin(self, start: Position | None) -> None:
        """Find the partitions and where to begin in each.

        :raises StreamError: when a topic may not be read, or it cannot be known where a partition ends.
        """
        await self._client.watch(self._topics)
        self._client.check_topics()
        if start is None:
            partitions = [one for topic in self._topics for one in self._client.partitions(topic)]
            headless = [_name(one) for one in partitions if not self._client.has_leader(one)]
            if headless:
                raise StreamError(f"{self._label}: no broker leads {', '.join(headless)}, so its end cannot be known")
            self._next = {_name(one): offset for one, offset in (await self._client.ends(partitions)).items()}
            # Now, because every answer waits for the fetch that was asked before, and nothing is fetched yet.
            await self._learn_beginnings(partitions)
            await self._look_for_index([one for one in partitions if self._has_past(_name(one))])
        else:
            self._next = {name: int(offset) for name, offset in start.items()}
            # If its id is another one now, following it says so.
            ids = {_topic_of(name): getattr(offset, "topic_id", None) for name, offset in start.items()}
            self._ids = {topic: identity for topic, identity in ids.items() if identity is not None}
        await self._follow()

    def position(self) -> Position:
        return self._marked(self._next)

    def after(self, message: Message) -> Any:
        return _Offset.of(self._ids.get(message.stream), message.offset + 1)

    def _marked(self, offsets: Mapping[str, int]) -> Position:
        return {name: _Offset.of(self._ids.get(_topic_of(name)), offset) for name, offset in offsets.items()}

    async def __aiter__(self) -> AsyncIterator[Sequence[Message]]:
        while True:
            if self._client.generation != self._generation:
                await self._follow()
            self._look_again()
            records = await self._fetch()
            messages = KafkaRecords([(self._places[partition], batch) for partition, batch in records.items()])
            moved = await self._move(records)
            if messages or moved:
                yield messages

    async def locate(self, since: datetime) -> Position:
        # Rounded up: Kafka's stamps have no microseconds, so this is the first that is not before.
        milliseconds = max(0, -((_EPOCH - since) // timedelta(milliseconds=1)))
        # Where nothing is found, all that lies before this position is older, and what lies behind it will be yielded.
        offsets = dict(self._next)
        # Both at once: an answer takes as long as the fetch that was asked before.
        found, self._firsts = await asyncio.gather(
            self._client.first_since(self._places, milliseconds),
            self._client.beginnings(one for one in self._places if self._next[_name(one)]),
        )
        offsets.update({_name(one): offset for one, offset in found.items() if offset is not None})
        unknown = [one for one, offset in found.items() if offset is None and self._has_past(_name(one))]
        if unknown and not self._has_time_index:
            for one, offset in (await self._beginnings_without_index(unknown)).items():
                offsets[_name(one)] = min(offset, offsets[_name(one)])
        return self._marked(offsets)

    async def lost(self, start: Position) -> str:
        # Whoever begins where the log begins cannot know how old what was deleted before it was.
        firsts = {_name(one): first for one, first in self._firsts.items()}
        gone = {name: first for name, first in firsts.items() if 0 < start.get(name, 0) <= first}
        if not gone:
            return ""
        where = ", ".join(f"partition {name} begins at offset {first} now" for name, first in sorted(gone.items()))
        return f"{where}: what was before is deleted (retention, or somebody deleted records)"

    def _has_past(self, name: str) -> bool:
        """Whether messages may lie before the position of this partition."""
        return self._next.get(name, 0) > self._oldest.get(name, -1)

    async def _beginnings_without_index(self, unknown: Iterable[Partition]) -> dict[Partition, int]:
        """Where to begin if the broker cannot look moments up: at the beginning. The hub drops what is too old."""
        beginnings = await self._client.beginnings(unknown)
        # Whoever finds no message since 1970 in a partition that has messages cannot look moments up.
        await self._look_for_index(beginnings)
        return {} if self._has_time_index else beginnings

    async def _look_for_index(self, partitions: Iterable[Partition]) -> None:
        known = await self._client.first_since(partitions, 0)
        self._has_time_index = any(offset is not None for offset in known.values())

    # ------------------------------------------------------------------ partitions

    async def _follow(self) -> None:
        """Assign what the newest metadata say."""
        self._generation = self._client.generation
        self._client.check_topics()
        for topic in self._topics:
            self._note_topic(topic)
        existing = {one for topic in self._topics for one in self._client.partitions(topic)}
        # Where a partition begins can only be asked of its leader; it comes with later metadata.
        ready = {one for one in existing if _name(one) in self._next or self._client.has_leader(one)}
        self._headless = {_name(one) for one in existing - ready}
        self._incomplete = bool(self._missing) or bool(self._headless)
        kept = self._places.keys() & existing
        if ready - kept or self._places.keys() - kept:
            await self._assign(ready | kept)

    async def _assign(self, partitions: Iterable[Partition]) -> None:
        partitions = sorted(partitions)
        unknown = [one for one in partitions if _name(one) not in self._next]
        await self._learn_beginnings(unknown)
        for one in unknown:
            self._next[_name(one)] = self._oldest[_name(one)]
        self._places = {one: self._place(one) for one in partitions}
        self._client.assign({one: self._next[_name(one)] for one in partitions})
        self._silence.restart()
        log.info("%s: reading from %s", self._label, self._next)

    async def _learn_beginnings(self, partitions: Iterable[Partition]) -> None:
        for one, offset in (await self._client.beginnings(partitions)).items():
            self._oldest[_name(one)] = offset

    def _place(self, partition: Partition) -> RecordPlace:
        topic, number = partition
        shown = _name(partition) if len(self._topics) > 1 else str(number)
        identity = self._ids.get(topic)
        written = "" if identity is None else f"/{base64.urlsafe_b64encode(identity).decode().rstrip('=')}"
        return RecordPlace(topic, _name(partition), f"{shown}@", f"{topic}{written}:{number}:")

    def _note_topic(self, topic: str) -> None:
        now = self._clock.monotonic()
        if not self._client.partitions(topic):
            if topic not in self._missing:
                self._missing[topic] = now
                if any(place.topic == topic for place in self._places.values()):
                    self._tell(logging.WARNING, "%s: topic %r is gone; waiting for it to come back", self._label, topic)
                else:
                    self._tell(logging.INFO, "%s: topic %r does not exist yet; waiting for it", self._label, topic)
            return
        missed = self._missing.pop(topic, None)
        new, old = self._client.identity(topic), self._ids.get(topic)
        if new is None or old is None:
            if missed is not None and now - missed >= _GONE_AFTER:
                self._forget(topic)
        elif new != old and new not in self._former_ids:  # a former one is told by a broker that lags behind
            self._former_ids.add(old)
            self._forget(topic)
            old = None
        if new is not None and old is None:
            self._ids[topic] = new

    def _forget(self, topic: str) -> None:
        """The topic was deleted and created again: its offsets mean nothing any more."""
        known = [one for one in self._next if _topic_of(one) == topic]
        if not known:
            return
        self._tell(
            logging.ERROR,
            "%s: topic %r was deleted and created again; what was unread in the old one is lost (it was read up to "
            "%s), the new one is read from its beginning",
            self._label,
            topic,
            {one: int(self._next.pop(one)) for one in known},
        )
        for one in known:
            self._oldest.pop(one, None)
        self._places = {one: place for one, place in self._places.items() if place.topic != topic}

    def _look_again(self) -> None:
        now = self._clock.monotonic()
        if self._incomplete and now - self._looked >= _LOOK_AGAIN:
            self._looked = now
            self._client.ask_again()

    # ------------------------------------------------------------------ messages

    async def _fetch(self) -> Mapping[Any, Sequence[Any]]:
        began = self._clock.monotonic()
        try:
            records = await self._client.fetch(wait=_WAIT, limit=_BATCH)
        except OffsetsGone as gone:
            await self._go_on(gone.offsets)
            return {}
        if not records:
            # Only time spent waiting counts: while nobody pulls, nobody need answer.
            signs = {_name(one): self._client.heard(one) for one in self._places} or {"": self._client.generation}
            signs.update(dict.fromkeys(self._headless))
            self._silence.listen(signs, self._clock.monotonic() - began)
        return records

    async def _move(self, records: Mapping[Any, Sequence[Any]]) -> bool:
        """Move the position behind what was fetched. Nothing is waited for: the offsets are at hand."""
        moved = False
        now = self._clock.monotonic()
        if not records or now - self._noted >= _WAIT:
            # All of them: some move over records that nobody is shown.
            self._noted = now
            partitions: Iterable[Partition] = self._places
        else:
            partitions = records
        for partition in partitions:
            name = self._places[partition].partition
            offset = await self._client.next_offset(partition)
            if offset != self._next[name]:
                self._next[name] = offset
                moved = True
        return moved

    async def _go_on(self, gone: Mapping[Partition, int]) -> None:
        """The broker has no such offsets: say why, and go on with the oldest message there is."""
        await self._client.refresh()
        await self._follow()
        # If that showed that the topic is a new one, it is read from its beginning already.
        gone = {one: offset for one, offset in gone.items() if one in self._places and self._next[_name(one)] == offset}
        oldest, ends = await self._client.beginnings(gone), await self._client.ends(gone)
        for one, offset in gone.items():
            first = oldest[one]
            if offset < first:
                self._tell(
                    logging.ERROR,
                    "%s: the messages %d to %d of partition %s are lost: its log begins at %d now (retention, or "
                    "somebody deleted records); going on from there",
                    self._label, offset, first - 1, _name(one), first,
                )  # fmt: skip
            elif offset > ends[one]:
                self._tell(
                    logging.ERROR,
                    "%s: partition %s was read up to %d, but ends at %d now: its topic was deleted and created again, "
                    "or brokers lost messages; it is read again from its beginning, %d",
                    self._label, _name(one), offset, ends[one], first,
                )  # fmt: skip
            else:
                first = offset
            self._next[_name(one)] = first
            self._client.seek(one, first)


def _name(partition: Partition) -> str:
    return f"{partition[0]}-{partition[1]}"


def _topic_of(name: str) -> str:
    """The topic of a partition that :func:`_name` has named."""
    return name.rpartition("-")[0]
