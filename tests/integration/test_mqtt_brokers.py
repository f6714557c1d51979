"""Brokers of other habits than Mosquitto's, played by a script."""

from __future__ import annotations

import asyncio
import itertools
import logging

import pytest

from event_triggers.errors import ConfigurationError, StreamError
from event_triggers.message import same_message
from event_triggers.sources import mqtt as module
from event_triggers.sources.mqtt import MqttTopic
from tests.integration.mqtt_script import PUBACK, PUBCOMP, PUBREC, scripted
from tests.integration.mqtt_support import new_opening, taking

BOTH = pytest.mark.parametrize("version", [5, 4], ids=["mqtt-5", "mqtt-3.1.1"])


async def test_taken_over_session_is_said() -> None:
    """By brokers that give a reason, as MQTT 5 wants it."""
    async with scripted() as broker, taking(new_opening(broker.connection()), MqttTopic("t")) as taker:
        await broker.publish(b"t", b"1", 1)
        (message,) = await taker.take()
        await broker.send(0xE0, b"\x8e\0")
        with pytest.raises(StreamError, match=r"was taken over by another client.*another triggerer"):
            await taker.take()
        with pytest.raises(StreamError, match="taken over"):
            await taker.settle(message)


@pytest.mark.parametrize(
    ("version", "code", "error", "text"),
    [
        (5, 0x84, ConfigurationError, "does not speak MQTT 5; the option protocol"),
        (5, 0x85, ConfigurationError, "client identifier 'aet.*client_id_prefix"),
        (5, 0x86, StreamError, "login or the password is wrong"),
        (5, 0x87, StreamError, "may not connect"),
        (5, 0x8A, StreamError, "banned"),
        (5, 0x88, StreamError, "refuses the connection now"),
        (5, 0x97, StreamError, "refuses the connection now"),
        (4, 1, StreamError, "did not answer"),
        (4, 2, ConfigurationError, "client identifier"),
        (4, 3, StreamError, "refuses the connection now"),
        (4, 4, StreamError, "login or the password is wrong"),
        (4, 5, StreamError, "may not connect"),
    ],
)
async def test_refusals(version: int, code: int, error: type[Exception], text: str) -> None:
    async with scripted(version) as broker:
        broker.connect_code = code
        opening = new_opening(broker.connection(timeout=5))
        with pytest.raises(error, match=text):
            async with taking(opening, MqttTopic("t")):
                pass
        with pytest.raises(error, match=text):
            await MqttTopic("t").forget(opening)


async def test_old_broker_that_refuses_mqtt_5_in_the_old_way() -> None:
    async with scripted(4) as broker:
        broker.connect_code = 1
        with pytest.raises(ConfigurationError, match=r"does not speak MQTT 5.*'3.1.1'"):
            async with taking(new_opening(broker.connection(protocol="5", timeout=5)), MqttTopic("t")):
                pass


@pytest.mark.parametrize(
    ("version", "code", "error", "text"),
    [
        (4, 0x80, ConfigurationError, "cannot subscribe to 't': the broker refuses it"),
        (5, 0x80, ConfigurationError, "cannot subscribe to 't': the broker refuses it"),
        (5, 0x87, ConfigurationError, "cannot subscribe to 't': this login may not read"),
        (5, 0x8F, ConfigurationError, "does not take this topic filter"),
        (5, 0x97, StreamError, "cannot subscribe to 't' now"),
    ],
)
async def test_refused_filters(version: int, code: int, error: type[Exception], text: str) -> None:
    async with scripted(version) as broker:
        broker.granted = code
        with pytest.raises(error, match=text):
            async with taking(new_opening(broker.connection()), MqttTopic("t")):
                pass


@BOTH
async def test_lower_quality_than_asked_for_is_said_once(version: int, caplog: pytest.LogCaptureFixture) -> None:
    async with scripted(version) as broker:
        broker.granted = 0
        async with taking(new_opening(broker.connection()), MqttTopic("t")) as taker:
            await taker.stream.watch(MqttTopic("t", conn_id="same"))
        (text,) = [record.getMessage() for record in caplog.records]
        assert "asked for QoS 1 on 't', the broker grants QoS 0; messages can be lost" in text


async def test_broker_without_subscription_identifiers() -> None:
    """It says so, and is not sent any."""
    for connack, expected in ((b"\x29\x00", False), (b"", True)):
        async with scripted() as broker:
            broker.connack = connack
            async with taking(new_opening(broker.connection()), MqttTopic("t")) as taker:
                # Packet identifier, length of the properties, then the identifier's own mark.
                assert (broker.subscribed[0][2] > 0) is expected
                await broker.publish(b"t", b"1", 1)
                await taker.settle(*await taker.take())
                await broker.until_answered((PUBACK, 1))


async def test_shorter_expiry_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with scripted() as broker:
        broker.connack = b"\x11" + (60).to_bytes(4, "big")
        async with taking(new_opening(broker.connection()), MqttTopic("t")):
            assert "keeps sessions for 60 s only" in caplog.text


