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

import json
import logging
from collections.abc import AsyncIterator, Hashable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, ClassVar, Final

from event_triggers.errors import ConfigurationError, InvalidEventError, StreamError
from event_triggers.message import Message
from event_triggers.sources._nats_client import connect, failures
from event_triggers.sources.base import LogStream, Opening, Position, Source, Stream

__all__ = ["NatsSubject"]

_BATCH: Final = 100
_WAIT: Final = 2.0
"""Seconds that one request waits for a message."""
_TIMEOUT: Final = 8.0
_FORGOTTEN_AFTER: Final = 300
"""Seconds after which the server removes a consumer that nobody asks."""
_NOT_FOUND: Final = 404


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
        given: tuple[tuple[str, Any], ...] = (("subject", self.subject), ("stream", self.stream))
        for option, value in (*given, ("conn_id", self.conn_id)):
            if not (isinstance(value, str) and value) and (value is not None or option != "stream"):
                raise InvalidEventError(f"NatsSubject({self.subject!r}): {option} must be a text, not {value!r}")
        for option, value in given:
            rendered = value and "{{" not in value and "{%" not in value
            if rendered and (any(c.isspace() for c in value) or (option == "stream" and set(value) & set(".*>/\\"))):
                raise InvalidEventError(f"NatsSubject({self.subject!r}): no {option} can be called {value!r}")
        if "" in self.subject.split(".") and "{" not in self.subject:
            raise InvalidEventError(f"NatsSubject({self.subject!r}): a token of the subject is empty")

    def open(self, opening: Opening) -> AbstractAsyncContextManager[Stream]:
        """Connect, and give the live stream.

        :raises ConfigurationError: when the connection does not exist or is wrong.
        :raises MissingExtraError: when nats-py is not installed.
        :raises StreamError: when no server can be reached, refuses the login, or has no such stream.
        """
        return self._open(opening)

    @asynccontextmanager
    async def _open(self, opening: Opening) -> AsyncIterator[Stream]:
        try:
            self.validate()  # again: templates are rendered now
        except InvalidEventError as error:
            raise ConfigurationError(str(error)) from error
        async with connect(await opening.connection(self.conn_id)) as (client, prefix, where):
            stream = _NatsLog(client, prefix, f"NATS subject {self.subject!r}, {where}", self, opening)
            await stream.begin(opening.start)
            yield stream


class _Sequence(int):
    """A sequence, and of which stream, as streams of the same name may follow each other."""

    created: str

    @classmethod
    def of(cls, created: str, sequence: int) -> _Sequence:
        self = cls(sequence)
        self.created = created
        return self

    def __ge__(self, other: int) -> bool:
        # Nothing of another stream's can be reached any more.
        return self.created != getattr(other, "created", self.created) or int(self) >= int(other)


