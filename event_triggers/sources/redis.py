"""Redis streams: a log, read with ``XREAD BLOCK``, without consumer group and without acknowledgements.

Flow::

    XINFO (what was lost?) -> XREAD from the position, waiting -> yielded (the position moves) -> again

Invariants:

* A position is the smallest entry id that was not yielded yet, as one number; it moves together with the yield.
* Beside it goes how many entries had ever been added by then (``entries-added``, since Redis 7). What was added and
  is neither read nor there to be read was trimmed or deleted: an ERROR in the log of every group that listens.
* A stream need not exist; nothing is ever written.

Each stream has a connection of its own, because a blocking read occupies one, and a cluster reads no two streams in one
command. Nothing is kept at the server; after a restart the hub opens the stream at a position, or a moment, it knows.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Hashable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, ClassVar, Final

import msgspec

from event_triggers.errors import MissingExtraError
from event_triggers.message import Message
from event_triggers.sources._redis_ids import id_before, milliseconds_from, moment_of, offset_of
from event_triggers.sources._shared import NotedOffset, check_fields, check_rendered, is_text
from event_triggers.sources.base import LogStream, Opening, Position, Source, Stream

if TYPE_CHECKING:
    from event_triggers.sources._redis_client import RedisClient, StreamInfo

__all__ = ["RedisStream"]

_BATCH: Final = 200
_WAIT: Final = 2.0
"""Seconds that one blocking read lasts: so often a silent stream is looked at."""
_LOOK_AGAIN: Final = 1.0
"""Seconds between two looks at what a busy stream has lost."""


@dataclass(frozen=True)
class RedisStream(Source):
    """A stream of a Redis server or cluster.

    :param stream: the key of the stream. It need not exist yet.
    :param field: the field of an entry that is the message's body; the other fields are its headers. ``None`` makes
        all fields together the body, as a JSON object of texts.
    :param conn_id: an Airflow connection of type ``redis``, as the Redis provider defines it.
    """

    stream: str
    field: str | None = None
    conn_id: str = "redis_default"

    kind: ClassVar[str] = "redis"
    conn_type: ClassVar[str] = "redis"
    client: ClassVar[str] = "redis"
    install: ClassVar[str] = "airflow-event-triggers[redis]"
    replayable: ClassVar[bool] = True

    @property
    def name(self) -> str:
        return self.stream

    def key(self, group: str) -> Hashable:
        return (self.kind, self.conn_id, self.stream, self.field)

    def validate(self) -> None:
        check_fields(
            self,
            ("stream", is_text(self.stream), "a text"),
            ("field", self.field is None or is_text(self.field), "a text, or None"),
            ("conn_id", is_text(self.conn_id), "a text"),
        )

    @asynccontextmanager
    async def open(self, opening: Opening) -> AsyncIterator[Stream]:
        """Connect, and give the live stream.

        :raises ConfigurationError: when the connection does not exist or is wrong.
        :raises MissingExtraError: when redis-py is not installed.
        :raises StreamError: when the server cannot be reached, refuses the login, or the key holds something else.
        """
        try:
            from event_triggers.sources._redis_client import connect
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] != "redis":
                raise
            raise MissingExtraError("RedisStream", "redis", "redis") from error
        check_rendered(self)
        async with connect(await opening.connection(self.conn_id), self.stream, _WAIT) as client:
            stream = _RedisLog(client, self, opening)
            await stream.begin(opening.start)
            yield stream


class _RedisLog(LogStream):
    """One stream. Call :meth:`begin` before anything else.

    Beside an entry's offset is noted how many entries had ever been added before it; ``None`` when that is not known.
    """

    def __init__(self, client: RedisClient, source: RedisStream, opening: Opening) -> None:
        self._client = client
        self._source = source
        self._tell = opening.tell
        self._clock = opening.clock
        self._next = NotedOffset(0, None)
        self._looked = self._clock.monotonic()
        self._exists = False
        self._since = 0
        self._found: StreamInfo | None = None
        """The stream as it was when a moment was last looked up."""

    async def begin(self, start: Position | None) -> None:
        """Find out where to begin, and what is lost before that.

        :param start: as in :class:`~event_triggers.sources.base.Opening`.
        """
        info = await self._client.info()
        if start is None:
            self._next = NotedOffset(offset_of(info.last) + 1 if info else 0, info.added if info else 0)
        else:
            given = start.get(self._source.stream, 0)
            self._next = NotedOffset(given, getattr(given, "note", None))
        self._look(info)

    def position(self) -> Position:
        return {self._source.stream: self._next}

    def after(self, message: Message) -> Any:
        added = message.offset.note
        return NotedOffset(message.offset + 1, None if added is None else added + 1)

    async def __aiter__(self) -> AsyncIterator[Sequence[Message]]:
        while True:
            if self._clock.monotonic() - self._looked >= _LOOK_AGAIN:
                self._look(await self._client.info())
            entries = await self._client.read(id_before(self._next), _BATCH)
            if entries:
                messages = [self._message(number, *entry) for number, entry in enumerate(entries)]
                self._next, self._exists = self.after(messages[-1]), True
                yield messages

    def _message(self, number: int, identity: bytes, fields: Mapping[bytes, bytes]) -> Message:
        offset, added, place = offset_of(identity), self._next.note, identity.decode()
        body, headers = _body(fields, self._source.field)
        return Message(
            source="redis",
            stream=self._source.stream,
            position=place,
            id=f"{self._source.stream}:{place}",
            body=body,
            headers=headers,
            timestamp=moment_of(offset),
            partition=self._source.stream,
            offset=NotedOffset(offset, None if added is None else added + number),
        )

    async def locate(self, since: datetime) -> Position:
        self._since = milliseconds_from(since)
        self._found = await self._client.info()
        first = await self._client.first(f"{self._since}-0")
        return {self._source.stream: self._next if first is None else NotedOffset(offset_of(first), None)}

    async def lost(self, start: Position) -> str:
        info = self._found
        gone = 0 if info is None or info.added is None else info.added - info.length
        if info is None or gone <= 0:
            return ""
        if not info.first:
            return (
                f"all of its {gone} entries are deleted"
                if offset_of(info.last) >= offset_of(b"%d-0" % self._since)
                else ""
            )
        if start[self._source.stream] > offset_of(info.first):
            return ""  # what was deleted is older than something that is there and too old
        return f"it begins at entry {info.first.decode()} now: {gone} entries are trimmed or deleted"

    def _look(self, info: StreamInfo | None) -> None:
        """Compare what was ever added with what was read and what is there."""
        self._looked = self._clock.monotonic()
        if info is None:
            if self._exists:
                self._lost("it is gone (deleted, expired or moved away); what was unread in it is lost")
            self._exists, self._next = False, NotedOffset(self._next, 0)
            return
        self._exists = True
        last, known = offset_of(info.last), self._next.note
        first = offset_of(info.first) if info.first else last + 1
        if last + 1 < self._next:
            self._lost(
                "it was read up to %s, but ends at %s now: it was deleted and made again, or the server lost entries; "
                "what was unread is lost, and it is read again from its beginning",
                id_before(self._next), info.last.decode(),
            )  # fmt: skip
            self._next, known, first = NotedOffset(0, None), None, 0
        if info.added is None:
            return
        if last < self._next:
            ahead = 0
        elif first >= self._next:
            ahead = info.length
        else:
            return  # it cannot be counted how many of what is there are read
        missed = 0 if known is None else info.added - ahead - known
        self._next = NotedOffset(self._next, info.added - ahead)
        if missed > 0:
            self._lost("%d entries were trimmed or deleted before they were read, and are lost", missed)
        elif missed < 0:
            self._lost("it was deleted and made again; what was unread in the old one is lost")

    def _lost(self, text: str, *args: object) -> None:
        self._tell(logging.ERROR, f"%s: {text}", self._source.label, *args)


def _body(fields: Mapping[bytes, bytes], field: str | None) -> tuple[bytes | None, tuple[tuple[str, bytes], ...]]:
    """The body of an entry, and its headers."""
    if field is None:
        return msgspec.json.encode({_text(name): _text(value) for name, value in fields.items()}), ()
    own = field.encode()
    return fields.get(own), tuple((_text(name), value) for name, value in fields.items() if name != own)


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "backslashreplace")
