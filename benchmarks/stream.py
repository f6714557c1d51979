"""A topic of messages that nobody wants, and a hub with many events that wait on it."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace

import msgspec
from aiokafka import AIOKafkaProducer  # type: ignore[import-untyped]
from aiokafka.admin import AIOKafkaAdminClient, NewTopic  # type: ignore[import-untyped]

from benchmarks.waiting import EVENTS, kafka_connections
from event_triggers.entry import Interest
from event_triggers.garbage import calm_collector
from event_triggers.hub import Hub
from event_triggers.sources.base import Opening, Stream
from event_triggers.sources.kafka import KafkaTopic
from event_triggers.subscription import Subscription

__all__ = ["LAST", "body", "fill", "first_seen", "topic", "waiting_hub"]

LAST = {"table": "the last", "day": "the last"}
"""The one message that somebody wants."""


def body(number: int) -> bytes:
    """A message that no event of :func:`waiting_hub` wants."""
    return msgspec.json.encode(
        {
            "id": f"0f8fad5b-d9cb-469f-a165-{number:012}",
            "table": f"table_{number % 20_000}",
            "day": "another day",
            "status": "COMPLETE",
            "rows": number,
            "source": {"system": "erp", "region": "eu-west-1"},
            "tags": ["daily", "final"],
            "started": "2026-11-22T10:15:30Z",
            "finished": "2026-11-22T10:25:30Z",
        }
    )


@asynccontextmanager
async def topic(bootstrap: str, partitions: int = 1) -> AsyncIterator[str]:
    """A topic of its own."""
    name = f"bench-{uuid.uuid4().hex[:12]}"
    client = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await client.start()
    try:
        await client.create_topics([NewTopic(name, partitions, 1)])
        yield name
    finally:
        with contextlib.suppress(Exception):
            await client.delete_topics([name])
        await client.close()


async def fill(bootstrap: str, name: str, count: int) -> None:
    """Send so many messages that nobody wants, and one that everybody waits for."""
    producer = AIOKafkaProducer(bootstrap_servers=bootstrap, linger_ms=20, max_batch_size=256 * 1024)
    await producer.start()
    try:
        for number in range(count):
            sent = await producer.send(name, body(number))
        await producer.flush()
        await sent
        await producer.send_and_wait(name, msgspec.json.encode(LAST))
    finally:
        await producer.stop()


class _FromBeginning(KafkaTopic):
    """A topic whose live stream begins with the oldest message, so that what was sent before comes through it."""

    def open(self, opening: Opening) -> AbstractAsyncContextManager[Stream]:
        start = opening.start or {f"{topic}-0": 0 for topic in self.topics}
        return super().open(replace(opening, start=start))


@asynccontextmanager
async def waiting_hub(bootstrap: str, name: str, waiting: int) -> AsyncIterator[tuple[Hub, Subscription]]:
    """A hub in which so many events wait on a topic, in groups; and the subscription to the last message."""
    calm_collector()  # as a triggerer does
    hub = Hub(kafka_connections(bootstrap))
    source = _FromBeginning(name)
    interests = [
        Interest(f"event_{number}", source, {"table": [f"table_{number}"], "day": ["this day"]})
        for number in range(waiting)
    ]
    async with contextlib.AsyncExitStack() as stack:
        for place in range(0, waiting, EVENTS):
            await stack.enter_async_context(hub.subscribe(f"group {place}", interests[place : place + EVENTS]))
        last = Interest("last", source, {key: [value] for key, value in LAST.items()})
        yield hub, await stack.enter_async_context(hub.subscribe("last", [last]))


async def first_seen(hub: Hub) -> int:
    """How many messages had come when the first ones had."""
    while True:
        seen = sum(channel.messages for channel in hub.statistics().channels)
        if seen:
            return seen
        await asyncio.sleep(0.002)
