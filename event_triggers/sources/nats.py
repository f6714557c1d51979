"""NATS JetStream: a log, read by an ephemeral pull consumer that acknowledges nothing.

Flow::

    STREAM.INFO (what is lost, where is the end?) -> pull what there is -> yielded (the position moves)
             ^                                            '-> nothing: pull one, waiting --------.
             '-----------------------------------------------------------------------------------'

Invariants:

* The position is the next sequence of the stream; it moves together with the yield, and to the end of the stream, as
  it was before, when the server says that nothing more lies before it: other subjects' messages are nobody's here.
* The consumer's own sequence has no gaps. Where it has one, the rest is thrown away and read again from the position.
* A consumer that is gone (nobody asked it for long, the server was restarted) is made again at the position.
* Ids and positions hold when the stream was created: one that is deleted and made again is another.

A restart loses nothing: the hub opens the stream at a position, or a moment, that it knows; an ephemeral consumer that
nobody asks any more is removed by the server.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Hashable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, ClassVar, Final

from event_triggers.errors import StreamError
from event_triggers.message import Message
from event_triggers.sources._nats_client import FORGOTTEN_AFTER, JetStream, connect, to_message
from event_triggers.sources._shared import NotedOffset, check_fields, check_rendered, is_text
from event_triggers.sources.base import LogStream, Opening, Position, Source, Stream

__all__ = ["NatsSubject"]

_BATCH: Final = 100
_PAUSE: Final = 0.2
_WAIT: Final = 2.0
"""Seconds that one request waits for a message."""


@dataclass(frozen=True)
class NatsSubject(Source):
    """The messages of a subject that a JetStream stream keeps.

    :param subject: a subject, or a pattern with ``*`` (one token) and ``>`` (all further ones).
    :param stream: the stream that keeps it; by default the one that the server finds for the subject. It need not
        exist yet.
    :param conn_id: an Airflow connection of type ``nats``.
    """

    subject: str
    stream: str | None = None
    conn_id: str = "nats_default"

    kind: ClassVar[str] = "nats"
    conn_type: ClassVar[str] = "nats"
    client: ClassVar[str] = "nats"
    install: ClassVar[str] = "airflow-event-triggers[nats]"
    replayable: ClassVar[bool] = True

    @property
    def name(self) -> str:
        return self.subject

    def key(self, group: str) -> Hashable:
        return (self.kind, self.conn_id, self.stream, self.subject)

    def validate(self) -> None:
        check_fields(
            self,
            ("subject", _fits(self.subject, ""), "a subject, without spaces"),
            (
                "stream",
                self.stream is None or (is_text(self.stream) and _fits(self.stream, ".*>/\\")),
                "a stream's name",
            ),
            ("conn_id", is_text(self.conn_id), "a text"),
        )

    @asynccontextmanager
    async def open(self, opening: Opening) -> AsyncIterator[Stream]:
        """Connect, and give the live stream.

        :raises ConfigurationError: when the connection does not exist or is wrong.
        :raises MissingExtraError: when nats-py is not installed.
        :raises StreamError: when no server can be reached, refuses the login, or has no such stream.
        """
        check_rendered(self)
        async with connect(await opening.connection(self.conn_id), f"NATS subject {self.subject!r}, ") as client:
            stream = _NatsLog(client, self, opening)
            await stream.begin(opening.start)
            yield stream


def _fits(name: str, forbidden: str) -> bool:
    """Whether this can be a name: no spaces, no empty tokens. What a template becomes is not known yet."""
    if not is_text(name):
        return False
    return "{{" in name or "{%" in name or not ("" in name.split(".") or set(name) & {*forbidden, *" \t\r\n"})


class _Sequence(NotedOffset):
    """A sequence, and when its stream was created, as streams of the same name may follow each other."""

    def __ge__(self, other: int) -> bool:
        # Nothing of another stream's can be reached any more.
        return self.note != getattr(other, "note", self.note) or int(self) >= int(other)


class _NatsLog(LogStream):
    """One subject of one stream. Call :meth:`begin` before anything else."""

    def __init__(self, client: JetStream, source: NatsSubject, opening: Opening) -> None:
        self._client = client
        self._source = source
        self._tell = opening.tell
        self._clock = opening.clock
        self._asked = 0.0
        self._stream = source.stream or ""
        self._created = ""
        self._next = 0
        self._end = 0
        """Behind the last message of the stream, when that was last asked."""
        self._consumer = ""
        self._delivered = 0
        """How many messages the consumer has delivered."""
        self._found: Mapping[str, Any] = {}
        self._since = datetime.min.replace(tzinfo=timezone.utc)

    async def begin(self, start: Position | None) -> None:
        """Find the stream, where to begin in it, and what is lost before that."""
        if not self._stream:
            names = (await self._client.ask("STREAM.NAMES", subject=self._source.subject)).get("streams") or []
            if len(names) != 1:
                raise StreamError(
                    f"{self._client.where}: {len(names)} streams keep it ({', '.join(names)}); name one of them"
                )
            self._stream = names[0]
        given = None if start is None else start.get(self._stream, 0)
        self._created = getattr(given, "note", "")
        self._next = int(given or 0)
        await self._look()
        if given is None:
            self._next = self._end

    def position(self) -> Position:
        return {self._stream: _Sequence(self._next, self._created)}

    def after(self, message: Message) -> Any:
        return _Sequence(message.offset + 1, self._created)

    async def __aiter__(self) -> AsyncIterator[Sequence[Message]]:
        while True:
            end = self._end
            raw = await self._pull({"batch": _BATCH, "no_wait": True})
            reached = len(raw) < _BATCH and self._consumer != ""
            if not raw and reached:
                self._next = max(self._next, end)
                raw = await self._pull({"batch": 1, "expires": int(_WAIT * 1e9)})
            messages = self._messages(raw)
            if messages:
                self._next = max(messages[-1].offset + 1, end if reached and len(messages) == len(raw) else 0)
                yield messages
            await self._look()

    async def locate(self, since: datetime) -> Position:
        self._since = since
        self._found = await self._client.ask(f"STREAM.INFO.{self._stream}")
        made = await self._create("by_start_time", opt_start_time=since.isoformat())
        await self._client.ask(f"CONSUMER.DELETE.{self._stream}.{made['name']}")
        return {self._stream: _Sequence(made["delivered"]["stream_seq"] + 1, self._created)}

    async def lost(self, start: Position) -> str:
        state = self._found["state"]
        first = state["first_seq"]
        if first <= 1 or start[self._stream] > first:
            return ""  # nothing is deleted, or only what is older than something that is there and too old
        last = datetime.fromisoformat(state["last_ts"][:19]).replace(tzinfo=timezone.utc)
        if not state["messages"] and last < self._since:
            return ""
        return (
            f"stream {self._stream!r} begins at sequence {first} now: what was before is deleted (limits, or a purge)"
        )

    async def _look(self) -> None:
        """Find out where the stream ends, whether it is the same one, and what of it is lost before it was read."""
        info = await self._client.ask(f"STREAM.INFO.{self._stream}")
        created, first, self._end = info["created"], info["state"]["first_seq"], info["state"]["last_seq"] + 1
        if created != self._created:
            if self._created:
                self._lost(
                    "stream %r was deleted and created again; what was unread in the old one is lost (it was read up "
                    "to %d), the new one is read from its beginning", self._stream, self._next - 1,
                )  # fmt: skip
                self._next, self._consumer = 1, ""
            self._created = created
        if 1 < self._next < first:
            self._lost(
                "the messages %d to %d of stream %r are deleted (limits, or a purge); those of them that it asks for "
                "are lost", self._next, first - 1, self._stream,
            )  # fmt: skip
        if self._next < first and self._next != 0:
            self._next = first

    def _lost(self, text: str, *args: object) -> None:
        self._tell(logging.ERROR, f"%s: {text}", self._source.label, *args)

    async def _create(self, policy: str, **begin: Any) -> dict[str, Any]:
        return await self._client.create_consumer(self._stream, self._source.subject, deliver_policy=policy, **begin)

    async def _pull(self, request: Mapping[str, Any]) -> list[Any]:
        """Ask once, and take what comes; nothing when there is no more, or when it is to be asked again."""
        if not self._consumer or self._clock.monotonic() - self._asked > FORGOTTEN_AFTER / 2:
            self._consumer = (await self._create("by_start_sequence", opt_start_seq=max(self._next, 1)))["name"]
            self._delivered = 0
            await self._client.new_inbox()
        self._asked = self._clock.monotonic()
        taken, there = await self._client.pull(f"{self._stream}.{self._consumer}", request)
        if not there:
            self._consumer = ""
            await self._clock.sleep(_PAUSE)
        return taken

    def _messages(self, taken: Sequence[Any]) -> list[Message]:
        messages = []
        for raw in taken:
            about = raw.metadata
            if about.sequence.consumer != self._delivered + 1:
                self._consumer = ""  # something is missing before it: read again from there
                break
            self._delivered += 1
            messages.append(to_message(raw, self._stream, self._created))
        return messages
