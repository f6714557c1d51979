"""Groups that share MQTT connections through the hub, on Mosquitto."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import AsyncExitStack

import anyio
import anyio.to_thread
import pytest

from event_triggers.delivery import Delivery
from event_triggers.entry import Interest
from event_triggers.hooks.mqtt import MqttHook
from event_triggers.hub import Hub
from event_triggers.message import same_message
from event_triggers.sources import mqtt as module
from event_triggers.sources.base import BrokerConnection
from event_triggers.sources.mqtt import MqttTopic
from event_triggers.subscription import Subscription
from servers.mosquitto import Mosquitto
from servers.ports import free_port
from servers.proxy import TcpProxy
from tests.integration.mqtt_support import PATIENCE, mosquitto, mqtt_connection, publish, unique, until


@pytest.fixture(scope="module")
def broker() -> Iterator[Mosquitto]:
    with mosquitto() as running:
        yield running


def new_hub(port: int) -> Hub:
    async def look_up(conn_id: str) -> BrokerConnection:
        return mqtt_connection(port, conn_id)

    return Hub(look_up)


async def receive(subscription: Subscription, count: int = 1) -> list[Delivery]:
    found: list[Delivery] = []
    with anyio.fail_after(PATIENCE):
        while len(found) < count:
            found += await subscription.receive()
    return found


async def live(subscription: Subscription) -> None:
    with anyio.fail_after(PATIENCE):
        await subscription.live()


async def test_groups_share_what_they_can(broker: Mosquitto) -> None:
    """Ten groups of ten events: a connection for each durable group, and one for all that is not durable."""
    root = unique("shared")
    with TcpProxy(broker.port) as proxy:
        hub = new_hub(proxy.port)
        async with AsyncExitStack() as stack:
            groups = {}
            for name in (unique("group") for _ in range(10)):
                interests = [Interest(f"event{n}", MqttTopic(f"{root}/{n}", n % 2)) for n in range(10)]
                groups[name] = await stack.enter_async_context(hub.subscribe(name, interests))
            for subscription in groups.values():
                await live(subscription)
            assert proxy.open == 11
            for n in range(10):
                await publish(broker.port, f"{root}/{n}", b"%d" % n)
            for subscription in groups.values():
                deliveries = await receive(subscription, 10)
                assert sorted(event for delivery in deliveries for event in delivery.events) == [
                    f"event{n}" for n in range(10)
                ]
                for delivery in deliveries:
                    delivery.accept()
                subscription.over = True
                with anyio.fail_after(PATIENCE):
                    await subscription.settled()
        for name in groups:
            await hub.forget(name, [MqttTopic(root, 1), MqttTopic(root, 0)])
        await until(lambda: not proxy.open)


async def test_group_that_left_before_it_recorded(broker: Mosquitto) -> None:
    """What it had in hand goes to its successor in another process, under its id; what it had recorded does not."""
    topic, group = unique("topic"), unique("group")
    interest = Interest("event", MqttTopic(topic), count=2)
    async with new_hub(broker.port).subscribe(group, [interest]) as subscription:
        await live(subscription)
        await publish(broker.port, topic, b"recorded", b"in hand")
        recorded, in_hand = await receive(subscription, 2)
        recorded.accept()
    module._memories.clear()
    hub = new_hub(broker.port)
    again = Interest("event", MqttTopic(topic), count=2, recorded=frozenset({recorded.message.id}))
    async with hub.subscribe(group, [again]) as subscription:
        (delivery,) = await receive(subscription)
        assert delivery.message.body == b"in hand"
        assert same_message(delivery.message.id, in_hand.message.id)
        delivery.accept()
        await publish(broker.port, topic, b"last")
        assert [d.message.body for d in await receive(subscription)] == [b"last"]
    await hub.forget(group, [MqttTopic(topic)])


async def test_another_process_ends_the_group(broker: Mosquitto, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who ran the group in vain knows that its session was removed, and that it has made another."""
    source, group = MqttTopic(unique("ended"), 1), unique("group")
    hub = new_hub(broker.port)
    async with hub.subscribe(group, [Interest("event", source)]) as subscription:
        await live(subscription)
        assert not hub.has_lost_session(group)
        with monkeypatch.context() as elsewhere:
            elsewhere.setattr(module, "_memories", module._Memories())
            await new_hub(broker.port).forget(group, [source])
        lost = False

        def has_lost() -> bool:
            nonlocal lost
            lost = lost or hub.has_lost_session(group)
            return lost

        await until(has_lost)
        assert not hub.has_lost_session(group)
    await hub.forget(group, [source])


