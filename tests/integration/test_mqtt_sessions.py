"""Durable MQTT sessions on Mosquitto: what comes again, under which id, after which kind of end."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiomqtt
import anyio
import anyio.to_thread
import pytest

from event_triggers.errors import StreamError
from event_triggers.message import same_message
from event_triggers.sources import mqtt as module
from event_triggers.sources._mqtt_settings import read_settings
from event_triggers.sources.base import BrokerConnection, Outcome
from event_triggers.sources.mqtt import MqttTopic
from servers.mosquitto import Mosquitto
from servers.proxy import TcpProxy
from tests.integration.mqtt_support import (
    PATIENCE,
    acknowledged,
    mosquitto,
    mqtt_connection,
    new_opening,
    publish,
    taking,
    unique,
    until,
)

BOTH = pytest.mark.parametrize("protocol", ["5", "3.1.1"])
LEVELS = pytest.mark.parametrize("qos", [1, 2])


@pytest.fixture(scope="module")
def broker() -> Iterator[Mosquitto]:
    with mosquitto(settings={"max_inflight_messages": 100}) as running:
        yield running


def another_process() -> None:
    """Know nothing of any session, as a triggerer that has just started."""
    module._memories.clear()


@BOTH
@LEVELS
async def test_next_process_gets_what_was_not_acknowledged_under_the_same_id(
    broker: Mosquitto, protocol: str, qos: int
) -> None:
    topic = unique("topic")
    source, opening = MqttTopic(topic, qos), new_opening(mqtt_connection(broker.port, protocol=protocol))
    async with taking(opening, source) as taker:
        await publish(broker.port, topic, b"1", b"2", b"3", qos=qos)
        first = await taker.take(3)
        await taker.settle(first[1])
    await publish(broker.port, topic, b"4", qos=qos)
    another_process()
    async with taking(opening, source) as taker:
        again = await taker.take(3)
        assert [m.body for m in again] == [b"1", b"3", b"4"]
        assert all(map(same_message, (m.id for m in again[:2]), (first[0].id, first[2].id)))
        assert [m.attempt for m in again] == [2, 2, 1]
        assert not any(same_message(again[2].id, m.id) for m in first)
        await taker.settle(*again)
    async with taking(opening, source) as taker:
        await publish(broker.port, topic, b"5", qos=qos)
        assert await taker.bodies() == [b"5"]
    await source.forget(opening)


@BOTH
@LEVELS
async def test_killed_process(broker: Mosquitto, protocol: str, qos: int, tmp_path: Path) -> None:
    """A process takes messages, acknowledges one, and is killed; the next one gets the others under their ids."""
    topic, group = unique("topic"), unique("group")
    script = Path(__file__).with_name("mqtt_taker.py")
    arguments = [str(broker.port), protocol, topic, str(qos), group, "3"]
    await publish(broker.port, topic, b"too early: nobody is subscribed", qos=qos)
    folders = [str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
    child = subprocess.Popen(  # noqa: ASYNC220 - it starts at once
        [sys.executable, script, *arguments],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(folders)},
        text=True,
    )
    try:
        assert child.stdout is not None
        with anyio.fail_after(PATIENCE * 2):
            assert await anyio.to_thread.run_sync(child.stdout.readline) == "subscribed\n"
            await publish(broker.port, topic, b"1", b"2", b"3", qos=qos)
            lines = [await anyio.to_thread.run_sync(child.stdout.readline) for _ in range(3)]
    finally:
        child.send_signal(signal.SIGKILL)
        child.communicate()
    ids = dict(line.split() for line in lines)
    source = MqttTopic(topic, qos)
    opening = new_opening(mqtt_connection(broker.port, protocol=protocol), group)
    async with taking(opening, source) as taker:
        again = await taker.take(2)
        assert sorted((m.body or b"").decode() for m in again) == ["2", "3"]
        assert all(same_message(m.id, ids[(m.body or b"").decode()]) for m in again)
        await taker.settle(*again)
    await source.forget(opening)


@BOTH
async def test_identical_messages_are_many(broker: Mosquitto, protocol: str) -> None:
    topic = unique("topic")
    source, opening = MqttTopic(topic), new_opening(mqtt_connection(broker.port, protocol=protocol))
    ids = set()
    for _ in range(3):
        async with taking(opening, source) as taker:
            await publish(broker.port, topic, b"same", b"same")
            messages = await taker.take(2)
            ids |= {m.id for m in messages}
            await taker.settle(*messages)
        await publish(broker.port, topic, b"same")
        another_process()
        async with taking(opening, source) as taker:
            messages = await taker.take(1)
            ids |= {m.id for m in messages}
            await taker.settle(*messages)
    assert len(ids) == 9
    await source.forget(opening)


@BOTH
async def test_broker_restarts_and_still_has_the_session(protocol: str) -> None:
    topic = unique("topic")
    with mosquitto(persistent=True) as broker:
        source, opening = MqttTopic(topic), new_opening(mqtt_connection(broker.port, protocol=protocol))
        async with taking(opening, source) as taker:
            await publish(broker.port, topic, b"1", b"2")
            first = await taker.take(2)
            await taker.settle(first[0])
            await anyio.to_thread.run_sync(broker.restart)
            with pytest.raises(StreamError, match="broke"):
                await taker.take()
        for memory in ("kept", "lost"):
            if memory == "lost":
                another_process()
            async with taking(opening, source) as taker:
                (again,) = await taker.take()
                assert again.body == b"2", memory
                assert same_message(again.id, first[1].id), memory


async def test_forgotten_session_is_said(caplog: pytest.LogCaptureFixture) -> None:
    topic = unique("topic")
    with mosquitto() as broker:
        source, opening = MqttTopic(topic), new_opening(mqtt_connection(broker.port))
        async with taking(opening, source) as taker:
            assert not caplog.records
            await publish(broker.port, topic, b"1")
            (first,) = await taker.take()
        async with taking(opening, source):
            assert not caplog.records
        await anyio.to_thread.run_sync(broker.restart)
        async with taking(opening, source) as taker:
            (record,) = [r for r in caplog.records if r.levelno == logging.ERROR]
            assert "forgotten the session" in record.getMessage()
            assert "is lost" in record.getMessage()
            await publish(broker.port, topic, b"1")
            assert (await taker.take())[0].id != first.id


@BOTH
async def test_forget_removes_the_session(broker: Mosquitto, protocol: str) -> None:
    topic = unique("topic")
    connection = mqtt_connection(broker.port, protocol=protocol)
    source, opening = MqttTopic(topic), new_opening(connection)
    client_id = read_settings(connection).session_id(opening.group)
    await source.forget(opening)  # there is nothing yet
    async with taking(opening, source) as taker:
        await publish(broker.port, topic, b"1")
        await taker.take()
    assert await session_present(broker.port, client_id)
    for _ in range(2):
        await source.forget(opening)
        assert not await session_present(broker.port, client_id)


async def session_present(port: int, client_id: str) -> bool:
    """Whether the broker has a session of this name. Asking makes one."""
    flags: list[bool] = []
    client = aiomqtt.Client("127.0.0.1", port, identifier=client_id, clean_session=False)
    original: Any = client._client.on_connect

    def on_connect(*arguments: Any) -> None:
        flags.append(arguments[2].session_present)
        original(*arguments)

    client._client.on_connect = on_connect
    async with client:
        return flags[0]


async def test_taken_over_session(broker: Mosquitto) -> None:
    """An old triggerer that still runs is disconnected, and told the likely reason (Mosquitto 2.0.11 gives none)."""
    topic = unique("topic")
    source, opening = MqttTopic(topic), new_opening(mqtt_connection(broker.port))
    async with taking(opening, source) as old:
        await publish(broker.port, topic, b"1")
        (first,) = await old.take()
        async with taking(opening, source) as new:
            with pytest.raises(StreamError, match="another client uses the session"):
                await old.take()
            (again,) = await new.take()
            assert (again.body, again.id, again.attempt) == (b"1", first.id, 2)
            await old.settle(first)  # too late for this connection, and harmless
            await new.settle(again)
    async with taking(opening, source) as new:
        await publish(broker.port, topic, b"2")
        assert await new.bodies() == [b"2"]
    await source.forget(opening)


@BOTH
@LEVELS
async def test_settled_while_the_connection_was_broken(broker: Mosquitto, protocol: str, qos: int) -> None:
    """What was accepted but could not be acknowledged is acknowledged when it comes again, and not handed over."""
    topic = unique("topic")
    with TcpProxy(broker.port) as proxy:
        connection = mqtt_connection(proxy.port, protocol=protocol)
        source, opening = MqttTopic(topic, qos), new_opening(connection)
        async with taking(opening, source) as taker:
            await publish(broker.port, topic, b"1", b"2", qos=qos)
            one, two = await taker.take(2)
            await anyio.to_thread.run_sync(proxy.cut)
            with pytest.raises(StreamError):
                await taker.take()
            with pytest.raises(StreamError):
                await taker.settle(one)
        async with taking(opening, source) as taker:
            (again,) = await taker.take()
            assert (again.body, again.id, again.attempt) == (b"2", two.id, 2)
            client_id = read_settings(connection).session_id(opening.group)
            mids = [int(message.position.split()[-1]) for message in (one, two)]
            await until(lambda: acknowledged(broker, client_id) == mids[:1])
            await taker.settle(one)  # as the hub does, which does not know
            await taker.settle(again)
            await until(lambda: acknowledged(broker, client_id) == mids)
        async with taking(opening, source) as taker:
            await publish(broker.port, topic, b"3", qos=qos)
            assert await taker.bodies() == [b"3"]
        await source.forget(opening)


@BOTH
@LEVELS
async def test_outcomes(broker: Mosquitto, protocol: str, qos: int) -> None:
    """Everything but what was abandoned is acknowledged, once, and in any order."""
    topic = unique("topic")
    connection = mqtt_connection(broker.port, protocol=protocol)
    source, opening = MqttTopic(topic, qos), new_opening(connection)
    client_id = read_settings(connection).session_id(opening.group)
    async with taking(opening, source) as taker:
        await publish(broker.port, topic, b"1", b"2", b"3", b"4", qos=qos)
        one, two, three, four = await taker.take(4)
        await taker.settle(four)
        await taker.settle(one, outcome=Outcome.ABANDONED)
        await taker.settle(three, outcome=Outcome.REJECTED)
        await taker.settle(two, two, outcome=Outcome.RELEASED)
        await taker.settle(two, three, four)
        await publish(broker.port, topic, b"5", qos=qos)
        assert await taker.bodies() == [b"5"]
    expected = [int(m.position.split()[-1]) for m in (four, three, two)]
    await until(lambda: len(acknowledged(broker, client_id)) >= len(expected))
    assert acknowledged(broker, client_id) == expected
    await source.forget(opening)


async def test_receive_maximum_holds_the_broker_back(broker: Mosquitto) -> None:
    """Not settling is back-pressure: the broker keeps what is above the receive maximum, and nothing is lost."""
    topic = unique("topic")
    source, opening = MqttTopic(topic), new_opening(mqtt_connection(broker.port, receive_maximum=3))
    async with taking(opening, source) as taker:
        await publish(broker.port, topic, *(b"%d" % n for n in range(10)))
        held = await taker.take(3)
        with pytest.raises(asyncio.TimeoutError):
            # The time itself is what is tested: nothing more comes.
            await asyncio.wait_for(taker.take(), 0.3)
    async with taking(opening, source) as taker:
        seen = []
        for _ in range(10):
            (message,) = await taker.take()
            seen.append(message.body)
            await taker.settle(message)
        assert seen == [b"%d" % n for n in range(10)]
    assert len(held) == 3
    await source.forget(opening)


async def test_groups_have_sessions_of_their_own(broker: Mosquitto) -> None:
    """Two groups get every message both, and settle it each for itself."""
    topic = unique("topic")
    connection: BrokerConnection = mqtt_connection(broker.port)
    source, one, two = MqttTopic(topic), new_opening(connection, unique("one")), new_opening(connection, unique("two"))
    assert source.key("one") != source.key("two")
    async with taking(one, source) as first, taking(two, source) as second:
        await publish(broker.port, topic, b"1")
        (message,) = await first.take()
        await first.settle(message)
        (other,) = await second.take()
        assert other.body == b"1"
    async with taking(one, source) as first, taking(two, source) as second:
        await publish(broker.port, topic, b"2")
        assert await first.bodies() == [b"2"]
        assert await second.bodies(2) == [b"1", b"2"]
    await source.forget(one)
    await source.forget(two)
