"""The broker in memory: how tests disturb it, and what they can see of it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import datetime, timezone

import anyio
import pytest

from event_triggers.errors import ConfigurationError, StreamError
from event_triggers.sources.base import Outcome, Source
from event_triggers.testing import ManualClock, MemoryBroker, MemoryLog, MemoryQueue
from tests.unit.streams import bodies, opened, pull, settle

LOG, QUEUE = MemoryLog("orders"), MemoryQueue("orders")


@pytest.fixture(autouse=True)
def broker() -> Iterator[MemoryBroker]:
    broker = MemoryBroker()
    yield broker
    assert broker.statistics().open_streams == 0


# ------------------------------------------------------------------ disturbances


@pytest.mark.parametrize("source", [LOG, QUEUE])
async def test_cut(broker: MemoryBroker, source: Source) -> None:
    async with opened(source) as stream, opened(MemoryLog("stock")) as other:
        pulling = asyncio.create_task(pull(stream))
        await broker.until(lambda now: now.waiting == 1)
        broker.cut("orders")
        with pytest.raises(StreamError, match="cut the connection of 'orders'"):
            await pulling
        with pytest.raises(StreamError):
            await pull(stream)
        broker.publish("stock", b"still there")
        assert await bodies(other) == [b"still there"]
        broker.cut(error=OSError("pulled the plug"))
        with pytest.raises(OSError, match="pulled the plug"):
            await pull(other)
        with pytest.raises(OSError, match="pulled the plug"):
            await other.locate(datetime.now(timezone.utc))  # type: ignore[attr-defined]
        assert broker.statistics().open_streams == 0


async def test_cut_queue_takes_no_settlement_and_keeps_the_message(broker: MemoryBroker) -> None:
    broker.publish("orders", 1)
    async with opened(QUEUE) as stream:
        messages = await pull(stream)
        broker.cut()
        with pytest.raises(StreamError, match="cannot settle on 'orders'"):
            await settle(stream, messages)
    async with opened(QUEUE) as stream:
        messages = await pull(stream)
    with pytest.raises(StreamError, match="has been closed"):
        await settle(stream, messages)
    assert broker.undelivered("orders") == 1
    assert broker.settled("orders") == []


async def test_refused_openings(broker: MemoryBroker) -> None:
    broker.fail_next_open(StreamError("busy"), name="orders", times=2)
    broker.fail_next_open(ConfigurationError("no"))
    for expected in (StreamError, StreamError, ConfigurationError):
        with pytest.raises(expected):
            async with opened(LOG):
                pass
    async with opened(LOG):
        assert broker.statistics().opened == 1


async def test_refused_settlement(broker: MemoryBroker) -> None:
    broker.publish("orders", 1)
    broker.fail_next_settle(StreamError("not now"), name="stock")
    broker.fail_next_settle(StreamError("not now"), name="orders")
    async with opened(QUEUE) as stream:
        messages = await pull(stream)
        with pytest.raises(StreamError, match="not now"):
            await settle(stream, messages)
        assert broker.undelivered("orders") == 1
        await settle(stream, messages)
    assert broker.undelivered("orders") == 0


async def test_stream_watches_only_its_own_kind() -> None:
    class Other(MemoryQueue):
        pass

    async with opened(QUEUE) as stream:
        await stream.watch(Other("stock"))
        with pytest.raises(TypeError, match="cannot watch a ManualClock"):
            await stream.watch(ManualClock())  # type: ignore[arg-type]


# ------------------------------------------------------------------ what tests can see


async def test_statistics(broker: MemoryBroker) -> None:
    for number in range(6):
        broker.publish("orders", number)
    async with opened(QUEUE) as stream:
        assert broker.statistics().waiting == 0
        messages = await pull(stream)
        for message, outcome in zip(messages, [Outcome.ACCEPTED, *Outcome], strict=False):
            await settle(stream, [message], outcome)
        now = broker.statistics()
        assert (now.open_streams, now.opened, now.published, now.delivered) == (1, 1, 6, 6)
        assert (now.accepted, now.released, now.abandoned, now.rejected) == (2, 1, 1, 1)
        assert [(s.message.json, s.outcome) for s in broker.settled("orders")][:2] == [
            (0, Outcome.ACCEPTED),
            (1, Outcome.ACCEPTED),
        ]
        assert broker.settled("stock") == []
        assert broker.undelivered("orders") == 3
    assert broker.statistics().open_streams == 0
    broker.reset()
    assert set(broker.statistics()) == {0}
    assert broker.undelivered("orders") == 0


async def test_until_waits_for_a_change(broker: MemoryBroker) -> None:
    waiting = asyncio.create_task(broker.until(lambda now: now.published == 2))
    with anyio.fail_after(10):
        broker.publish("orders", 1)
        await anyio.wait_all_tasks_blocked()
        assert not waiting.done()
        broker.publish("orders", 2)
        assert (await waiting).published == 2


async def test_waiting_ends_with_the_pull(broker: MemoryBroker) -> None:
    async with opened(LOG) as stream:
        pulling = asyncio.create_task(pull(stream))
        await broker.until(lambda now: now.waiting == 1)
        pulling.cancel()
        await asyncio.wait({pulling})
        assert pulling.cancelled()
        assert broker.statistics().waiting == 0


def test_a_later_broker_takes_the_name() -> None:
    earlier, later = MemoryBroker("spare"), MemoryBroker("spare")
    earlier.publish("orders", 1)
    assert MemoryBroker.named("spare") is later
    assert later.statistics().published == 0
