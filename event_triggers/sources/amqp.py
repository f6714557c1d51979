"""AMQP 0.9.1 (RabbitMQ): a queue, consumed with manual acknowledgements.

Flow::

    basic.deliver -> waiting -> yielded -> settle -> basic.ack       accepted
                                                 |-> basic.reject    rejected: to the dead-letter exchange
                                                 |-> basic.nack      abandoned: requeued at once
                                                 '-> parked -> nack  released: requeued after a pause

Invariants:

* A message is acknowledged only in ``settle``, and only when it was accepted, or unwanted where ``unmatched`` says so.
* No more than ``prefetch`` messages wait to be asked for: the broker sends no more, while heartbeats go on.
* Parked messages do not use that up: when they have used half of it, a new consumer takes over from the old one, whose
  messages stay with us. So messages that nobody wants do not hold up those behind them, up to a limit.
* While nobody watches, messages are held for as long as a pull lasts and no longer: copies of what was recorded come,
  and everything else stays there for others.

A restart loses nothing: what a dead connection held is delivered again, to whoever consumes then.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections import Counter
from collections.abc import AsyncIterator, Hashable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from datetime import timezone
from typing import Any, ClassVar, Final, NamedTuple

import anyio

from event_triggers.errors import ConfigurationError, InvalidEventError, StreamError
from event_triggers.message import Message
from event_triggers.sources._amqp_client import HEARTBEAT, connect, translated
from event_triggers.sources._amqp_identity import PROPERTIES, memory_of
from event_triggers.sources.base import Opening, Outcome, Settlement, Source, Stream

__all__ = ["AmqpQueue"]

_LOOK_EVERY: Final = 5.0
"""Seconds after which a silent queue is looked at: it may be gone."""
_TIMEOUT: Final = 10.0
_MOST_PARKED: Final = 5000
_LONGEST_PAUSE: Final = 60


@dataclass(frozen=True)
class AmqpQueue(Source):
    """A queue of an AMQP 0.9.1 broker such as RabbitMQ.

    Sources with the same connection and queue share one consumer per triggerer.

    :param queue: the queue's name.
    :param conn_id: an Airflow connection of type ``amqp``; its schema is the virtual host.
    :param exchange: an exchange that the queue is bound to when the wait begins. It must exist.
    :param routing_key: the routing key of that binding, or a list of them.
    :param queue_type: ``"classic"`` or ``"quorum"`` declares the queue as a durable one of this type where it does not
        exist. By default it must exist.
    :param expires: a queue that is declared so is deleted by the broker when nobody has consumed from it for so many
        seconds.
    :param prefetch: how many messages the broker may have under way to us, 2 to 65535.
    :param unmatched: what becomes of a message that no group of this triggerer wants: ``"release"`` requeues it, the
        first time at once, then after pauses that grow to 60 s; ``"delete"`` acknowledges it; ``"reject"`` gives it to
        the queue's dead-letter exchange. The last two only where all that share the queue say the same.
    """

    queue: str
    conn_id: str = "amqp_default"
    exchange: str | None = None
    routing_key: str | tuple[str, ...] = "#"
    queue_type: str | None = None
    expires: int | None = None
    prefetch: int = 100
    unmatched: str = "release"

    kind: ClassVar[str] = "amqp"
    conn_type: ClassVar[str] = "amqp"
    client: ClassVar[str] = "aio_pika"
    install: ClassVar[str] = "airflow-event-triggers[amqp]"

    def __post_init__(self) -> None:
        if isinstance(self.routing_key, list):
            object.__setattr__(self, "routing_key", tuple(self.routing_key))

    @property
    def name(self) -> str:
        return self.queue

    def key(self, group: str) -> Hashable:
        return (self.kind, self.conn_id, self.queue)

    @property
    def redelivery(self) -> float:
        return 3.0 * HEARTBEAT

    def validate(self) -> None:
        def whole(value: object, least: int, most: int) -> bool:
            return type(value) is int and least <= value <= most

        keys: Any = self.routing_key
        texts = {
            "queue": self.queue,
            "conn_id": self.conn_id,
            "exchange": "-" if self.exchange is None else self.exchange,
        }
        checks = [(name, isinstance(text, str) and text != "", "a text") for name, text in texts.items()]
        checks += [
            (
                "queue",
                len(str(self.queue).encode()) <= 255 and not str(self.queue).startswith("amq."),
                "a queue's name",
            ),
            ("routing_key", all(isinstance(k, str) for k in ((keys,) if isinstance(keys, str) else keys)), "text"),
            ("queue_type", self.queue_type in (None, "classic", "quorum"), "'classic', 'quorum' or None"),
            ("expires", self.expires is None or whole(self.expires, 1, 4_000_000), "a whole number of seconds"),
            ("expires", self.expires is None or self.queue_type is not None, "left out unless queue_type is given"),
            ("prefetch", whole(self.prefetch, 2, 65_535), "a whole number from 2 to 65535"),
            ("unmatched", self.unmatched in ("release", "delete", "reject"), "'release', 'delete' or 'reject'"),
        ]
        for name, fits, what in checks:
            if not fits:
                raise InvalidEventError(
                    f"AmqpQueue({self.queue!r}): {name} must be {what}, not {getattr(self, name)!r}"
                )

    def open(self, opening: Opening) -> AbstractAsyncContextManager[Stream]:
        """Connect, and give the live stream.

        :raises ConfigurationError: when the connection does not exist, or one of its options is wrong.
        :raises MissingExtraError: when aio-pika is not installed.
        :raises StreamError: when the broker cannot be reached, refuses the login, or has no such queue.
        """
        return self._open(opening)

    @asynccontextmanager
    async def _open(self, opening: Opening) -> AsyncIterator[Stream]:
        try:
            self.validate()  # again: templates are rendered now
        except InvalidEventError as error:
            raise ConfigurationError(str(error)) from error
        broken: Exception | None = None
        async with connect(await opening.connection(self.conn_id)) as (client, where):
            stream = _AmqpStream(client, self, opening, f"AMQP queue {self.queue!r}, {where}")
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(stream.requeue_parked, name=f"amqp-parked-{self.queue}")
                try:
                    await stream.begin()
                    yield stream
                except Exception as error:
                    # Kept from the task group, which would wrap it in a group of its own.
                    broken = error
                finally:
                    tasks.cancel_scope.cancel()
        if broken is not None:
            raise broken


class _Receipt(NamedTuple):
    """One delivery, and the stream that it came over: no other can settle it."""

    stream: _AmqpStream
    raw: Any


class _AmqpStream(Stream):
    """One queue, on one channel. Also its own iterator: a pull that is cancelled can be made again."""

    def __init__(self, client: Any, source: AmqpQueue, opening: Opening, where: str) -> None:
        self._client = client
        self._source = source
        self._where = where
        self._clock = opening.clock
        self._recorded = opening.recorded
        self._memory = memory_of(source.key(""))
        self._sources: set[Source] = set()
        self._consumer: str | None = None
        self._pulling = False
        self._waiting: list[Any] = []
        self._arrived = asyncio.Event()
        self._open: dict[str, list[Any]] = {}
        """What was yielded and is not settled, by id: a sender may have sent the same message twice."""
        self._parked: dict[Any, float] = {}
        self._parked_of: Counter[str | None] = Counter()
        self._more_parked = asyncio.Event()

    async def begin(self) -> None:
        """Open the channel that messages come over."""
        with self._translating():
            self._channel = await self._client.channel(publisher_confirms=False)
            await self._channel.set_qos(self._source.prefetch, timeout=_TIMEOUT)
            self._channel.close_callbacks.add(self._closed)
        self._memory.begin()

    @contextmanager
    def _translating(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            raise translated(error, self._where) from error

    def _closed(self, *_: Any) -> None:
        self._arrived.set()

    # -- which queue ---------------------------------------------------------------------------------------------------

    async def watch(self, source: Source) -> None:
        """Find or declare the queue, bind it, and give a further group what was parked."""
        assert isinstance(source, AmqpQueue)  # noqa: S101 - sources of one key are of one class
        with self._translating():
            if source not in self._sources and not await self._exists():
                await self._declare(source)
            if source not in self._sources and source.exchange is not None:
                await self._bind(source, source.exchange)
            self._sources.add(source)
            await self._requeue(list(self._parked))

    async def unwatch(self, source: Source) -> None:
        self._sources.discard(source)
        if not self._sources and not self._pulling:
            with self._translating():
                await self._stop()

    async def _exists(self) -> bool:
        try:
            # On a channel of its own: the broker closes the one that asks for what is not there.
            async with self._client.channel() as channel:
                await channel.declare_queue(self._source.queue, passive=True, timeout=_TIMEOUT)
        except Exception as error:
            if "NOT_FOUND" in str(error):
                return False
            raise
        return True

    async def _declare(self, source: AmqpQueue) -> None:
        if source.queue_type is None:
            raise StreamError(f"{self._where}: there is no such queue (yet); create it, or have it made by queue_type=")
        arguments: dict[str, Any] = {"x-queue-type": source.queue_type}
        if source.expires is not None:
            arguments["x-expires"] = source.expires * 1000
        async with self._client.channel() as channel:
            await channel.declare_queue(source.queue, durable=True, arguments=arguments, timeout=_TIMEOUT)

    async def _bind(self, source: AmqpQueue, exchange: str) -> None:
        async with self._client.channel() as channel:
            queue = await channel.get_queue(source.queue, ensure=False)
            for key in (source.routing_key,) if isinstance(source.routing_key, str) else source.routing_key:
                await queue.bind(exchange, key, timeout=_TIMEOUT)

    # -- receiving -----------------------------------------------------------------------------------------------------

    def __aiter__(self) -> AsyncIterator[Sequence[Message]]:
        return self

    async def __anext__(self) -> Sequence[Message]:
        self._pulling = True
        try:
            with self._translating():
                if self._consumer is None:
                    await self._consume()
                while not self._waiting:
                    await self._more()
                taken, self._waiting = self._waiting, []
                if not self._sources:
                    await self._stop()
            return [self._message(raw) for raw in taken]
        finally:
            self._pulling = False

    async def _more(self) -> None:
        """Wait for a message, or for a while, after which it is seen whether the queue and its broker are there."""
        if self._channel.is_closed:
            raise StreamError(f"{self._where}: the connection is broken")
        self._arrived.clear()
        with anyio.move_on_after(_LOOK_EVERY):
            await self._arrived.wait()
            return
        async with self._client.channel() as channel:
            state = await channel.declare_queue(self._source.queue, passive=True, timeout=_TIMEOUT)
        if not state.declaration_result.consumer_count:
            raise StreamError(f"{self._where}: the queue was deleted and created again")

    async def _consume(self) -> None:
        queue = await self._channel.get_queue(self._source.queue, ensure=False)
        self._consumer = f"event-triggers-{secrets.token_hex(8)}"
        await queue.consume(self._take, consumer_tag=self._consumer, timeout=_TIMEOUT)

    async def _take(self, raw: Any) -> None:
        if self._consumer is None:
            await raw.nack(requeue=True)  # it was on its way when the consumer ended
            return
        self._waiting.append(raw)
        self._arrived.set()

    async def _stop(self) -> None:
        """Take no more, and give back what nobody has asked for."""
        tag, self._consumer = self._consumer, None
        if tag is not None:
            queue = await self._channel.get_queue(self._source.queue, ensure=False)
            await queue.cancel(tag, timeout=_TIMEOUT)
        waiting, self._waiting = self._waiting, []
        for raw in waiting:
            await raw.nack(requeue=True)

    def _message(self, raw: Any) -> Message:
        identity, attempt = self._memory.identify(raw, self._recorded())
        self._open.setdefault(identity, []).append(raw)
        stamp = raw.timestamp
        return Message(
            source="amqp",
            stream=self._source.queue,
            position=str(raw.message_id or identity),
            id=identity,
            body=raw.body,
            key=str(raw.routing_key or "").encode("utf-8", "surrogatepass"),
            headers=_headers(raw),
            timestamp=stamp if stamp is None or stamp.tzinfo else stamp.replace(tzinfo=timezone.utc),
            receipt=_Receipt(self, raw),
            attempt=attempt,
        )

    # -- settling ------------------------------------------------------------------------------------------------------

    async def settle(self, settlements: Sequence[Settlement]) -> None:
        """Acknowledge, reject, requeue or park.

        :raises StreamError: when the connection is broken; all that was delivered over it comes again.
        """
        with self._translating():
            for message, outcome in settlements:
                if isinstance(message.receipt, _Receipt) and message.receipt.stream is self:
                    for raw in self._open.pop(message.id, ()):
                        await self._end(raw, message, outcome)
            if self._consumer and self._parked_of[self._consumer] * 2 > self._source.prefetch:
                await self._take_over()

    async def _end(self, raw: Any, message: Message, outcome: Outcome) -> None:
        unmatched = {source.unmatched for source in self._sources if isinstance(source, AmqpQueue)}
        released = unmatched.pop() if outcome is Outcome.RELEASED and len(unmatched) == 1 else "release"
        if outcome is Outcome.ACCEPTED or released == "delete":
            self._memory.ended(message.id)
            await raw.ack()
        elif outcome is Outcome.REJECTED or released == "reject":
            await raw.reject(requeue=False)
        else:
            self._memory.returned(message.id)
            pause = 0 if outcome is Outcome.ABANDONED or message.attempt <= 1 else 2 ** min(message.attempt - 2, 6)
            if pause and len(self._parked) < _MOST_PARKED:
                raw.body = b""
                self._parked[raw] = self._clock.monotonic() + min(pause, _LONGEST_PAUSE)
                self._parked_of[raw.consumer_tag] += 1
                self._more_parked.set()
            else:
                await raw.nack(requeue=True)

    async def _take_over(self) -> None:
        tag, queue = self._consumer, await self._channel.get_queue(self._source.queue, ensure=False)
        await self._consume()
        await queue.cancel(tag, timeout=_TIMEOUT)

    async def requeue_parked(self) -> None:
        """Requeue what was parked long enough, for as long as the stream lives."""
        while True:
            self._more_parked.clear()
            if not self._parked:
                await self._more_parked.wait()
            now = self._clock.monotonic()
            with suppress(Exception):  # a broken connection is told where messages are asked for
                await self._requeue([raw for raw, until in self._parked.items() if until <= now])
            await self._clock.sleep(0.5)

    async def _requeue(self, raws: Sequence[Any]) -> None:
        for raw in raws:
            if self._parked.pop(raw, None) is not None:
                self._parked_of[raw.consumer_tag] -= 1
                await raw.nack(requeue=True)


def _headers(raw: Any) -> tuple[tuple[str, bytes], ...]:
    """The properties under ``amqp.``, then the headers; what is no text as JSON."""
    known = {"exchange": raw.exchange, "routing-key": raw.routing_key}
    known |= {name.replace("_", "-"): getattr(raw, name) for name in PROPERTIES}
    own = [(f"amqp.{name}", _bytes(value)) for name, value in known.items() if value not in (None, "")]
    return (*own, *((str(name), _bytes(value)) for name, value in (raw.headers or {}).items()))


def _bytes(value: Any) -> bytes:
    if isinstance(value, (bytes, bytearray)):
        return bytes(value)
    return (value if isinstance(value, str) else json.dumps(value, default=str)).encode("utf-8", "surrogatepass")
