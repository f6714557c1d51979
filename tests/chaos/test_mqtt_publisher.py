"""Who publishes goes on at once behind a restart of the broker: chaos must not break by itself what it looks at."""

from __future__ import annotations

import anyio
import anyio.to_thread
import pytest

from event_triggers.sources.mqtt import MqttTopic
from servers.mosquitto import Mosquitto, find_mosquitto
from tests.chaos.mqtt_publisher import MqttPublisher
from tests.integration.mqtt_support import mqtt_connection, new_opening, taking
from tests.support import missing


async def test_a_restart_loses_and_doubles_nothing() -> None:
    if find_mosquitto() is None:
        missing("Mosquitto is not installed (apt-get install mosquitto)")
    with Mosquitto(persistent=True) as broker:
        publisher = MqttPublisher(60)
        await anyio.to_thread.run_sync(publisher.connect, broker.port)
        opening, source = new_opening(mqtt_connection(broker.port)), MqttTopic("chaos/#")
        try:
            async with taking(opening, source):
                await anyio.to_thread.run_sync(publisher.publish, "chaos/1", "before")
                await anyio.to_thread.run_sync(restart_and_publish, broker, publisher)
            async with taking(opening, source) as taker:
                messages = await taker.take(2)
                assert [message.body for message in messages] == [b"before", b"behind"]
                await taker.settle(*messages)
        finally:
            publisher.close()


def restart_and_publish(broker: Mosquitto, publisher: MqttPublisher) -> None:
    with publisher.cut_off():
        broker.restart()
    publisher.publish("chaos/1", "behind")


def test_a_broker_that_is_not_there_is_told() -> None:
    with pytest.raises(OSError, match="refused"):
        MqttPublisher(1).connect(1)
