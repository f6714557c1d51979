"""Topics that come, grow, are emptied, go, and come again."""

from __future__ import annotations

import asyncio
import logging
import uuid
from datetime import datetime, timedelta, timezone

import anyio
import pytest
from aiokafka import TopicPartition  # type: ignore[import-untyped]
from aiokafka.admin import NewPartitions, RecordsToDelete  # type: ignore[import-untyped]

from event_triggers.errors import ConfigurationError
from event_triggers.sources.base import Position
from event_triggers.sources.kafka import KafkaTopic
from event_triggers.testing.conformance import Reader
from tests.integration.kafka_support import (
    SharedKafka,
    admin,
    create_topic,
    eventually,
    producer,
    reading,
    shared_kafka,
    until,
)


@pytest.fixture
def kafka(request: pytest.FixtureRequest) -> SharedKafka:
    return shared_kafka(request.config)


def errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    ours = [r for r in caplog.records if r.name.startswith("event_triggers") and r.levelno >= logging.ERROR]
    return [record.getMessage() for record in ours]


async def test_topic_that_does_not_exist_yet(kafka: SharedKafka, caplog: pytest.LogCaptureFixture) -> None:
    """It is waited for, not created, and read from its beginning, also next to one that does exist."""
    late, there = f"late-{uuid.uuid4().hex}", await kafka.topic()
    with caplog.at_level(logging.INFO):
        async with reading(KafkaTopic([late, there]), kafka.opening()) as reader, producer(kafka.direct) as client:
            assert reader.log.position() == {f"{there}-0": 0}
            assert f"topic {late!r} does not exist yet" in caplog.text
            pulling = asyncio.create_task(reader.bodies(1))
            # Long enough for it to look several times; what is tested is that the looking creates nothing.
            await asyncio.wait({pulling}, timeout=2.5)
            async with admin(kafka.direct) as control:
                assert late not in await control.list_topics()
            await client.send_and_wait(there, b"meanwhile")
            assert await pulling == [b"meanwhile"]
            pulling = asyncio.create_task(reader.bodies(2))
            await create_topic(kafka.direct, late, 2)
            await client.send_and_wait(late, b"1", partition=1)
            await client.send_and_wait(late, b"0", partition=0)
            assert set(await pulling) == {b"0", b"1"}
            assert reader.log.position() == {f"{there}-0": 1, f"{late}-0": 1, f"{late}-1": 1}
    assert not errors(caplog)


async def test_impossible_name(kafka: SharedKafka) -> None:
    # The last one is left to the broker: it may be a template that nobody rendered.
    for name in ("a b", "a/b", "x" * 250, "..", "{{ ds }}"):
        with pytest.raises(ConfigurationError, match=r"no topic can be called|a topic cannot be called"):
            async with KafkaTopic(name).open(kafka.opening()):
                pass


async def test_partitions_that_appear_later(kafka: SharedKafka) -> None:
    topic = await kafka.topic(1)
    opening = kafka.opening(metadata_max_age_ms=1000)
    async with reading(KafkaTopic(topic), opening) as reader, producer(kafka.direct) as client:
        async with admin(kafka.direct) as control:
            await control.create_partitions({topic: NewPartitions(3)})
        await eventually_partitions(client, topic, 3)
        for partition in (2, 1, 0):
            await client.send_and_wait(topic, b"%d" % partition, partition=partition)
        assert set(await reader.bodies(3)) == {b"0", b"1", b"2"}
        position = reader.log.position()
        assert position == {f"{topic}-0": 1, f"{topic}-1": 1, f"{topic}-2": 1}
        await client.send_and_wait(topic, b"again", partition=2)
        assert await reader.bodies(1) == [b"again"]


async def eventually_partitions(client: object, topic: str, count: int) -> None:
    for _ in range(200):
        if len(await client.partitions_for(topic)) == count:  # type: ignore[attr-defined]
            return
        await client.client.force_metadata_update()  # type: ignore[attr-defined]
    raise AssertionError(f"{topic} never had {count} partitions")


async def test_messages_that_are_gone(kafka: SharedKafka, caplog: pytest.LogCaptureFixture) -> None:
    """Somebody deletes records, or retention does, before they were read: told loudly, then read on."""
    topic = await kafka.topic()
    async with producer(kafka.direct) as client:
        for n in range(10):
            await client.send_and_wait(topic, b"%d" % n)
        async with admin(kafka.direct) as control:
            await control.delete_records({TopicPartition(topic, 0): RecordsToDelete(6)})
        async with reading(KafkaTopic(topic), kafka.opening(start={f"{topic}-0": 2})) as reader:
            assert await reader.bodies(4) == [b"6", b"7", b"8", b"9"]
    (error,) = errors(caplog)
    assert f"the messages 2 to 5 of partition {topic}-0 are lost" in error
    assert "begins at 6 now" in error


