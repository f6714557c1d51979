"""Topic filters, shared connections, retained messages and QoS 0, on Mosquitto."""

from __future__ import annotations

import base64
import hashlib
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio.to_thread
import pytest

from event_triggers.errors import ConfigurationError
from event_triggers.sources import _mqtt_stream
from event_triggers.sources import mqtt as module
from event_triggers.sources.mqtt import MqttTopic
from servers.mosquitto import Mosquitto
from servers.proxy import TcpProxy
from tests.integration.mqtt_support import (
    acknowledged,
    mosquitto,
    mqtt_connection,
    new_opening,
    publish,
    settle,
    taking,
    unique,
    until,
)
from tests.support import missing

BOTH = pytest.mark.parametrize("protocol", ["5", "3.1.1"])


@pytest.fixture(scope="module")
def broker() -> Iterator[Mosquitto]:
    with mosquitto(settings={"sys_interval": 1}) as running:
        yield running


@pytest.fixture(scope="module")
def copying_broker() -> Iterator[Mosquitto]:
    """A broker that sends a message once for every filter that takes it, as MQTT allows."""
    with mosquitto(settings={"allow_duplicate_messages": "true"}) as running:
        yield running


@BOTH
async def test_wildcards(broker: Mosquitto, protocol: str) -> None:
    root = unique("plant")
    opening = new_opening(mqtt_connection(broker.port, protocol=protocol))
    one, all_below = MqttTopic(f"{root}/+/end"), MqttTopic(f"{root}/b/#")
    async with taking(opening, one, all_below) as taker:
        for topic in ("a/end", "a/x/end", "b", "b/end", "b/c/d"):
            await publish(broker.port, f"{root}/{topic}", topic.encode())
        messages = await taker.take(4)
        assert [m.body for m in messages] == [b"a/end", b"b", b"b/end", b"b/c/d"]
        assert [m.stream.removeprefix(root + "/") for m in messages] == ["a/end", "b", "b/end", "b/c/d"]
        assert [one.routes(m) for m in messages] == [True, False, True, False]
        assert [all_below.routes(m) for m in messages] == [False, True, True, True]
        await taker.settle(*messages)
    await one.forget(opening)


async def test_everything_does_not_include_the_brokers_own_topics(broker: Mosquitto) -> None:
    opening = new_opening(mqtt_connection(broker.port))
    everything, own = MqttTopic("#", 0), MqttTopic("$SYS/#", 0)
    async with taking(opening, everything, own) as taker:
        (message,) = await taker.take()
        assert message.stream.startswith("$SYS/")
        assert own.routes(message)
        assert not everything.routes(message)


@pytest.mark.parametrize("qos", [0, 1, 2])
async def test_copies_by_overlapping_filters_are_one_message(copying_broker: Mosquitto, qos: int) -> None:
    """With MQTT 5 the copies of one message are told from two messages with one content."""
    root = unique("copies")
    opening = new_opening(mqtt_connection(copying_broker.port))
    sources = [MqttTopic(f"{root}/#", qos), MqttTopic(f"{root}/a", qos), MqttTopic(f"{root}/+", qos)]
    async with taking(opening, *sources) as taker:
        await publish(copying_broker.port, f"{root}/a", b"same", b"same", b"last", qos=max(qos, 1))
        messages = await taker.take(3)
        assert [m.body for m in messages] == [b"same", b"same", b"last"]
        assert len({m.id for m in messages}) == 3
        await taker.settle(*messages)
        if qos:
            client_id = new_client_id(copying_broker, opening.group)
            # Every packet is acknowledged, whichever filter it came under.
            await until(lambda: len(acknowledged(copying_broker, client_id)) == 9)
    async with taking(opening, *sources) as taker:
        await publish(copying_broker.port, f"{root}/b", b"next")
        assert await taker.bodies() == [b"next"]
    await sources[0].forget(opening)


def new_client_id(broker: Mosquitto, group: str) -> str:
    from event_triggers.sources._mqtt_settings import read_settings

    return read_settings(mqtt_connection(broker.port)).session_id(group)


