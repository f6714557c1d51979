"""What KafkaTopic makes of the messages of a real broker."""

from __future__ import annotations

import asyncio
import re
from datetime import datetime, timedelta, timezone

import anyio
import pytest

from event_triggers.entry import Interest
from event_triggers.hub import Hub
from event_triggers.sources.kafka import KafkaTopic
from tests.integration.kafka_support import SharedKafka, admin, eventually, producer, reading, shared_kafka, until


@pytest.fixture
def kafka(request: pytest.FixtureRequest) -> SharedKafka:
    return shared_kafka(request.config)


@pytest.mark.parametrize("codec", ["gzip", "snappy", "lz4", "zstd"])
async def test_compressed_batches(kafka: SharedKafka, codec: str) -> None:
    topic = await kafka.topic()
    bodies = [b'{"n": %d, "pad": "%s"}' % (n, b"x" * 500) for n in range(200)]
    async with reading(KafkaTopic(topic), kafka.opening()) as reader:
        before = kafka.proxy.delivered
        async with producer(kafka.direct, compression_type=codec, linger_ms=50) as client:
            for future in [await client.send(topic, body) for body in bodies]:
                await future
        assert await reader.bodies(len(bodies)) == bodies
        assert kafka.proxy.delivered - before < sum(map(len, bodies)) / 2, "the batches were not compressed"


async def test_parts_of_a_message(kafka: SharedKafka) -> None:
    topic = await kafka.topic(3)
    moment = datetime(2026, 2, 3, 4, 5, 6, 789000, tzinfo=timezone.utc)
    async with producer(kafka.direct) as client, reading(KafkaTopic(topic), kafka.opening(start={})) as reader:
        await client.send_and_wait(topic, b"first", partition=2)
        await client.send_and_wait(
            topic,
            b"\xff body",
            key=b"\xff key",
            partition=2,
            headers=[("one", b"1"), ("two", b"\xff"), ("one", b"")],
            timestamp_ms=int(moment.timestamp() * 1000),
        )
        message = (await reader.take(2))[1]
    assert (message.source, message.stream) == ("kafka", topic)
    assert (message.partition, message.offset, message.position) == (f"{topic}-2", 1, "2@1")
    assert re.fullmatch(rf"{topic}/[\w-]{{22}}:2:1", message.id)
    assert (message.key, message.body) == (b"\xff key", b"\xff body")
    assert message.headers == (("one", b"1"), ("two", b"\xff"), ("one", b""))
    assert message.timestamp == moment


async def test_header_without_value(kafka: SharedKafka) -> None:
    topic = await kafka.topic()
    async with producer(kafka.direct) as client, reading(KafkaTopic(topic), kafka.opening()) as reader:
        await client.send_and_wait(topic, b"", headers=[("one", b"1"), ("none", None)])
        (message,) = await reader.take(1)
    assert message.headers == (("one", b"1"), ("none", b""))


async def test_tombstone(kafka: SharedKafka) -> None:
    topic = await kafka.topic(cleanup_policy="compact")
    async with producer(kafka.direct) as client, reading(KafkaTopic(topic), kafka.opening()) as reader:
        await client.send_and_wait(topic, None, key=b"gone")
        await client.send_and_wait(topic, b"", key=b"empty")
        tombstone, empty = await reader.take(2)
    assert (tombstone.key, tombstone.body, tombstone.payload) == (b"gone", None, None)
    assert (empty.key, empty.body) == (b"empty", b"")


async def test_stamp_of_the_broker(kafka: SharedKafka) -> None:
    topic = await kafka.topic(message_timestamp_type="LogAppendTime")
    async with producer(kafka.direct) as client, reading(KafkaTopic(topic), kafka.opening()) as reader:
        before = datetime.now(timezone.utc) - timedelta(milliseconds=1)
        await client.send_and_wait(topic, b"", timestamp_ms=1)
        (message,) = await reader.take(1)
    assert message.timestamp is not None
    assert before <= message.timestamp <= datetime.now(timezone.utc)


async def test_stamps_that_are_no_dates(kafka: SharedKafka) -> None:
    never = str(2**63 - 1)
    topic = await kafka.topic(message_timestamp_after_max_ms=never, message_timestamp_before_max_ms=never)
    async with producer(kafka.direct) as client, reading(KafkaTopic(topic), kafka.opening()) as reader:
        await client.send_and_wait(topic, b"", timestamp_ms=2**60)
        (message,) = await reader.take(1)
    assert message.timestamp == datetime.max.replace(tzinfo=timezone.utc)


async def test_since_is_exact_to_the_microsecond(kafka: SharedKafka) -> None:
    topic = await kafka.topic()
    moment = datetime.now(timezone.utc).replace(microsecond=5000)
    opening = kafka.opening(start={}, fetch_wait_max_ms=20)  # a look waits for the fetch before it
    async with producer(kafka.direct) as client, reading(KafkaTopic(topic), opening) as reader:
        for milliseconds in (0, 1, 2):
            stamp = moment + timedelta(milliseconds=milliseconds)
            await client.send_and_wait(topic, b"", timestamp_ms=round(stamp.timestamp() * 1000))
        await reader.take(3)
        for microseconds, offset in ((-1, 0), (0, 0), (1, 1), (1000, 1), (1001, 2), (2001, 3)):
            since = moment + timedelta(microseconds=microseconds)
            assert await reader.log.locate(since) == {f"{topic}-0": offset}, microseconds
        assert await reader.log.locate(datetime(1960, 1, 1, tzinfo=timezone.utc)) == {f"{topic}-0": 0}