async def test_beginning_of_a_shortened_log(kafka: SharedKafka, caplog: pytest.LogCaptureFixture) -> None:
    """Whoever asks for the beginning gets what there is; nothing was lost to them."""
    topic = await kafka.topic()
    async with producer(kafka.direct) as client:
        for n in range(4):
            await client.send_and_wait(topic, b"%d" % n)
        async with admin(kafka.direct) as control:
            await control.delete_records({TopicPartition(topic, 0): RecordsToDelete(3)})
        async with reading(KafkaTopic(topic), kafka.opening(start={})) as reader:
            assert reader.log.position() == {f"{topic}-0": 3}
            assert await reader.bodies(1) == [b"3"]
            past = datetime.now(timezone.utc) - timedelta(days=1)
            assert await reader.log.locate(past) == {f"{topic}-0": 3}
    assert not errors(caplog)


async def test_position_beyond_the_end(kafka: SharedKafka, caplog: pytest.LogCaptureFixture) -> None:
    """The topic was created again while nobody looked."""
    topic = await kafka.topic()
    async with producer(kafka.direct) as client:
        await client.send_and_wait(topic, b"new")
        async with reading(KafkaTopic(topic), kafka.opening(start={f"{topic}-0": 50})) as reader:
            assert await reader.bodies(1) == [b"new"]
    (error,) = errors(caplog)
    assert "was read up to 50, but ends at 1 now" in error


@pytest.mark.parametrize("more", [0, 5], ids=["as many messages", "more messages"])
async def test_topic_created_again(kafka: SharedKafka, caplog: pytest.LogCaptureFixture, more: int) -> None:
    """Also when the new topic already has more messages than were read of the old one."""
    topic = await kafka.topic()
    async with producer(kafka.direct) as client, reading(KafkaTopic(topic), kafka.opening()) as reader:
        for n in range(3):
            await client.send_and_wait(topic, b"old %d" % n)
        assert len(await reader.take(3)) == 3
        pulling = asyncio.create_task(_until_told(reader, {f"{topic}-0": 3 + more}, caplog))
        async with admin(kafka.direct) as control:
            await control.delete_topics([topic])
            await created_again(kafka, control, topic)
        bodies = [b"new %d" % n for n in range(3 + more)]
        async with producer(kafka.direct) as fresh:
            for body in bodies:
                await fresh.send_and_wait(topic, body)
        pulled = await pulling
    # Until the stream learns that the topic is another one, it may go on at its old offset.
    assert pulled[-len(bodies) :] == bodies
    early = pulled[: -len(bodies)]
    assert set(early) <= set(bodies[3:])
    (error,) = errors(caplog)
    assert f"topic {topic!r} was deleted and created again" in error


async def _until_told(reader: Reader, position: Position, caplog: pytest.LogCaptureFixture) -> list[bytes | None]:
    """What is pulled until it was said that the topic is another one, and the stream is at this position in it."""
    bodies: list[bytes | None] = []
    with anyio.fail_after(30):
        while not errors(caplog) or reader.log.position() != position:
            bodies += [message.body for message in await reader.batch()]
    return bodies


async def created_again(kafka: SharedKafka, control: object, topic: str) -> None:
    for _ in range(200):
        if topic not in await control.list_topics():  # type: ignore[attr-defined]
            await create_topic(kafka.direct, topic)
            return
    raise AssertionError(f"{topic} was not deleted")


async def test_deleted_topic_is_not_created_by_us(kafka: SharedKafka, caplog: pytest.LogCaptureFixture) -> None:
    topic = await kafka.topic()
    async with reading(KafkaTopic(topic), kafka.opening(metadata_max_age_ms=1000)) as reader:
        pulling = asyncio.create_task(reader.bodies(1))
        async with admin(kafka.direct) as control:
            await control.delete_topics([topic])
            await eventually(lambda: f"topic {topic!r} is gone" in caplog.text)
            before = kafka.proxy.delivered
            await asyncio.wait({pulling}, timeout=2.5)
            assert kafka.proxy.delivered - before < 5_000, "the broker is asked without a pause"
            assert topic not in await control.list_topics()
            await create_topic(kafka.direct, topic)
        async with producer(kafka.direct) as client:
            await client.send_and_wait(topic, b"back")
        assert await pulling == [b"back"]


async def test_position_survives_the_end_of_a_compacted_log(kafka: SharedKafka) -> None:
    """Offsets have holes; the position is right behind the last message all the same."""
    topic = await kafka.topic(
        cleanup_policy="compact", segment_ms="100", min_cleanable_dirty_ratio="0.001", max_compaction_lag_ms="100"
    )
    async with producer(kafka.direct) as client:
        for n in range(20):
            await client.send_and_wait(topic, b"%d" % n, key=b"same")
        async with reading(KafkaTopic(topic), kafka.opening(start={})) as reader:
            messages = await until(reader, {f"{topic}-0": 20})
    assert messages[-1].body == b"19"