@BOTH
async def test_one_filter_with_two_qualities(broker: Mosquitto, protocol: str) -> None:
    """The higher one is subscribed, whatever the order."""
    topic = unique("topic")
    for first, second in ((1, 2), (2, 1)):
        opening = new_opening(mqtt_connection(broker.port, protocol=protocol))
        sources = MqttTopic(topic, first), MqttTopic(topic, second)
        async with taking(opening, *sources) as taker:
            await publish(broker.port, topic, b"1", qos=2)
            (message,) = await taker.take()
            assert ("mqtt.qos", b"2") in message.headers
            assert all(source.routes(message) for source in sources)
            await taker.settle(message)
            await taker.stream.unwatch(sources[0])
            await publish(broker.port, topic, b"2", qos=2)
            assert await taker.bodies() == [b"2"]
        await sources[0].forget(opening)


@BOTH
async def test_unwatched_filter_is_unsubscribed(broker: Mosquitto, protocol: str) -> None:
    root = unique("topic")
    opening = new_opening(mqtt_connection(broker.port, protocol=protocol))
    one, two = MqttTopic(f"{root}/1"), MqttTopic(f"{root}/2")
    async with taking(opening, one, two) as taker:
        await publish(broker.port, f"{root}/1", b"before")
        (message,) = await taker.take()
        await taker.stream.unwatch(one)
        await settle(taker.stream, message)
        await publish(broker.port, f"{root}/1", b"after")
        await publish(broker.port, f"{root}/2", b"other")
        assert await taker.bodies() == [b"other"]
        await taker.stream.watch(one)
        await publish(broker.port, f"{root}/1", b"again")
        assert await taker.bodies() == [b"again"]
    await one.forget(opening)


async def test_shared_subscription(broker: Mosquitto) -> None:
    root = unique("shared")
    connection = mqtt_connection(broker.port)
    source = MqttTopic(f"$share/team/{root}/#")
    one, two = new_opening(connection), new_opening(connection)
    async with taking(one, source) as first, taking(two, source) as second:
        await publish(broker.port, f"{root}/a", b"1", b"2")
        bodies = []
        for taker in (first, second):
            (message,) = await taker.take()
            assert source.routes(message)
            await taker.settle(message)
            bodies.append(message.body)
        assert sorted(bodies, key=str) == [b"1", b"2"]
    await source.forget(one)
    await source.forget(two)


@BOTH
async def test_filter_that_the_broker_forbids(protocol: str, tmp_path: Path) -> None:
    rules = tmp_path / "rules.json"
    rules.write_text(json.dumps(may_subscribe("me", "secret", "allowed/#")))
    with mosquitto(settings={"plugin": dynamic_security(), "plugin_opt_config_file": str(rules)}) as broker:
        connection = mqtt_connection(broker.port, protocol=protocol, login="me", password="secret")
        async with taking(new_opening(connection), MqttTopic("allowed/a", 0)) as taker:
            with pytest.raises(ConfigurationError, match=r"cannot subscribe to 'forbidden/#'.*access rules"):
                await taker.stream.watch(MqttTopic("forbidden/#", 0))
            # The others on the connection are not disturbed.
            await taker.stream.watch(MqttTopic("allowed/b", 0))


def dynamic_security() -> str:
    """The plugin's path, or a skip."""
    for path in Path("/usr/lib").glob("**/mosquitto_dynamic_security.so"):
        return str(path)
    missing("Mosquitto's plugin dynamic_security is not installed")


def may_subscribe(user: str, password: str, topic_filter: str) -> dict[str, Any]:
    """Rules of the plugin dynamic_security: one user who may do all but subscribe elsewhere."""
    salt = b"twelve bytes"
    hashed = hashlib.pbkdf2_hmac("sha512", password.encode(), salt, 101)
    secret = {name: base64.b64encode(value).decode() for name, value in (("password", hashed), ("salt", salt))}
    rule = {"acltype": "subscribePattern", "topic": topic_filter, "priority": 0, "allow": True}
    return {
        "defaultACLAccess": {
            "publishClientSend": True,
            "publishClientReceive": True,
            "subscribe": False,
            "unsubscribe": True,
        },
        "clients": [{"username": user, **secret, "iterations": 101, "roles": [{"rolename": "reader"}]}],
        "roles": [{"rolename": "reader", "acls": [rule]}],
    }


# ---------------------------------------------------------------------- retained messages


