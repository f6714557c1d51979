"""The conformance suite on a trigger of Airflow that takes its messages from a real Redis.

What a trigger hands out is gone from wherever it took it, so the count of what is undelivered is kept here: what Redis
has, and what this process keeps because nobody has recorded it.
"""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Iterator
from typing import ClassVar

import anyio.to_thread
import pytest
import redis.asyncio

from event_triggers.sources._fired import fired_by
from event_triggers.sources.base import Opening, Position
from event_triggers.sources.from_trigger import FromTrigger
from event_triggers.testing.conformance import BrokerHarness, QueueConformance
from servers.ports import free_port
from servers.proxy import TcpProxy
from servers.redis import Redis, find_redis
from tests.integration.redis_trigger import RedisListTrigger
from tests.support import missing


@pytest.fixture(scope="module")
def server() -> Iterator[Redis]:
    if find_redis() is None:
        missing("Redis is not installed (apt-get install redis-server)")
    with Redis() as server:
        yield server


class TriggerHarness(BrokerHarness):
    idle: ClassVar[float] = 0.2
    # A trigger cannot be told of it.
    released_comes_again: ClassVar[bool] = False

    def __init__(self, proxy: TcpProxy, client: redis.asyncio.Redis) -> None:
        self._proxy = proxy
        self._client = client
        self._key = f"conformance-{uuid.uuid4().hex}"

    def source(self) -> FromTrigger:
        return FromTrigger(RedisListTrigger(self._proxy.port, self._key), body="data")

    def opening(self, *, group: str = "conformance", start: Position | None = None) -> Opening:
        return Opening(group=group, start=start)

    async def publish(self, *bodies: bytes) -> None:
        await self._client.rpush(self._key, *bodies)

    async def undelivered(self) -> int:
        waiting: int = await self._client.llen(self._key)
        return waiting + fired_by(self.source().identity).waiting

    async def cut(self) -> None:
        await anyio.to_thread.run_sync(self._proxy.cut)

    def broken(self) -> tuple[FromTrigger, Opening]:
        return FromTrigger(RedisListTrigger(free_port(), self._key)), self.opening()


class TestFromTrigger(QueueConformance):
    @pytest.fixture
    async def harness(self, server: Redis) -> AsyncIterator[TriggerHarness]:
        with TcpProxy(server.port) as proxy:
            async with redis.asyncio.Redis(host="127.0.0.1", port=server.port) as client:
                yield TriggerHarness(proxy, client)
