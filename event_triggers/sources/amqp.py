"""AMQP 0.9.1 (RabbitMQ): a queue, consumed with manual acknowledgements.

Flow::

    basic.deliver -> waiting -> yielded -> settle -> basic.ack       accepted
                                                 |-> basic.reject    rejected: to the dead-letter exchange
                                                 |-> basic.nack      abandoned: requeued at once
                                                 '-> parked -> nack  released: requeued after a pause

Invariants:

* A message is acknowledged only in ``settle``, and only when it was accepted, or unwanted where ``unmatched`` says so.
  ``settle`` returns when the broker has heard it: an acknowledgement that is lost with its connection is told again.
* No more than ``prefetch`` messages wait to be asked for: the broker sends no more, while heartbeats go on.
* Parked messages do not use that up: when they have used half of it, a new consumer takes over from the old one, whose
  messages stay with us. So messages that nobody wants do not hold up those behind them, up to a limit.
* While nobody watches, messages are held for as long as a pull lasts and no longer: copies of what was recorded come,
  and everything else stays there for others.

A restart loses nothing: what a dead connection held is delivered again, to whoever consumes then.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Collection, Hashable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Final, NamedTuple

import anyio

from event_triggers.errors import StreamError
from event_triggers.message import Message
from event_triggers.sources._amqp_client import HEARTBEAT, AmqpClient, connect
from event_triggers.sources._amqp_messages import memory_of, to_message
from event_triggers.sources._amqp_parked import Parked
from event_triggers.sources._shared import beside, check_fields, check_rendered, is_text, is_whole, release_delay
from event_triggers.sources.base import Opening, Outcome, Settlement, Source, Stream

__all__ = ["AmqpQueue"]

_LOOK_EVERY: Final = 5.0
"""Seconds after which a silent queue is looked at: it may be gone."""


@dataclass(frozen=True)
class AmqpQueue(Source):
    """A queue of an AMQP 0.9.1 broker such as RabbitMQ. It must exist.

    Sources with the same connection and queue share one consumer per triggerer.

    :param queue: the queue's name.
    :param conn_id: an Airflow connection of type ``amqp``; its schema is the virtual host.
    :param prefetch: how many messages the broker may have under way to us, 2 to 65535.
    :param unmatched: what becomes of a message that no group of this triggerer wants: ``"release"`` requeues it, the
        first time at once, then after pauses that grow to 60 s; ``"delete"`` acknowledges it; ``"reject"`` gives it to
        the queue's dead-letter exchange. The last two only where all that share the queue say the same.
    """

    queue: str
    conn_id: str = "amqp_default"
    prefetch: int = 100
    unmatched: str = "release"

    kind: ClassVar[str] = "amqp"
    conn_type: ClassVar[str] = "amqp"
    client: ClassVar[str] = "aio_pika"
    install: ClassVar[str] = "airflow-event-triggers[amqp]"

    @property
    def name(self) -> str:
        return self.queue

    def key(self, group: str) -> Hashable:
        return (self.kind, self.conn_id, self.queue)

    @property
    def redelivery(self) -> float:
        return 3.0 * HEARTBEAT

    def validate(self) -> None:
        check_fields(
            self,
            ("queue", is_text(self.queue) and len(self.queue.encode()) <= 255, "a text of up to 255 bytes"),
            ("conn_id", is_text(self.conn_id), "a text"),
            ("prefetch", is_whole(self.prefetch, 2, 65_535), "a whole number from 2 to 65535"),
            ("unmatched", self.unmatched in ("release", "delete", "reject"), "'release', 'delete' or 'reject'"),
        )

    @asynccontextmanager
    async def open(self, opening: Opening) -> AsyncIterator[Stream]:
        """Connect, and give the live stream.

        :raises ConfigurationError: when the connection does not exist, or one of its options is wrong.
        :raises MissingExtraError: when aio-pika is not installed.
        :raises StreamError: when the broker cannot be reached, refuses the login, or has no such queue.
        """
        check_rendered(self)
        async with connect(await opening.connection(self.conn_id), f"AMQP queue {self.queue!r}, ") as client:
            stream = _AmqpStream(client, self, opening)
            await stream.begin()
            async with beside(stream.parked.requeue_in_time, f"amqp-parked-{self.queue}"):
                yield stream


class _Receipt(NamedTuple):
    """One delivery, and the stream that it came over: no other can settle it."""

    stream: _AmqpStream
    raw: Any


class _AmqpStream(Stream):
    """One queue, on one channel. Also its own iterator: a pull that is cancelled can be made again."""

    def __init__(self, client: AmqpClient, source: AmqpQueue, opening: Opening) -> None:
        self._client = client
        self._source = source
        self._recorded = opening.recorded
        self._memory = memory_of(source.key(""))
        self._sources: set[Source] = set()
        self._consumer: str | None = None
        self._pulling = False
        self._waiting: list[Any] = []
        self._arrived = asyncio.Event()
        self._open: dict[str, list[Any]] = {}
        """What was yielded and is not settled, by id: a sender may have sent the same message twice."""
        self._unconfirmed = False
        """Whether something was told that the broker may not have heard yet."""
        self.parked = Parked(opening.clock)

    async def begin(self) -> None:
        """Open the channel that messages come over."""
        self._channel, self._queue = await self._client.channel(self._source.queue, self._source.prefetch)
        self._channel.close_callbacks.add(lambda *_: self._arrived.set())
        self._memory.begin()

    async def watch(self, source: Source) -> None:
        """A further group may want what was parked."""
        self._sources.add(source)
        with self._client.asking():
            await self.parked.requeue()

    async def unwatch(self, source: Source) -> None:
        self._sources.discard(source)
        if not self._sources and not self._pulling:
            await self._stop()

    def __aiter__(self) -> AsyncIterator[Sequence[Message]]:
        return self

    async def __anext__(self) -> Sequence[Message]:
        self._pulling = True
        try:
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
            raise StreamError(f"{self._client.where}: the connection is broken")
        self._arrived.clear()
        with anyio.move_on_after(_LOOK_EVERY):
            await self._arrived.wait()
            return
        with self._client.asking():
            await self._queue.declare()  # passively: is it there? The broker closes the channel if not, which is right
        if self._consumer not in (await self._channel.get_underlay_channel()).consumers:
            raise StreamError(f"{self._client.where}: the queue was deleted and created again")

    async def _consume(self) -> None:
        self._consumer = f"event-triggers-{secrets.token_hex(8)}"
        with self._client.asking():
            await self._queue.consume(self._take, consumer_tag=self._consumer)

    async def _take(self, raw: Any) -> None:
        if self._consumer is None:
            await raw.nack(requeue=True)  # it was on its way when the consumer ended
            return
        self._waiting.append(raw)
        self._arrived.set()

    async def _stop(self) -> None:
        """Take no more, and give back what nobody has asked for."""
        tag, self._consumer = self._consumer, None
        waiting, self._waiting = self._waiting, []
        with self._client.asking():
            if tag is not None:
                await self._queue.cancel(tag)
            for raw in waiting:
                await raw.nack(requeue=True)

    def _message(self, raw: Any) -> Message:
        identity, attempt = self._memory.identify(raw, self._recorded())
        self._open.setdefault(identity, []).append(raw)
        return to_message(raw, self._source.queue, identity, attempt, _Receipt(self, raw))

    async def settle(self, settlements: Sequence[Settlement]) -> Collection[str]:
        """Acknowledge, reject, requeue or park, and return when the broker has heard it.

        :return: the ids of accepted messages that came over an earlier connection.
        :raises StreamError: when the connection is broken; all that was delivered over it comes again.
        """
        passed_over: set[str] = set()
        with self._client.asking(None):
            for message, outcome in settlements:
                if isinstance(message.receipt, _Receipt) and message.receipt.stream is self:
                    for raw in self._open.pop(message.id, ()):
                        await self._end(raw, message, outcome)
                elif outcome is Outcome.ACCEPTED:
                    passed_over.add(message.id)
            if self._consumer and self.parked.count(self._consumer) * 2 > self._source.prefetch:
                tag = self._consumer
                await self._consume()
                await self._queue.cancel(tag)
        if self._unconfirmed:
            # The broker answers none of this. But it does one thing of a channel after the other.
            with self._client.asking():
                await self._queue.declare()
            self._unconfirmed = False
        return passed_over

    async def _end(self, raw: Any, message: Message, outcome: Outcome) -> None:
        unmatched = {source.unmatched for source in self._sources if isinstance(source, AmqpQueue)}
        released = unmatched.pop() if outcome is Outcome.RELEASED and len(unmatched) == 1 else "release"
        if outcome is Outcome.ACCEPTED or released == "delete":
            self._memory.ended(message.id)
            self._unconfirmed = True
            await raw.ack()
        elif outcome is Outcome.REJECTED or released == "reject":
            self._unconfirmed = True
            await raw.reject(requeue=False)
        else:
            self._memory.returned(message.id)
            pause = 0 if outcome is Outcome.ABANDONED else release_delay(message.attempt)
            if not self.parked.add(raw, pause):
                await raw.nack(requeue=True)