@BOTH
@pytest.mark.parametrize("qos", [0, 1])
async def test_stored_message_is_delivered_and_marked(broker: Mosquitto, protocol: str, qos: int) -> None:
    topic = unique("stored")
    await publish(broker.port, topic, b"stored", retain=True)
    source, opening = MqttTopic(topic, qos), new_opening(mqtt_connection(broker.port, protocol=protocol))
    async with taking(opening, source) as taker:
        (message,) = await taker.take()
        assert (message.body, dict(message.headers)["mqtt.retain"]) == (b"stored", b"1")
        assert message.position.startswith("retained ")
        await publish(broker.port, topic, b"live")
        (live,) = await taker.take()
        assert "mqtt.retain" not in dict(live.headers)
        await taker.settle(message, live)
    await source.forget(opening)


@BOTH
async def test_stored_message_of_a_durable_session_comes_once(broker: Mosquitto, protocol: str) -> None:
    """Neither in this process nor in the next one: also not when it first came live."""
    topic = unique("stored")
    source, opening = MqttTopic(topic), new_opening(mqtt_connection(broker.port, protocol=protocol))
    await publish(broker.port, topic, b"stored", retain=True)
    async with taking(opening, source) as taker:
        (message,) = await taker.take()
        await publish(broker.port, topic, b"live, and stored", retain=True)
        (live,) = await taker.take()
        await taker.settle(message, live)
    for memory in ("kept", "lost"):
        if memory == "lost":
            module._memories.clear()
        async with taking(opening, source) as taker:
            await publish(broker.port, topic, memory.encode())
            (next_one,) = await taker.take()
            assert next_one.body == memory.encode(), memory
            await taker.settle(next_one)
    await source.forget(opening)


@BOTH
async def test_stored_message_that_was_not_settled_comes_again(broker: Mosquitto, protocol: str) -> None:
    topic = unique("stored")
    source, opening = MqttTopic(topic), new_opening(mqtt_connection(broker.port, protocol=protocol))
    await publish(broker.port, topic, b"stored", retain=True)
    async with taking(opening, source) as taker:
        (first,) = await taker.take()
    module._memories.clear()
    async with taking(opening, source) as taker:
        (again,) = await taker.take()
        assert (again.body, again.id) == (b"stored", first.id)
        await taker.settle(again)
    await source.forget(opening)


@BOTH
async def test_stored_message_has_one_id_at_every_subscription(broker: Mosquitto, protocol: str) -> None:
    """A connection without a session gets it each time; it is one message, also if it came live before."""
    topic = unique("stored")
    source = MqttTopic(topic, 0)
    await publish(broker.port, topic, b"stored", retain=True)
    with TcpProxy(broker.port) as proxy:
        opening = new_opening(mqtt_connection(proxy.port, protocol=protocol))
        async with taking(opening, source) as taker:
            (stored,) = await taker.take()
            await taker.stream.watch(source)
            (again,) = await taker.take()
            assert again.id == stored.id
            await publish(broker.port, topic, b"live", retain=True)
            (live,) = await taker.take()
            assert live.id != stored.id
        async with taking(opening, source) as taker:
            (again,) = await taker.take()
            assert (again.body, again.id) == (b"live", live.id)


@BOTH
@pytest.mark.parametrize("qos", [0, 1])
async def test_stored_messages_can_be_left_out(broker: Mosquitto, protocol: str, qos: int) -> None:
    topic = unique("stored")
    await publish(broker.port, topic, b"stored", retain=True)
    opening = new_opening(mqtt_connection(broker.port, protocol=protocol))
    source, other = MqttTopic(topic, qos, retained=False), MqttTopic(topic, qos)
    async with taking(opening, source) as taker:
        await publish(broker.port, topic, b"live")
        messages = await taker.take(1 if protocol == "5" else 2)
        assert [m.body for m in messages if source.routes(m)] == [b"live"]
        assert all(other.routes(m) for m in messages)
        await taker.settle(*messages)
    await source.forget(opening)


# ---------------------------------------------------------------------- QoS 0


async def test_quality_0_shares_a_connection_and_keeps_nothing(broker: Mosquitto) -> None:
    topic = unique("topic")
    source, opening = MqttTopic(topic, 0), new_opening(mqtt_connection(broker.port))
    assert source.key("one") == source.key("two") == MqttTopic("other", 0).key("three")
    assert source.key("one") == MqttTopic(topic, 1, durable=False).key("two")
    assert source.key("one") != MqttTopic(topic, 0, conn_id="another").key("one")
    async with taking(opening, source) as taker:
        await publish(broker.port, topic, b"same", b"same", qos=0)
        messages = await taker.take(2)
        assert len({m.id for m in messages}) == 2
        await taker.settle(*messages)
    await publish(broker.port, topic, b"while away", qos=0)
    async with taking(opening, source) as taker:
        await publish(broker.port, topic, b"last", qos=0)
        assert await taker.bodies() == [b"last"]
    await source.forget(opening)  # there is nothing to forget