class _NatsLog(LogStream):
    """One subject of one stream. Call :meth:`begin` before anything else."""

    def __init__(self, client: Any, prefix: str, where: str, source: NatsSubject, opening: Opening) -> None:
        self._client = client
        self._prefix = prefix
        self._where = where
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
        self._inbox: Any = None
        self._delivered = 0
        """How many messages the consumer has delivered."""
        self._found: Mapping[str, Any] = {}
        self._since = datetime.min.replace(tzinfo=timezone.utc)

    async def begin(self, start: Position | None) -> None:
        """Find the stream, where to begin in it, and what is lost before that."""
        if not self._stream:
            names = (await self._ask("STREAM.NAMES", subject=self._source.subject)).get("streams") or []
            if len(names) != 1:
                raise StreamError(f"{self._where}: {len(names)} streams keep it ({', '.join(names)}); name one of them")
            self._stream = names[0]
        given = None if start is None else start.get(self._stream, 0)
        self._created = getattr(given, "created", "")
        self._next = int(given or 0)
        await self._look()
        if given is None:
            self._next = self._end

    def position(self) -> Position:
        return {self._stream: _Sequence.of(self._created, self._next)}

    def after(self, message: Message) -> Any:
        return _Sequence.of(self._created, message.offset + 1)

    async def __aiter__(self) -> AsyncIterator[Sequence[Message]]:
        while True:
            end = self._end
            raw = await self._pull({"batch": _BATCH, "no_wait": True})
            reached = len(raw) < _BATCH
            if not raw:
                self._next = max(self._next, end)
                raw = await self._pull({"batch": 1, "expires": int(_WAIT * 1e9)})
            messages = self._messages(raw)
            if messages:
                self._next = max(messages[-1].offset + 1, end if reached and len(messages) == len(raw) else 0)
                yield messages
            await self._look()

    async def locate(self, since: datetime) -> Position:
        self._since = since
        self._found = await self._info()
        made = await self._make({"deliver_policy": "by_start_time", "opt_start_time": since.isoformat()})
        await self._ask(f"CONSUMER.DELETE.{self._stream}.{made['name']}")
        return {self._stream: _Sequence.of(self._created, made["delivered"]["stream_seq"] + 1)}

    async def lost(self, start: Position) -> str:
        state = self._found["state"]
        first = state["first_seq"]
        if first <= 1 or start[self._stream] > first:
            return ""  # nothing is deleted, or only what is older than something that is there and too old
        if not state["messages"] and _moment(state["last_ts"]) < self._since:
            return ""
        return (
            f"stream {self._stream!r} begins at sequence {first} now: what was before is deleted (limits, or a purge)"
        )

    # ------------------------------------------------------------------ the server

    async def _ask(self, what: str, /, **asked: Any) -> dict[str, Any]:
        """Call JetStream's API."""
        try:
            body = json.dumps(asked).encode() if asked else b""
            answer = json.loads((await self._client.request(f"{self._prefix}.{what}", body, timeout=_TIMEOUT)).data)
        except failures() as error:
            raise StreamError(f"{self._where}: {what.rpartition('.')[0] or what}: {_said(error)}") from error
        refused = answer.get("error")
        if refused is not None:
            missing = f"there is no stream {self._stream!r} (yet): " if refused.get("code") == _NOT_FOUND else ""
            raise StreamError(f"{self._where}: {missing}{refused.get('description')} ({refused.get('err_code')})")
        return dict(answer)

    async def _info(self) -> dict[str, Any]:
        return await self._ask(f"STREAM.INFO.{self._stream}")

    async def _look(self) -> None:
        """Find out where the stream ends, whether it is the same one, and what of it is lost before it was read."""
        info = await self._info()
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

    async def _make(self, begin: Mapping[str, Any]) -> dict[str, Any]:
        config = {
            **begin,
            "ack_policy": "none",
            "filter_subject": self._source.subject,
            "inactive_threshold": int(_FORGOTTEN_AFTER * 1e9),
            "mem_storage": True,
            "num_replicas": 1,
        }
        return await self._ask(f"CONSUMER.CREATE.{self._stream}", stream_name=self._stream, config=config)

    async def _begin_consuming(self) -> None:
        begin = {"deliver_policy": "by_start_sequence", "opt_start_seq": max(self._next, 1)}
        self._consumer = (await self._make(begin))["name"]
        self._delivered = 0
        if self._inbox is not None:
            await self._inbox.unsubscribe()
        # Without a limit: a client that drops what it cannot hold would drop what it has asked for.
        self._inbox = await self._client.subscribe(self._client.new_inbox(), pending_bytes_limit=0)

    async def _pull(self, request: Mapping[str, Any]) -> list[Any]:
        """Ask once, and take what comes until the server says that there is no more; nothing when it is to be asked
        again.
        """
        try:
            if not self._consumer or self._clock.monotonic() - self._asked > _FORGOTTEN_AFTER / 2:
                await self._begin_consuming()
            self._asked = self._clock.monotonic()
            subject = f"{self._prefix}.CONSUMER.MSG.NEXT.{self._stream}.{self._consumer}"
            await self._client.publish(subject, json.dumps(request).encode(), self._inbox.subject)
            taken: list[Any] = []
            while len(taken) < request["batch"]:
                raw = await self._inbox.next_msg(timeout=_TIMEOUT)
                if raw.reply:
                    taken.append(raw)
                    continue
                status = (raw.headers or {}).get("Status")
                if status in ("404", "408"):
                    break
                if status not in ("100",):  # the consumer is gone, or its server is
                    self._consumer = ""
                    break
            return taken
        except failures() as error:
            raise StreamError(f"{self._where}: {_said(error)}") from error

    def _messages(self, taken: Sequence[Any]) -> list[Message]:
        messages = []
        for raw in taken:
            about = raw.metadata
            if about.sequence.consumer != self._delivered + 1:
                self._consumer = ""  # something is missing before it: read again from there
                break
            self._delivered += 1
            sequence = about.sequence.stream
            messages.append(
                Message(
                    source="nats",
                    stream=raw.subject,
                    position=f"{self._stream}@{sequence}",
                    id=f"{self._stream}:{self._created}:{sequence}",
                    body=raw.data,
                    headers=tuple((str(name), _bytes(value)) for name, value in (raw.headers or {}).items()),
                    timestamp=about.timestamp.replace(tzinfo=timezone.utc),
                    partition=self._stream,
                    offset=sequence,
                )
            )
        return messages


def _said(error: BaseException) -> str:
    return str(error) or type(error).__name__


def _bytes(value: Any) -> bytes:
    return str(value).encode("utf-8", "surrogatepass")


def _moment(stamp: str) -> datetime:
    """The server's time, which has nanoseconds."""
    return datetime.fromisoformat(stamp[:19]).replace(tzinfo=timezone.utc)
