"""Groups that wait for Kafka through the hub while something breaks: nothing is lost in silence."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from contextlib import asynccontextmanager
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from aiokafka import TopicPartition  # type: ignore[import-untyped]
from aiokafka.admin import RecordsToDelete  # type: ignore[import-untyped]

from event_triggers.entry import Interest
from event_triggers.hub import Hub
from event_triggers.sources import _kafka_stream
from event_triggers.sources.kafka import KafkaTopic
from tests.integration.faults import live, take, told, until_told
from tests.integration.kafka_support import SharedKafka, admin, create_topic, producer, shared_kafka

DAY = timedelta(days=1)


@pytest.fixture
def kafka(request: pytest.FixtureRequest) -> Iterator[SharedKafka]:
    """With its network mended afterwards."""
    kafka = shared_kafka(request.config)
    yield kafka
    kafka.proxy.restore()
    kafka.proxy.cut()


def new_hub(kafka: SharedKafka, **extra: Any) -> Hub:
    return Hub(kafka.opening(**extra).connection)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Options of a connection that counts as broken soon."""
    monkeypatch.setattr(_kafka_stream, "_SLACK", 0.5)
    return {"socket_timeout_ms": 1000}


@asynccontextmanager
async def away(kafka: SharedKafka, caplog: pytest.LogCaptureFixture) -> Any:
    """Nobody reaches the broker through the proxy; the hub has noticed."""
    kafka.proxy.refuse()
    await asyncio.to_thread(kafka.proxy.cut)
    await until_told(caplog, "the connection failed")
    yield
    await asyncio.to_thread(kafka.proxy.restore)


async def delete_before(kafka: SharedKafka, topic: str, offset: int) -> None:
    async with admin(kafka.direct) as control:
        await control.delete_records({TopicPartition(topic, 0): RecordsToDelete(offset)})


async def test_log_that_begins_after_since(kafka: SharedKafka, caplog: pytest.LogCaptureFixture) -> None:
    """Whoever waits for what was sent since yesterday is told that some of that is gone; others are not."""
    topic, hub = await kafka.topic(), new_hub(kafka)
    async with producer(kafka.direct) as client:
        for n in range(8):
            await client.send_and_wait(topic, b"%d" % n)
        await delete_before(kafka, topic, 6)
        yesterday = datetime.now(timezone.utc) - DAY
        async with hub.subscribe("late", [Interest("all", KafkaTopic(topic), count=2, since=yesterday)]) as group:
            assert [one.message.body for one in await take(group, 2)] == [b"6", b"7"]
        (line,) = told(caplog, "is lost", logging.ERROR)
        assert f"partition {topic}-0 begins at offset 6 now" in line
        assert f"since {yesterday.isoformat(timespec='seconds')}" in line
        now = datetime.now(timezone.utc) - timedelta(seconds=1)
        await delete_before(kafka, topic, 8)
        async with hub.subscribe("later", [Interest("all", KafkaTopic(topic), since=now)]) as group:
            await live(group)
            assert len(told(caplog, "begins at offset 8 now", logging.ERROR)) == 1, "the whole log is gone"
            await client.send_and_wait(topic, b"8")
            assert [one.message.body for one in await take(group)] == [b"8"]


async def test_log_with_all_that_was_asked_for(kafka: SharedKafka, caplog: pytest.LogCaptureFixture) -> None:
    topic, hub = await kafka.topic(), new_hub(kafka)
    async with producer(kafka.direct) as client:
        old = int((datetime.now(timezone.utc) - DAY).timestamp() * 1000)
        await client.send_and_wait(topic, b"gone", timestamp_ms=old)
        await client.send_and_wait(topic, b"old", timestamp_ms=old)
        await client.send_and_wait(topic, b"new")
        await delete_before(kafka, topic, 1)
        since = datetime.now(timezone.utc) - timedelta(hours=1)
        async with hub.subscribe("group", [Interest("all", KafkaTopic(topic), since=since)]) as group:
            assert [one.message.body for one in await take(group)] == [b"new"]
    assert not told(caplog, "", logging.WARNING)