async def test_transactions(kafka: SharedKafka) -> None:
    topic = await kafka.topic()
    async with producer(kafka.direct, transactional_id=f"{topic}-writer") as client:
        async with client.transaction():
            await client.send_and_wait(topic, b"committed")
        await client.begin_transaction()
        await client.send_and_wait(topic, b"aborted")
        await client.abort_transaction()
    end = {f"{topic}-0": 4}  # two messages, and the marks of two transactions
    async with reading(KafkaTopic(topic), kafka.opening(start={})) as reader:
        messages = await until(reader, end)
        assert [m.body for m in messages] == [b"committed"]
    async with reading(KafkaTopic(topic), kafka.opening()) as reader:
        assert reader.log.position() == end
    for opening, source in (
        (kafka.opening(start={}), KafkaTopic(topic, isolation="read_uncommitted")),
        (kafka.opening(start={}, isolation_level="read_uncommitted"), KafkaTopic(topic)),
    ):
        async with reading(source, opening) as reader:
            assert [m.body for m in await until(reader, end)] == [b"committed", b"aborted"]


async def test_open_transaction_is_not_passed_over(kafka: SharedKafka) -> None:
    topic = await kafka.topic()
    async with (
        producer(kafka.direct, transactional_id=f"{topic}-writer") as writer,
        producer(kafka.direct) as other,
    ):
        await writer.begin_transaction()
        await writer.send_and_wait(topic, b"slow")
        await other.send_and_wait(topic, b"quick")
        async with reading(KafkaTopic(topic), kafka.opening()) as reader:
            pulling = asyncio.create_task(reader.bodies(2))
            assert await reader.log.locate(datetime.now(timezone.utc) + timedelta(hours=1)) == {f"{topic}-0": 0}
            await writer.commit_transaction()
            assert await pulling == [b"slow", b"quick"]


async def test_key_filter(kafka: SharedKafka) -> None:
    topic = await kafka.topic()
    wanted, all_of_it = KafkaTopic(topic, key="g\u00fcn"), KafkaTopic(topic)
    assert wanted.key("") == all_of_it.key("")
    async with producer(kafka.direct) as client, reading(wanted, kafka.opening()) as reader:
        for key in (None, b"", b"x", "g\u00fcn".encode(), "g\u00fcn".encode("latin-1")):
            await client.send_and_wait(topic, b"", key=key)
        messages = await reader.take(5)
    assert [wanted.routes(m) for m in messages] == [False, False, False, True, False]
    assert all(all_of_it.routes(m) for m in messages)


async def test_several_topics(kafka: SharedKafka) -> None:
    one, two = await kafka.topic(), await kafka.topic(2)
    source = KafkaTopic([one, two])
    assert source.key("") == KafkaTopic((two, one)).key("")
    async with producer(kafka.direct) as client, reading(source, kafka.opening()) as reader:
        await client.send_and_wait(one, b"1")
        await client.send_and_wait(two, b"2", partition=1)
        messages = sorted(await reader.take(2), key=lambda m: m.body or b"")
        assert reader.log.position() == {f"{one}-0": 1, f"{two}-0": 0, f"{two}-1": 1}
    assert [(m.stream, m.position) for m in messages] == [(one, f"{one}-0@0"), (two, f"{two}-1@0")]
    assert [re.sub("/[^:]*", "", m.id) for m in messages] == [f"{one}:0:0", f"{two}:1:0"]


async def test_twenty_groups_share_one_connection(kafka: SharedKafka) -> None:
    """400 events of 20 groups, and one socket once all have caught up."""
    topic = await kafka.topic(3)
    hub = Hub(kafka.opening().connection)
    since = datetime.now(timezone.utc)
    async with producer(kafka.direct) as client:
        await client.send_and_wait(topic, b'{"event": "early"}')

        async def group(number: int) -> None:
            interests = [
                Interest(f"event-{n}", KafkaTopic(topic), pattern={"event": [str(n), "early"]}, count=2, since=since)
                for n in range(20)
            ]
            async with hub.subscribe(f"group-{number}", interests) as subscription:
                await subscription.live()
                ready.append(number)
                if len(ready) == 20:
                    # Those that read the past are closing.
                    await eventually(lambda: kafka.proxy.open == 1)
                    for n in range(20):
                        await client.send_and_wait(topic, b'{"event": "%d"}' % n)
                events: list[str] = []
                while len(events) < 40:
                    for delivery in await subscription.receive():
                        events += delivery.events
                        delivery.accept()
                assert sorted(events) == sorted([f"event-{n}" for n in range(20)] * 2)

        ready: list[int] = []
        accepted = kafka.proxy.accepted
        with anyio.fail_after(60):
            async with anyio.create_task_group() as groups:
                for number in range(20):
                    groups.start_soon(group, number)
    assert kafka.proxy.accepted - accepted <= 8, "more than the live stream and a few rounds through the past"


async def test_nothing_is_left_at_the_broker(kafka: SharedKafka) -> None:
    """There is no consumer group, while a group reads or afterwards: nothing is committed, and nobody is disturbed."""
    topic = await kafka.topic()
    hub = Hub(kafka.opening(group_id="somebody").connection)
    async with producer(kafka.direct) as sender, admin(kafka.direct) as administrator:
        before = await administrator.list_consumer_groups()
        interest = Interest("event", KafkaTopic(topic), count=2, since=datetime.now(timezone.utc))
        async with hub.subscribe("group", [interest]) as subscription:
            await subscription.live()
            for body in (b"1", b"2"):
                await sender.send_and_wait(topic, body)
            with anyio.fail_after(60):
                taken = [*await subscription.receive()]
                while len(taken) < 2:
                    taken += await subscription.receive()
            for delivery in taken:
                delivery.accept()
            assert await administrator.list_consumer_groups() == before
        assert await administrator.list_consumer_groups() == before
