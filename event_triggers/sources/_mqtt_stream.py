"""What one connection to an MQTT broker delivers, and to which filters.

Flow::

    PUBLISH -> identify -> held -> yielded -> settle -> PUBACK / PUBREC
                   '-> acknowledged at once: a redelivery of what was settled before

Invariants:

* A message is acknowledged only after ``settle`` named it, under whichever of its packets.
* Nothing above QoS 0 is dropped: how much of it comes is limited by the broker (MQTT 5: by our receive maximum). What
  is held at QoS 0 is limited here; what does not fit is lost, counted, and logged.
* Acknowledgements go out in the order of settling, not of arrival: one message that waits to be recorded must not hold
  up the others, and a message that is never settled must not do so for ever.

A restart loses nothing of a durable session: the broker has what was not acknowledged. Its subscriptions are set again,
which neither interrupts them nor (MQTT 5) brings stored messages a second time.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from event_triggers.errors import StreamError
from event_triggers.message import Message
from event_triggers.sources._mqtt_identity import Incoming, SessionMemory, Verdict
from event_triggers.sources._mqtt_topics import matches
from event_triggers.sources.base import Opening, Outcome, Settlement, Source, Stream

if TYPE_CHECKING:
    from event_triggers.sources._mqtt_session import Session
    from event_triggers.sources.mqtt import MqttTopic

__all__ = ["MqttStream", "Receipt"]

_BATCH = 256
_MOST_HELD = 10_000
_MOST_HELD_BYTES = 64 * 1024 * 1024
_LOSSES_LOGGED_EVERY = 10.0
"""Seconds between two lines about lost messages."""

_PROPERTIES = {
    "ContentType": "mqtt.content-type",
    "ResponseTopic": "mqtt.response-topic",
    "CorrelationData": "mqtt.correlation-data",
    "PayloadFormatIndicator": "mqtt.payload-format",
}
_SEND_ALWAYS: Literal[0] = 0
_SEND_ONCE: Literal[1] = 1
_SEND_NEVER: Literal[2] = 2


class Receipt(NamedTuple):
    """What the source itself must know of a message again."""

    qos: int
    retained: bool


@dataclass
class _Filter:
    """One topic filter of the connection, and who asks for it."""

    index: int
    sources: set[MqttTopic] = field(default_factory=set)
    stored_known: bool = False
    """Stored messages of this filter were delivered before our time."""


class MqttStream(Stream):
    """The messages of one connection.

    :param memory: what this process knows of the session.
    :param durable: the broker keeps the session when we are away.
    """

    def __init__(self, memory: SessionMemory, opening: Opening, *, durable: bool) -> None:
        self._memory = memory
        self._clock = opening.clock
        self._tell = opening.tell
        self._recorded = opening.recorded
        self._session_lost = opening.session_lost
        self._durable = durable
        self._session: Session | None = None
        self._connection = 0
        self._filters: dict[str, _Filter] = {}
        self._known_session = False
        self._held: deque[Message] = deque()
        self._held_bytes = 0
        self._changed = asyncio.Event()
        self._lost = 0
        self._lost_logged: float | None = None
        self._told: set[str] = set()

    # ------------------------------------------------------------------ the connection

    def begin(self, session: Session) -> None:
        """The connection is made, or brings its first message: whatever comes first."""
        if self._session is not None:
            return
        self._session = session
        self._known_session = self._memory.opened
        if self._durable and self._known_session and not session.resumed:
            self._tell(
                logging.ERROR,
                "%s: the broker has forgotten the session %s; what was sent since the last connection is lost, and "
                "what was not yet acknowledged does not come again",
                session.settings.where,
                session.client_id,
            )
            self._session_lost()
        self._connection = self._memory.begin(resumed=session.resumed)

    @property
    def _link(self) -> Session:
        if self._session is None:
            raise StreamError("the stream is not connected")
        return self._session

    def close(self) -> None:
        """Nobody takes what is held any more."""
        self._log_losses(last=True)

    # ------------------------------------------------------------------ filters

    async def watch(self, source: Source) -> None:
        """Subscribe. Watched again, a source gets the stored messages again where its connection keeps no session."""
        topic = _as_topic(source)
        text = topic.topic
        entry = self._filters.setdefault(text, _Filter(len(self._filters)))
        entry.sources.add(topic)
        self._memory.filters_changed()
        qos = max(one.qos for one in entry.sources)
        link, has = self._link, self._memory.filters.get(text)
        if self._durable and link.resumed and not link.settings.version_5:
            if self._known_session and has is not None and has >= qos:
                return  # the broker has it; subscribing again would only bring the stored messages again
            entry.stored_known |= has is None and not self._known_session
        try:
            granted = await link.subscribe(text, qos, retained=self._stored(entry), identifier=self._identifier(entry))
        except BaseException:
            self._release(text, topic)
            raise
        self._memory.filters[text] = qos
        if granted < qos:
            self._tell_once(
                f"granted {text}",
                "%s: asked for QoS %d on %r, the broker grants QoS %d%s",
                link.settings.where,
                qos,
                text,
                granted,
                "; messages can be lost" if not granted else "",
            )

    def _stored(self, entry: _Filter) -> Literal[0, 1, 2]:
        if not any(source.retained for source in entry.sources):
            return _SEND_NEVER
        return _SEND_ONCE if self._durable else _SEND_ALWAYS

    def _identifier(self, entry: _Filter) -> int | None:
        return self._memory.ids.number(entry.index)

    async def unwatch(self, source: Source) -> None:
        """Unsubscribe, once no other source asks for the same filter."""
        topic = _as_topic(source)
        if self._release(topic.topic, topic):
            self._memory.filters.pop(topic.topic, None)
            if not self._durable:
                await self._drop_unwanted()
            await self._link.unsubscribe(topic.topic)

    async def _drop_unwanted(self) -> None:
        """What is held for nobody must not reach who comes later: it was sent before the wait began."""
        unwanted = [message for message in self._held if not self._taking(message.stream)]
        self._held = deque(message for message in self._held if self._taking(message.stream))
        self._held_bytes = sum(len(message.body or b"") for message in self._held)
        await self.settle([Settlement(message, Outcome.RELEASED) for message in unwanted])

    def _release(self, text: str, topic: MqttTopic) -> bool:
        entry = self._filters.get(text)
        if entry is None:
            return False
        entry.sources.discard(topic)
        self._memory.filters_changed()
        # The entry itself stays, so that no other filter gets its subscription identifier.
        return not entry.sources

    def _taking(self, topic: str) -> list[_Filter]:
        return [entry for text, entry in self._filters.items() if entry.sources and matches(text, topic)]

    # ------------------------------------------------------------------ messages in

    def arrived(self, session: Session, packet: Any) -> None:
        """The connection brought this."""
        self.begin(session)
        incoming = _read(packet)
        taking = self._taking(incoming.topic)
        if not taking and not self._durable:
            # Of a filter that is being given up; a session's filters may be those of another process.
            if incoming.qos:
                session.acknowledge(incoming.mid, incoming.qos)
            return
        old = incoming.retain and not incoming.dup and bool(taking) and all(entry.stored_known for entry in taking)
        if not incoming.qos:
            if not old:
                self._passing(packet, incoming, overlap=len(taking) > 1)
            return
        now = self._clock.monotonic()
        delivery, verdict = self._memory.identify(incoming, overlap=len(taking) > 1, now=now, recorded=self._recorded())
        if old:
            verdict = Verdict.ACKNOWLEDGE
        if verdict is Verdict.HAND_OVER:
            self._hold(_message(packet, incoming, delivery.id, f"mid {incoming.mid}", delivery.attempt))
        elif verdict is Verdict.ACKNOWLEDGE:
            session.acknowledge(delivery.mid, delivery.qos)
            self._memory.acknowledged(delivery)
        if self._memory.reuses_packet_ids and not session.settings.version_5 and self._durable:
            self._tell_once(
                "reuse",
                "%s: this broker uses packet identifiers again at once; with MQTT 3.1.1, identical messages before and "
                "after a restart of the triggerer may count as one there (MQTT 5 has no such limit)",
                session.settings.where,
                level=logging.INFO,
            )

    def _passing(self, packet: Any, incoming: Incoming, *, overlap: bool) -> None:
        if len(self._held) >= _MOST_HELD or self._held_bytes + len(incoming.body) > _MOST_HELD_BYTES:
            self._lost += 1
            self._log_losses()
            return
        identity = self._memory.passing(incoming, overlap=overlap, now=self._clock.monotonic())
        if identity is None:
            return
        if self._durable and not incoming.retain:
            self._tell_once(
                "qos 0",
                "%s: %r is published at QoS 0, which the broker need not keep while the triggerer is away, whatever "
                "QoS is subscribed; publish at QoS 1",
                self._link.settings.where,
                incoming.topic,
            )
        self._hold(_message(packet, incoming, identity, f"#{identity.rpartition('-')[2][:12]}", 1))

    def _hold(self, message: Message) -> None:
        self._held.append(message)
        self._held_bytes += len(message.body or b"")
        self._changed.set()

    def _log_losses(self, *, last: bool = False) -> None:
        now = self._clock.monotonic()
        recently = self._lost_logged is not None and now - self._lost_logged < _LOSSES_LOGGED_EVERY
        if self._lost and (last or not recently):
            self._tell(
                logging.ERROR,
                "%s: %d messages at QoS 0 are lost: they came faster than they were taken; use QoS 1",
                self._link.settings.where,
                self._lost,
            )
            self._lost, self._lost_logged = 0, now

    def _tell_once(self, about: str, text: str, *args: object, level: int = logging.WARNING) -> None:
        if about not in self._told:
            self._told.add(about)
            self._tell(level, text, *args)

    # ------------------------------------------------------------------ messages out

    def __aiter__(self) -> AsyncIterator[Sequence[Message]]:
        return self._batches()

    async def _batches(self) -> AsyncIterator[Sequence[Message]]:
        link = self._link
        while True:
            if self._held:
                batch = [self._held.popleft() for _ in range(min(_BATCH, len(self._held)))]
                self._held_bytes -= sum(len(message.body or b"") for message in batch)
                yield batch
            elif link.ended.is_set():
                raise link.failure()
            else:
                self._changed.clear()
                await self._wait(link)

    async def _wait(self, link: Session) -> None:
        waiting = [
            asyncio.create_task(self._changed.wait(), name="mqtt: next message"),
            asyncio.create_task(link.ended.wait(), name="mqtt: end of connection"),
        ]
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in waiting:
                task.cancel()

    async def settle(self, settlements: Sequence[Settlement]) -> None:
        """Acknowledge everything but what was abandoned, which stays in the session and comes again."""
        link, due = self._link, []
        for message, outcome in settlements:
            if outcome is not Outcome.ABANDONED:
                due += self._memory.settle(message.id, self._connection)
        for delivery in due:
            if delivery.acknowledged:
                continue  # named twice; a second answer could meet the next message of this packet identifier
            link.acknowledge(delivery.mid, delivery.qos)
            self._memory.acknowledged(delivery)


def _as_topic(source: Source) -> MqttTopic:
    from event_triggers.sources.mqtt import MqttTopic

    if not isinstance(source, MqttTopic):
        raise TypeError(f"an MQTT connection cannot deliver {source!r}")
    return source


def _read(packet: Any) -> Incoming:
    properties = getattr(packet, "properties", None)
    try:
        topic = packet.topic
    except UnicodeDecodeError:
        topic = packet._topic.decode("utf-8", "backslashreplace")
    numbers = getattr(properties, "SubscriptionIdentifier", ())
    return Incoming(
        topic=topic,
        body=bytes(packet.payload),
        mid=packet.mid,
        qos=packet.qos,
        dup=bool(packet.dup),
        retain=bool(packet.retain),
        subscriptions=tuple(numbers) if isinstance(numbers, (list, tuple)) else (int(numbers),),
        extras=_extras(properties),
    )


def _extras(properties: Any) -> tuple[tuple[str, bytes], ...]:
    """The MQTT 5 properties that belong to the content: ours by their names, then the user's."""
    if properties is None:
        return ()
    own = [
        (name, value if isinstance(value, bytes) else str(value).encode("utf-8", "surrogatepass"))
        for key, name in _PROPERTIES.items()
        if (value := getattr(properties, key, None)) is not None
    ]
    users = getattr(properties, "UserProperty", ())
    return (*own, *((name, value.encode("utf-8", "surrogatepass")) for name, value in users))


def _message(packet: Any, incoming: Incoming, identity: str, position: str, attempt: int) -> Message:
    headers = [("mqtt.qos", str(incoming.qos).encode())]
    if incoming.retain:
        headers.append(("mqtt.retain", b"1"))
    return Message(
        source="mqtt",
        stream=incoming.topic,
        position=f"retained {position}" if incoming.retain else position,
        id=identity,
        body=incoming.body,
        headers=(*headers, *incoming.extras),
        receipt=Receipt(incoming.qos, incoming.retain),
        stored=incoming.retain,
        attempt=attempt,
    )