async def test_messages_that_are_deleted_while_nobody_is_connected(
    kafka: SharedKafka, caplog: pytest.LogCaptureFixture, impatient: dict[str, Any]
) -> None:
    topic, hub = await kafka.topic(), new_hub(kafka, **impatient)
    interest = Interest("all", KafkaTopic(topic), count=9)
    async with producer(kafka.direct) as client, hub.subscribe("group", [interest]) as group:
        await live(group)
        await client.send_and_wait(topic, b"0")
        await take(group)
        async with away(kafka, caplog):
            for n in range(1, 7):
                await client.send_and_wait(topic, b"%d" % n)
            await delete_before(kafka, topic, 5)
        assert [one.message.body for one in await take(group, 2)] == [b"5", b"6"]
    (line,) = told(caplog, "are lost", logging.ERROR)
    assert f"the messages 1 to 4 of partition {topic}-0" in line


async def test_topic_that_is_created_again_while_nobody_is_connected(
    kafka: SharedKafka, caplog: pytest.LogCaptureFixture, impatient: dict[str, Any]
) -> None:
    """With more messages than were read of the old one, at the same offsets: all count, as other messages."""
    topic, hub = await kafka.topic(), new_hub(kafka, **impatient)
    interest = Interest("all", KafkaTopic(topic), count=9)
    async with hub.subscribe("group", [interest]) as group:
        await live(group)
        async with producer(kafka.direct) as client:
            await client.send_and_wait(topic, b"old")
        (old,) = await take(group)
        async with away(kafka, caplog), admin(kafka.direct) as control:
            await control.delete_topics([topic])
            while topic in await control.list_topics():
                pass
            await create_topic(kafka.direct, topic)
            async with producer(kafka.direct) as client:
                for body in (b"new 0", b"new 1", b"new 2"):
                    await client.send_and_wait(topic, body)
        new = await take(group, 3)
    assert [one.message.body for one in new] == [b"new 0", b"new 1", b"new 2"]
    assert (old.message.position, new[0].message.position) == ("0@0", "0@0")
    assert old.message.id != new[0].message.id
    assert len(told(caplog, "was deleted and created again", logging.ERROR)) == 1


async def test_topic_that_does_not_exist_yet(kafka: SharedKafka, caplog: pytest.LogCaptureFixture) -> None:
    topic = f"later-{id(caplog)}"
    hub, since = new_hub(kafka), datetime.now(timezone.utc)
    caplog.set_level(logging.INFO)
    async with hub.subscribe("group", [Interest("one", KafkaTopic(topic), since=since)]) as group:
        await until_told(caplog, f"topic '{topic}' does not exist yet", logging.INFO)
        await create_topic(kafka.direct, topic)
        async with producer(kafka.direct) as client:
            await client.send_and_wait(topic, b"1")
        assert [one.message.body for one in await take(group)] == [b"1"]


async def test_network_that_swallows_everything(
    kafka: SharedKafka, caplog: pytest.LogCaptureFixture, impatient: dict[str, Any]
) -> None:
    """Cut without a FIN: it is noticed, told, and healed; what was sent meanwhile comes, once."""
    topic, hub = await kafka.topic(), new_hub(kafka, **impatient)
    interest = Interest("all", KafkaTopic(topic), count=9)
    async with producer(kafka.direct) as client, hub.subscribe("group", [interest]) as group:
        await live(group)
        await client.send_and_wait(topic, b"before")
        await take(group)
        kafka.proxy.black_hole()
        await client.send_and_wait(topic, b"meanwhile")
        assert "no broker has answered" in await until_told(caplog, "the connection failed")
        await asyncio.to_thread(kafka.proxy.restore)
        await client.send_and_wait(topic, b"after")
        assert [one.message.body for one in await take(group, 2)] == [b"meanwhile", b"after"]