async def test_without_session_at_quality_1(broker: Mosquitto) -> None:
    topic = unique("topic")
    source, opening = MqttTopic(topic, durable=False), new_opening(mqtt_connection(broker.port))
    async with taking(opening, source) as taker:
        await publish(broker.port, topic, b"1", b"2")
        one, two = await taker.take(2)
        await taker.settle(two, one)
    async with taking(opening, source) as taker:
        await taker.settle(one)  # of another connection; harmless
        await publish(broker.port, topic, b"3")
        assert await taker.bodies() == [b"3"]


async def test_messages_that_do_not_fit_are_counted_and_logged(
    broker: Mosquitto, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_mqtt_stream, "_MOST_HELD", 5)
    topic = unique("topic")
    source, opening = MqttTopic(topic, 0), new_opening(mqtt_connection(broker.port))
    async with taking(opening, source) as taker:
        await publish(broker.port, topic, *(b"%d" % n for n in range(12)))
        stream = taker.stream
        assert isinstance(stream, _mqtt_stream.MqttStream)
        await until(lambda: stream._lost == 6 and len(caplog.records) == 1)
        assert await taker.bodies(5) == [b"0", b"1", b"2", b"3", b"4"]
    texts = [r.getMessage() for r in caplog.records if r.levelno == logging.ERROR]
    assert len(texts) == 2
    assert "1 messages at QoS 0 are lost" in texts[0]
    assert "6 messages at QoS 0 are lost" in texts[1]


async def test_publisher_at_quality_0_is_warned_of(broker: Mosquitto, caplog: pytest.LogCaptureFixture) -> None:
    """A durable session does not make durable what is published at QoS 0, and the log says so, once."""
    topic = unique("topic")
    source, opening = MqttTopic(topic), new_opening(mqtt_connection(broker.port))
    async with taking(opening, source) as taker:
        await publish(broker.port, topic, b"1", b"2", qos=0)
        messages = await taker.take(2)
        assert len({m.id for m in messages}) == 2
        await taker.settle(*messages)
    (text,) = [r.getMessage() for r in caplog.records]
    assert "published at QoS 0" in text
    await source.forget(opening)


async def test_properties_become_headers(broker: Mosquitto) -> None:
    topic = unique("topic")
    source, opening = MqttTopic(topic), new_opening(mqtt_connection(broker.port))
    properties = {
        "ContentType": "application/json",
        "ResponseTopic": "answers/here",
        "CorrelationData": b"\x00\xff",
        "PayloadFormatIndicator": 1,
        "UserProperty": [("shift", "1"), ("shift", "2"), ("mqtt.retain", "spoofed")],
        "MessageExpiryInterval": 60,
    }
    async with taking(opening, source) as taker:
        await publish(broker.port, topic, b"{}", properties=properties)
        (message,) = await taker.take()
        assert message.headers == (
            ("mqtt.qos", b"1"),
            ("mqtt.content-type", b"application/json"),
            ("mqtt.response-topic", b"answers/here"),
            ("mqtt.correlation-data", b"\x00\xff"),
            ("mqtt.payload-format", b"1"),
            ("shift", b"1"),
            ("shift", b"2"),
            ("mqtt.retain", b"spoofed"),
        )
        assert MqttTopic(topic, retained=False).routes(message)
    await source.forget(opening)


async def test_broker_restart_at_quality_0() -> None:
    topic = unique("topic")
    with mosquitto() as broker:
        source, opening = MqttTopic(topic, 0), new_opening(mqtt_connection(broker.port))
        async with taking(opening, source) as taker:
            await publish(broker.port, topic, b"held")
            await until(lambda: taker.stream._held)  # type: ignore[attr-defined]
            await anyio.to_thread.run_sync(broker.restart)
            # What had arrived is handed over before the broken connection is told.
            assert await taker.bodies() == [b"held"]
            with pytest.raises(Exception, match="connection broke"):
                await taker.take()