async def test_recorded_but_not_acknowledged(broker: Mosquitto) -> None:
    """The process died in between: its successor knows the message by its id, acknowledges it, and counts it once."""
    topic, group = unique("topic"), unique("group")
    with TcpProxy(broker.port) as proxy:
        async with new_hub(proxy.port).subscribe(group, [Interest("event", MqttTopic(topic), count=2)]) as subscription:
            await live(subscription)
            await publish(broker.port, topic, b"first")
            (delivery,) = await receive(subscription)
            # Nothing gets through any more, so the acknowledgement does not either.
            await anyio.to_thread.run_sync(proxy.black_hole)
            delivery.accept()
        module._memories.clear()
        hub = new_hub(broker.port)
        recorded = frozenset({delivery.message.id})
        interest = Interest("event", MqttTopic(topic), count=1, recorded=recorded)
        async with hub.subscribe(group, [interest]) as subscription:
            await live(subscription)
            await publish(broker.port, topic, b"second")
            assert [d.message.body for d in await receive(subscription)] == [b"second"]
    await hub.forget(group, [MqttTopic(topic)])


async def test_broker_restarts_while_a_group_waits() -> None:
    topic, group = unique("topic"), unique("group")
    with mosquitto(persistent=True) as broker:
        hub = new_hub(broker.port)
        async with hub.subscribe(group, [Interest("event", MqttTopic(topic))]) as subscription:
            await live(subscription)
            await anyio.to_thread.run_sync(broker.stop)
            await anyio.to_thread.run_sync(broker.start)
            await publish(broker.port, topic, b"while nobody was connected")
            (delivery,) = await receive(subscription)
            assert delivery.message.body == b"while nobody was connected"
            delivery.accept()
            subscription.over = True
        await hub.forget(group, [MqttTopic(topic)])


# ---------------------------------------------------------------------- the connection's test button


def in_environment(monkeypatch: pytest.MonkeyPatch, connection: BrokerConnection) -> str:
    name = unique("mqtt").replace("-", "_")
    fields = {"conn_type": "mqtt", "host": connection.host, "port": connection.port, "extra": dict(connection.extra)}
    fields |= {"login": connection.login, "password": connection.password}
    monkeypatch.setitem(os.environ, f"AIRFLOW_CONN_{name.upper()}", json.dumps(fields))
    return name


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
async def test_connection_can_be_tested(broker: Mosquitto, monkeypatch: pytest.MonkeyPatch, protocol: str) -> None:
    """With an event loop running around it too."""
    name = in_environment(monkeypatch, mqtt_connection(broker.port, protocol=protocol))
    passed, text = MqttHook(name).test_connection()
    assert (passed, text) == (True, f"Connected to 127.0.0.1:{broker.port} by MQTT {protocol} over tcp")


def test_connection_that_fails_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    name = in_environment(monkeypatch, mqtt_connection(free_port()))
    passed, text = MqttHook(name).test_connection()
    assert not passed
    assert "cannot connect" in text
    name = in_environment(monkeypatch, mqtt_connection(1, keepalves=3))
    passed, text = MqttHook(name).test_connection()
    assert not passed
    assert "did you mean 'keepalive'" in text


async def test_a_stored_message_reaches_a_group_that_comes_later(broker: Mosquitto) -> None:
    """On a connection without sessions, which listens already: the first group sees it once, the second one too."""
    topic = unique("stored")
    await publish(broker.port, topic, b"{}", retain=True)
    hub = new_hub(broker.port)
    source = MqttTopic(topic, 0)
    async with hub.subscribe(unique("group"), [Interest("event", source, count=2)]) as first:
        (delivery,) = await receive(first)
        delivery.accept()
        async with hub.subscribe(unique("group"), [Interest("event", source)]) as second:
            (delivery,) = await receive(second)
            assert delivery.message.body == b"{}"
            delivery.accept()
        await publish(broker.port, topic, b"[]")
        (delivery,) = await receive(first)
        assert delivery.message.body == b"[]", "the stored message does not count twice for the first group"
        delivery.accept()
