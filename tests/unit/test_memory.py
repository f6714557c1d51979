"""The sources in memory beyond the conformance suite: what they add, and what is published to them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone

import pytest

from event_triggers.errors import ConfigurationError, InvalidEventError
from event_triggers.message import Message
from event_triggers.sources.base import LogStream, Opening, Outcome, Source, load_source
from event_triggers.testing import ManualClock, MemoryBroker, MemoryLog, MemoryQueue
from tests.unit.streams import bodies, opened, pull, settle

LOG, QUEUE = MemoryLog("orders"), MemoryQueue("orders")


@pytest.fixture(autouse=True)
def broker() -> Iterator[MemoryBroker]:
    broker = MemoryBroker()
    yield broker
    assert broker.statistics().open_streams == 0


# ------------------------------------------------------------------ declarations


@pytest.mark.parametrize(
    "source",
    [LOG, MemoryLog("a", keys=("x",), broker="b"), QUEUE, MemoryQueue("a", per_group=True, shared="s", broker="b")],
)
def test_declarations_come_back(source: Source) -> None:
    assert load_source(source.serialize()) == source
    source.validate()


@pytest.mark.parametrize("source", [MemoryLog(""), MemoryQueue("")])
def test_a_channel_has_a_name(source: Source) -> None:
    with pytest.raises(InvalidEventError, match="needs the name of a channel"):
        source.validate()


def test_who_shares_a_stream() -> None:
    assert LOG.key("a") == MemoryLog("orders", keys=("x",)).key("b")
    assert LOG.key("a") != MemoryLog("stock").key("a")
    assert LOG.key("a") != MemoryLog("orders", broker="other").key("a")
    assert LOG.key("a") != QUEUE.key("a")
    assert QUEUE.key("a") == QUEUE.key("b")
    alone = MemoryQueue("orders", per_group=True)
    assert alone.key("a") != alone.key("b")
    one, two = (MemoryQueue(name, shared="client") for name in ("orders", "stock"))
    assert one.key("a") == two.key("b")
    assert one.key("a") != QUEUE.key("a")


async def test_unknown_broker() -> None:
    with pytest.raises(ConfigurationError, match="no memory broker 'elsewhere' in this process"):
        async with opened(MemoryLog("orders", broker="elsewhere")):
            pass


# ------------------------------------------------------------------ publishing


async def test_what_is_published_arrives(broker: MemoryBroker) -> None:
    stamp = datetime(2030, 1, 2, tzinfo=timezone.utc)
    headers: list[tuple[str, str | bytes]] = [("trace", "1"), ("trace", b"\xff")]
    identity = broker.publish("orders", {"n": 1}, key="k", headers=headers, timestamp=stamp)
    broker.publish("orders", None, headers={"a": "b"})
    broker.publish("orders", b"\xff", key=b"\xfe")
    async with opened(LOG, start={}) as log, opened(QUEUE) as queue:
        for stream, kind in ((log, "memory-log"), (queue, "memory-queue")):
            document, tombstone, binary = await pull(stream)
            assert document.json == {"n": 1}
            assert (document.source, document.stream, document.id) == (kind, "orders", identity)
            assert (document.key, document.timestamp) == (b"k", stamp)
            assert document.headers == (("trace", b"1"), ("trace", b"\xff"))
            assert (tombstone.body, tombstone.key, tombstone.headers) == (None, None, (("a", b"b"),))
            assert (binary.body, binary.key) == (b"\xff", b"\xfe")


async def test_stamps_by_the_given_clock() -> None:
    clock = ManualClock()
    broker = MemoryBroker(clock=clock)
    broker.publish("orders", 1)
    clock.advance(60)
    broker.publish("orders", 2)
    async with opened(LOG, start={}) as stream:
        first, second = await pull(stream)
        assert second.timestamp == clock.now()
        assert first.timestamp == clock.now() - timedelta(minutes=1)


def test_a_timestamp_has_a_zone(broker: MemoryBroker) -> None:
    with pytest.raises(ValueError, match="has no zone"):
        broker.publish("orders", 1, timestamp=datetime(2030, 1, 1))
    assert broker.statistics().published == 0


async def test_keys_choose_the_partition(broker: MemoryBroker) -> None:
    broker.partitions("orders", 4)
    for number in range(20):
        broker.publish("orders", number, key=f"key-{number % 5}")
    broker.publish("orders", "chosen", partition=3)
    async with opened(LOG, start={}) as stream:
        messages = await pull(stream)
        partitions: dict[bytes | None, set[str]] = {}
        for message in messages[:-1]:
            partitions.setdefault(message.key, set()).add(message.partition)
        assert all(len(places) == 1 for places in partitions.values())
        assert messages[-1].partition == "3"
        assert [m.json for m in messages] == [*range(20), "chosen"], "over all partitions, in the order of publishing"


async def test_waiting_stream_is_woken_from_another_thread(broker: MemoryBroker) -> None:
    async with opened(LOG) as stream:
        pulling = asyncio.create_task(bodies(stream))
        await broker.until(lambda now: now.waiting == 1)
        # A bare thread: nothing but the message tells the event loop.
        thread = threading.Thread(target=broker.publish, args=("orders", b"from afar"))
        thread.start()
        assert await pulling == [b"from afar"]
        thread.join()


def test_serves_one_event_loop_after_the_other(broker: MemoryBroker) -> None:
    async def read_one() -> list[bytes | None]:
        async with opened(QUEUE) as stream:
            pulling = asyncio.create_task(pull(stream))
            await broker.until(lambda now: now.waiting == 1)
            broker.publish("orders", b"x")
            messages = await pulling
            await settle(stream, messages)
            return [message.body for message in messages]

    async def leave_open() -> None:
        # As an event loop that was torn down in the middle: nothing closes the stream.
        stream = await QUEUE.open(Opening()).__aenter__()
        await stream.watch(QUEUE)

    assert asyncio.run(read_one()) == [b"x"]
    asyncio.run(leave_open())
    broker.publish("orders", b"nobody hears")
    broker.reset()
    assert asyncio.run(read_one()) == [b"x"]


async def test_many_threads_publish_at_once(broker: MemoryBroker) -> None:
    def publish(name: int) -> None:
        for number in range(200):
            broker.publish("orders", [name, number])

    async with opened(LOG) as stream:
        threads = [threading.Thread(target=publish, args=(name,)) for name in range(4)]
        for thread in threads:
            thread.start()
        messages: list[Message] = []
        while len(messages) < 800:
            messages += await pull(stream)
        for thread in threads:
            thread.join()
    assert [m.offset for m in messages] == list(range(800))
    for name in range(4):
        assert [m.json[1] for m in messages if m.json[0] == name] == list(range(200))


# ------------------------------------------------------------------ logs


async def test_batches_are_no_larger_than_asked(broker: MemoryBroker) -> None:
    broker.batch_size = 3
    for number in range(7):
        broker.publish("orders", number)
    async with opened(LOG, start={}) as log, opened(QUEUE) as queue:
        assert [len(await pull(log)) for _ in range(3)] == [3, 3, 1]
        assert [len(await pull(queue)) for _ in range(3)] == [3, 3, 1]


def test_keys_filter_a_shared_stream() -> None:
    source = MemoryLog("orders", keys=("a", "b"))
    routed = [
        source.routes(Message("memory-log", "orders", "0", "0", b"", key=key))
        for key in (b"a", b"b", b"c", None, b"\xff")
    ]
    assert routed == [True, True, False, False, False]
    assert LOG.routes(Message("memory-log", "orders", "0", "0", b""))


async def test_new_partition_is_read_from_its_beginning(broker: MemoryBroker) -> None:
    async with opened(LOG) as stream:
        broker.partitions("orders", 2)
        broker.publish("orders", b"there", partition=1)
        assert await bodies(stream) == [b"there"]


async def test_skipped_offsets(broker: MemoryBroker) -> None:
    """The end of a log may be records that nobody is shown; the position passes them all the same."""
    broker.batch_size = 2
    broker.skip("orders", 5)
    broker.publish("orders", b"one")
    broker.skip("orders", 5)
    async with opened(LOG, start={}) as stream:
        assert isinstance(stream, LogStream)
        (message,) = await pull(stream)
        assert (message.body, message.offset) == (b"one", 5)
        assert stream.position() == {"0": 11}
        assert message.timestamp is not None
        assert await stream.locate(message.timestamp) == {"0": 5}
        assert await stream.locate(message.timestamp + timedelta(seconds=1)) == {"0": 11}
        pulling = asyncio.create_task(bodies(stream))
        await broker.until(lambda now: now.waiting == 1)
        broker.skip("orders", 3)
        await broker.until(lambda now: now.waiting == 1)
        assert stream.position() == {"0": 14}
        broker.publish("orders", b"two")
        assert await pulling == [b"two"]
    async with opened(QUEUE) as stream:
        assert await bodies(stream) == [b"one", b"two"], "a queue knows no offsets"


async def test_locate_by_the_publishers_stamps(broker: MemoryBroker) -> None:
    """Stamps need not be in order: what counts is the first message that is young enough."""
    start = datetime(2030, 1, 1, tzinfo=timezone.utc)
    for minute in (0, 10, 5, 20):
        broker.publish("orders", minute, timestamp=start + timedelta(minutes=minute))
    async with opened(LOG) as stream:
        assert isinstance(stream, LogStream)
        found = [await stream.locate(start + timedelta(minutes=minute)) for minute in (-1, 0, 6, 11, 21)]
        assert found == [{"0": 0}, {"0": 0}, {"0": 1}, {"0": 3}, {"0": 4}]


# ------------------------------------------------------------------ queues


async def test_two_streams_share_out_a_queue(broker: MemoryBroker) -> None:
    broker.batch_size = 2
    for number in range(4):
        broker.publish("orders", number)
    async with opened(QUEUE) as one:
        async with opened(QUEUE) as two:
            mine, others = await pull(one), await pull(two)
            assert [[m.json for m in batch] for batch in (mine, others)] == [[0, 1], [2, 3]]
            await settle(two, mine)
            assert broker.undelivered("orders") == 4, "only who holds a message settles it"
            await settle(two, others[:1])
        again = await pull(one)
        assert [(m.json, m.attempt) for m in again] == [(3, 2)], "what a closed stream had goes to another"
        await settle(one, [*mine, *again])
    assert broker.undelivered("orders") == 0


async def test_released_message_waits_until_it_is_asked_for(broker: MemoryBroker) -> None:
    broker.publish("orders", 1)
    async with opened(QUEUE) as stream:
        (first,) = await pull(stream)
        await settle(stream, [first], Outcome.RELEASED)
        broker.publish("orders", 2)
        assert [m.json for m in await pull(stream)] == [2], "it does not come again by itself"
        broker.redeliver("orders")
        (again,) = await pull(stream)
        assert (again.json, again.id, again.attempt) == (1, first.id, 2)
        assert broker.undelivered("orders") == 2


async def test_abandoned_message_comes_again_at_once(broker: MemoryBroker) -> None:
    broker.publish("orders", 1)
    async with opened(QUEUE) as stream:
        messages = await pull(stream)
        pulling = asyncio.create_task(pull(stream))
        await broker.until(lambda now: now.waiting == 1)
        await settle(stream, messages, Outcome.ABANDONED)
        assert [m.attempt for m in await pulling] == [2]


async def test_visibility_runs_out(broker: MemoryBroker) -> None:
    broker.publish("orders", 1)
    async with opened(QUEUE) as stream:
        (first,) = await pull(stream)
        broker.redeliver("orders", in_flight=True)
        (second,) = await pull(stream)
        assert first.id == second.id
        await settle(stream, [first, second])
    assert broker.undelivered("orders") == 0
    assert broker.statistics().accepted == 1


async def test_session_per_group(broker: MemoryBroker) -> None:
    source = MemoryQueue("orders", per_group=True)
    broker.publish("orders", b"before any session")
    for group in ("a", "b"):
        async with opened(source, group=group):
            pass
    broker.publish("orders", b"while away")
    assert broker.sessions("orders") == {"a", "b"}
    for group in ("a", "b"):
        async with opened(source, group=group) as stream:
            messages = await pull(stream)
            assert [m.body for m in messages] == [b"while away"]
            await settle(stream, messages)
        assert broker.undelivered("orders", group=group) == 0
    await source.forget(Opening(group="a"))
    await source.forget(Opening(group="a"))
    assert broker.sessions("orders") == {"b"}
    await QUEUE.forget(Opening(group="b"))
    assert broker.sessions("orders") == {"b"}, "a queue that is shared has nothing to forget"


async def test_queues_on_one_connection(broker: MemoryBroker) -> None:
    orders, stock = (MemoryQueue(name, shared="client") for name in ("orders", "stock"))
    async with opened(orders) as stream:
        broker.publish("stock", b"s1")
        broker.publish("orders", b"o1")
        messages = await pull(stream)
        assert [m.stream for m in messages] == ["orders"], "nobody watches the stock yet"
        await stream.watch(stock)
        more = await pull(stream)
        assert [m.stream for m in more] == ["stock"]
        assert stock.routes(more[0])
        assert not orders.routes(more[0])
        await stream.unwatch(stock)
        await settle(stream, [*messages, *more])
        broker.publish("stock", b"s2")
        broker.publish("orders", b"o2")
        assert await bodies(stream) == [b"o2"]
    assert (broker.undelivered("stock"), broker.undelivered("orders")) == (1, 1)
