"""What the tests of MQTT share: a broker, connections to it, a publisher, and what the broker's log tells."""

from __future__ import annotations

import re
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import aiomqtt
import anyio
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from event_triggers.message import Message
from event_triggers.sources.base import BrokerConnection, Opening, Outcome, Settlement, Stream
from event_triggers.sources.mqtt import MqttTopic
from servers.mosquitto import Mosquitto
from servers.process import ServerFailed
from tests.support import missing

__all__ = [
    "Taker",
    "acknowledged",
    "mosquitto",
    "mqtt_connection",
    "new_opening",
    "publish",
    "settle",
    "taking",
    "unique",
    "until",
]

PATIENCE = 40.0
"""Seconds that any wait of these tests may take."""


@contextmanager
def mosquitto(**options: Any) -> Iterator[Mosquitto]:
    """A running broker, or a skip."""
    try:
        broker = Mosquitto(**options)
    except ServerFailed as error:
        missing(str(error))
    with broker:
        yield broker


def unique(prefix: str) -> str:
    """A topic, group or connection id that no other test uses."""
    return f"{prefix}-{uuid.uuid4().hex[:12]}"


def mqtt_connection(port: int, conn_id: str = "mqtt_default", **extra: Any) -> BrokerConnection:
    """An Airflow connection to the loopback interface: ``login``, ``password``, ``host``; and extra."""
    fields: dict[str, Any] = {"host": "127.0.0.1"}
    fields.update({name: extra.pop(name) for name in ("login", "password", "host") if name in extra})
    return BrokerConnection(conn_id, "mqtt", port=port, extra=extra, **fields)


def new_opening(connection: BrokerConnection, group: str | None = None) -> Opening:
    """An opening that knows this connection under any id."""

    async def look_up(conn_id: str) -> BrokerConnection:
        return connection

    return Opening(group=group or unique("group"), connection=look_up)


async def publish(
    port: int,
    topic: str,
    *bodies: bytes,
    qos: int = 1,
    retain: bool = False,
    user: tuple[str, str] | None = None,
    properties: Mapping[str, Any] | None = None,
) -> None:
    """Publish in order with MQTT 5; return when the broker has them."""
    login: dict[str, Any] = {"username": user[0], "password": user[1]} if user else {}
    version = aiomqtt.ProtocolVersion.V5
    async with aiomqtt.Client("127.0.0.1", port, protocol=version, clean_start=True, **login) as client:
        for body in bodies:
            sent = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
            for name, value in (properties or {}).items():
                setattr(sent, name, value)
            await client.publish(topic, body, qos=qos, retain=retain, properties=sent)


class Taker:
    """Takes messages from an open stream, never waiting without bound."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self._batches = stream.__aiter__()
        self._left: list[Message] = []

    async def take(self, count: int = 1) -> list[Message]:
        """The next ``count`` messages."""
        with anyio.fail_after(PATIENCE):
            while len(self._left) < count:
                self._left += await self._batches.__anext__()
        taken, self._left = self._left[:count], self._left[count:]
        return taken

    async def bodies(self, count: int = 1) -> list[bytes | None]:
        return [message.body for message in await self.take(count)]

    async def settle(self, *messages: Message, outcome: Outcome = Outcome.ACCEPTED) -> None:
        await settle(self.stream, *messages, outcome=outcome)


async def settle(stream: Stream, *messages: Message, outcome: Outcome = Outcome.ACCEPTED) -> None:
    with anyio.fail_after(PATIENCE):
        await stream.settle([Settlement(message, outcome) for message in messages])


@asynccontextmanager
async def taking(opening: Opening, *sources: MqttTopic) -> AsyncIterator[Taker]:
    """Open as the hub does: open, watch each source, then iterate."""
    with anyio.fail_after(PATIENCE * 4):
        async with sources[0].open(opening) as stream:
            for source in sources:
                await stream.watch(source)
            yield Taker(stream)


async def until(condition: Callable[[], object]) -> None:
    """Wait until this holds, for something that nobody announces."""
    with anyio.fail_after(PATIENCE):
        while not condition():  # noqa: ASYNC110 - it is of another process
            await anyio.sleep(0.01)


def acknowledged(broker: Mosquitto, client_id: str) -> list[int]:
    """The packet identifiers that this client has acknowledged, from the broker's log, in order."""
    pattern = re.compile(rf"Received (?:PUBACK|PUBREC) from {re.escape(client_id)} \(Mid: (\d+)")
    return [int(mid) for mid in pattern.findall(broker.log.read_text(errors="replace"))]
