"""The conformance suite on Mosquitto: durable sessions with MQTT 3.1.1 and 5, at QoS 1 and 2."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import ClassVar

import anyio.to_thread
import pytest

from event_triggers.sources._mqtt_settings import read_settings
from event_triggers.sources.base import Opening, Position
from event_triggers.sources.mqtt import MqttTopic
from event_triggers.testing.conformance import BrokerHarness, QueueConformance
from servers.mosquitto import Mosquitto
from servers.ports import free_port
from servers.proxy import TcpProxy
from tests.integration.mqtt_support import acknowledged, mosquitto, mqtt_connection, new_opening, publish, unique


@pytest.fixture(scope="module")
def broker() -> Iterator[Mosquitto]:
    # With MQTT 3.1.1 the broker alone says how many messages may be unacknowledged.
    with mosquitto(settings={"max_inflight_messages": 100}) as running:
        yield running


class MqttHarness(BrokerHarness):
    # Above one and a half keep-alives, after which the broker drops a silent client.
    idle: ClassVar[float] = 8.0
    released_comes_again: ClassVar[bool] = False

    def __init__(self, broker: Mosquitto, proxy: TcpProxy, protocol: str, qos: int) -> None:
        self._broker = broker
        self._proxy = proxy
        self._protocol = protocol
        self._qos = qos
        self._topic = unique("conformance")
        self._published = 0

    def source(self) -> MqttTopic:
        return MqttTopic(f"{self._topic}/+", qos=self._qos, conn_id=self._topic)

    def opening(self, *, group: str = "conformance", start: Position | None = None) -> Opening:
        return self._opening(self._proxy.port, group)

    def _opening(self, port: int, group: str) -> Opening:
        return new_opening(mqtt_connection(port, self._topic, protocol=self._protocol, keepalive=5), group)

    async def publish(self, *bodies: bytes) -> None:
        await publish(self._broker.port, f"{self._topic}/one", *bodies, qos=self._qos)
        self._published += len(bodies)

    async def undelivered(self) -> int:
        connection = mqtt_connection(self._proxy.port, self._topic)
        client_id = read_settings(connection).session_id("conformance")
        # A session of fewer than 65535 messages has used no packet identifier twice.
        return self._published - len(set(acknowledged(self._broker, client_id)))

    async def cut(self) -> None:
        await anyio.to_thread.run_sync(self._proxy.cut)

    def broken(self) -> tuple[MqttTopic, Opening]:
        return self.source(), self._opening(free_port(), "conformance")


class BriefMqttHarness(MqttHarness):
    # Keep-alive is the same at every QoS.
    idle: ClassVar[float] = 0.5


class TestMqttTopic(QueueConformance):
    @pytest.fixture(params=[("5", 1), ("3.1.1", 1), ("5", 2), ("3.1.1", 2)], ids=lambda p: f"mqtt-{p[0]}-qos-{p[1]}")
    async def harness(self, request: pytest.FixtureRequest, broker: Mosquitto) -> AsyncIterator[MqttHarness]:
        with TcpProxy(broker.port) as proxy:
            protocol, qos = request.param
            harness = (MqttHarness if qos == 1 else BriefMqttHarness)(broker, proxy, protocol, qos)
            yield harness
            await harness.source().forget(harness.opening())
