"""Groups that wait for MQTT through the hub while something breaks: on Mosquitto."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator

import anyio
import anyio.to_thread
import pytest

from event_triggers.entry import Interest
from event_triggers.hub import Hub
from event_triggers.sources import _mqtt_stream
from event_triggers.sources.base import BrokerConnection
from event_triggers.sources.mqtt import MqttTopic
from servers.mosquitto import Mosquitto
from servers.proxy import TcpProxy
from tests.integration.faults import corrected, live, take, told, until_told
from tests.integration.mqtt_support import mosquitto, mqtt_connection, publish, unique, until


@pytest.fixture(scope="module")
def broker() -> Iterator[Mosquitto]:
    with mosquitto() as running:
        yield running


def new_hub(connection: BrokerConnection) -> Hub:
    async def look_up(conn_id: str) -> BrokerConnection:
        return connection

    return Hub(look_up)


async def test_password_that_is_corrected_later(caplog: pytest.LogCaptureFixture) -> None:
    topic, group = unique("topic"), unique("group")
    with mosquitto(users={"me": "secret"}) as broker:
        right = mqtt_connection(broker.port, login="me", password="secret")

        async def look_up(conn_id: str) -> BrokerConnection:
            return right

        hub = corrected(look_up, mqtt_connection(broker.port, login="me", password="wrong"))
        async with hub.subscribe(group, [Interest("event", MqttTopic(topic))]) as subscription:
            await until_told(caplog, "the broker refuses the connection")
            await live(subscription)
            await publish(broker.port, topic, b"let in", user=("me", "secret"))
            assert [one.message.body for one in await take(subscription)] == [b"let in"]
            subscription.over = True


async def test_session_that_expired_while_nobody_was_connected(
    broker: Mosquitto, caplog: pytest.LogCaptureFixture
) -> None:
    """What was sent meanwhile is lost, and the task's log says so; what comes then arrives."""
    topic, group = unique("topic"), unique("group")
    with TcpProxy(broker.port) as proxy:
        hub = new_hub(mqtt_connection(proxy.port, session_expiry=1))
        async with hub.subscribe(group, [Interest("event", MqttTopic(topic))]) as subscription:
            await live(subscription)
            proxy.refuse()
            await anyio.to_thread.run_sync(proxy.cut)
            await publish(broker.port, topic, b"lost")
            await until(lambda: "Expiring" in broker.log.read_text(errors="replace"))
            proxy.restore()
            line = await until_told(caplog, "the broker has forgotten the session", logging.ERROR)
            assert "what was sent since the last connection is lost" in line
            await live(subscription)
            await until(lambda: hub.statistics().channels[0].connected)
            await publish(broker.port, topic, b"new")
            assert [one.message.body for one in await take(subscription)] == [b"new"]
            subscription.over = True


async def test_network_that_swallows_everything(broker: Mosquitto, caplog: pytest.LogCaptureFixture) -> None:
    """Cut without a FIN: noticed by the keep-alive, told, and healed; what was sent meanwhile comes, once."""
    topic, group = unique("topic"), unique("group")
    source = MqttTopic(topic)
    with TcpProxy(broker.port) as proxy:
        hub = new_hub(mqtt_connection(proxy.port, keepalive=5, timeout=2))
        async with hub.subscribe(group, [Interest("event", source, count=9)]) as subscription:
            await live(subscription)
            await publish(broker.port, topic, b"before")
            await take(subscription)
            await anyio.to_thread.run_sync(proxy.black_hole)
            await publish(broker.port, topic, b"meanwhile")
            line = await until_told(caplog, "the connection failed")
            assert re.search("broke: .*[Kk]eep.?alive", line)
            await anyio.to_thread.run_sync(proxy.restore)
            assert [one.message.body for one in await take(subscription)] == [b"meanwhile"]
            subscription.over = True
        await hub.forget(group, [source])


async def test_what_nobody_waits_for_any_more_fills_nothing(
    broker: Mosquitto, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An event at QoS 0 is there, its group waits for another one, and the topic goes on and on.

    It is published at QoS 1, to know when the broker has it; it comes at QoS 0, which was subscribed.
    """
    monkeypatch.setattr(_mqtt_stream, "_MOST_HELD", 5)
    done, other = MqttTopic(unique("done"), 0), MqttTopic(unique("other"), 0)
    hub = new_hub(mqtt_connection(broker.port))
    async with hub.subscribe("group", [Interest("done", done), Interest("other", other)]) as group:
        await live(group)
        await publish(broker.port, done.topic, b"1", qos=0)
        await take(group)
        await until(lambda: "Received UNSUBSCRIBE" in broker.log.read_text(errors="replace"))
        await publish(broker.port, done.topic, *[b"stale"] * 20)
        await publish(broker.port, other.topic, b"2", qos=0)
        assert [one.events for one in await take(group)] == [("other",)]
        # Nothing is wanted from this connection now, and it is not read. Who comes then gets what is sent then.
        await publish(broker.port, done.topic, *[b"stale"] * 20)
        async with hub.subscribe("next", [Interest("done", done)]) as following:
            await live(following)
            await publish(broker.port, done.topic, b"fresh", qos=0)
            assert [one.message.body for one in await take(following)] == [b"fresh"]
    assert not told(caplog, "are lost")