@BOTH
async def test_packet_identifiers_used_again_at_once(version: int, caplog: pytest.LogCaptureFixture) -> None:
    """Identical messages with one packet identifier, one after the other: each is a message of its own."""
    caplog.set_level(logging.INFO)
    async with scripted(version) as broker:
        opening = new_opening(broker.connection())
        ids = []
        async with taking(opening, MqttTopic("t")) as taker:
            for _ in range(3):
                await broker.publish(b"t", b"same", 1)
                (message,) = await taker.take()
                ids.append(message.id)
                await taker.settle(message)
        broker.session_present = True
        async with taking(opening, MqttTopic("t")) as taker:
            await broker.publish(b"t", b"same", 1)
            ids += [message.id for message in await taker.take()]
        assert len(set(ids)) == 4
        assert ("uses packet identifiers again" in caplog.text) is (version == 4)


async def test_messages_that_waited_are_new_whatever_their_packet_identifier() -> None:
    """MQTT 5: the next process knows by the subscription identifier that they waited, and that they are new."""
    async with scripted() as broker:
        opening = new_opening(broker.connection())
        async with taking(opening, MqttTopic("t")) as taker:
            old = number(broker.subscribed[-1])
            await broker.publish(b"t", b"same", 1, under=(old,))
            (first,) = await taker.take()
            await taker.settle(first)
            await broker.publish(b"t", b"other", 2, under=(old,))
            (flying,) = await taker.take()
        module._memories.clear()
        broker.session_present = True
        async with taking(opening, MqttTopic("t")) as taker:
            await broker.publish(b"t", b"other", 2, dup=True, under=(old,))
            await broker.publish(b"t", b"same", 1, under=(old,))
            await broker.publish(b"t", b"same", 3, under=(number(broker.subscribed[-1]),))
            again, waited, live = await taker.take(3)
            assert same_message(again.id, flying.id)
            different = [first, waited, live, again]
            assert not any(same_message(a.id, b.id) for a, b in itertools.combinations(different, 2))
        assert number(broker.subscribed[-1]) != old


def number(subscribe: bytes) -> int:
    """The subscription identifier in the body of a SUBSCRIBE."""
    length, mark = subscribe[2], subscribe[3]
    assert mark == 0x0B
    return sum((byte & 127) << 7 * place for place, byte in enumerate(subscribe[4 : 3 + length]))


async def test_one_packet_under_several_subscriptions() -> None:
    """Brokers may merge copies themselves."""
    async with scripted() as broker, taking(new_opening(broker.connection()), MqttTopic("t"), MqttTopic("#")) as taker:
        one, two = (number(body) for body in broker.subscribed)
        await broker.publish(b"t", b"same", 1, under=(one, two))
        await broker.publish(b"t", b"same", 2, under=(one, two))
        messages = await taker.take(2)
        assert len({m.id for m in messages}) == 2
        await taker.settle(*messages)
        await broker.until_answered((PUBACK, 1), (PUBACK, 2))


@BOTH
async def test_quality_2_is_answered_when_it_is_settled(version: int) -> None:
    """Not with the PUBREC that lets the broker forget the body; and an answer that was under way is completed."""
    async with scripted(version) as broker:
        opening = new_opening(broker.connection())
        async with taking(opening, MqttTopic("t", 2)) as taker:
            await broker.publish(b"t", b"1", 1, qos=2)
            await broker.publish(b"t", b"2", 2, qos=2)
            one, two = await taker.take(2)
            assert broker.answers == []
            await taker.settle(two)
            await broker.until_answered((PUBREC, 2), (PUBCOMP, 2))
        broker.session_present = True
        broker.answers.clear()
        async with taking(opening, MqttTopic("t", 2)) as taker:
            await broker.publish(b"t", b"1", 1, qos=2, dup=True)
            await broker.send(0x62, (7).to_bytes(2, "big"))
            (again,) = await taker.take()
            assert again.id == one.id
            await broker.until_answered((PUBCOMP, 7))
            await taker.settle(again)
            await broker.until_answered((PUBCOMP, 7), (PUBREC, 1), (PUBCOMP, 1))


async def test_topic_that_is_not_utf_8() -> None:
    """No broker may send it; it disturbs nobody."""
    async with scripted() as broker, taking(new_opening(broker.connection()), MqttTopic("#")) as taker:
        await broker.publish(b"t/\xff", b"odd", 1)
        await broker.publish(b"t", b"good", 2)
        messages = await taker.take(2)
        assert [(m.stream, m.body) for m in messages] == [("t/\\xff", b"odd"), ("t", b"good")]
        await taker.settle(*messages)
        await broker.until_answered((PUBACK, 1), (PUBACK, 2))


@BOTH
async def test_what_is_acknowledged_last_arrives(version: int) -> None:
    """A broker that reads slowly answers the first acknowledgement when the client has gone already."""
    async with scripted(version) as broker:
        broker.one_by_one = True
        settled = asyncio.Event()

        async def take_and_leave() -> None:
            async with taking(new_opening(broker.connection()), MqttTopic("t", qos=2)) as taker:
                for mid in (1, 2, 3):
                    await broker.publish(b"t", str(mid).encode(), mid, qos=2)
                messages = await taker.take(3)
                broker.stop_reading()
                await taker.settle(*messages)
                settled.set()

        leaving = asyncio.create_task(take_and_leave())
        await settled.wait()
        for _ in range(100):
            await asyncio.sleep(0)
        broker.go_on_reading()
        await leaving
        await broker.until_answered((PUBREC, 1), (PUBREC, 2), (PUBREC, 3))
