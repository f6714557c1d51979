"""The conformance suite on Redis."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import anyio.to_thread
import pytest

from event_triggers.sources.base import Opening, Position
from event_triggers.sources.redis import RedisStream
from event_triggers.testing.conformance import BrokerHarness, LogConformance
from servers.ports import free_port
from servers.proxy import TcpProxy
from servers.redis import Redis
from tests.integration.broker_support import opening_of, unique
from tests.integration.redis_support import redis_connection, redis_server, send


@pytest.fixture(scope="module")
def server() -> Iterator[Redis]:
    with redis_server() as server:
        yield server


class RedisHarness(BrokerHarness):
    # Longer than one blocking read.
    idle: ClassVar[float] = 3.0

    def __init__(self, server: Redis, proxy: TcpProxy) -> None:
        self._server = server
        self._proxy = proxy
        self._stream = unique("conformance")

    def source(self) -> RedisStream:
        return RedisStream(self._stream, field="data", conn_id="mine")

    def opening(self, *, group: str = "conformance", start: Position | None = None) -> Opening:
        return opening_of(redis_connection(self._proxy.port, "mine"), group=group, start=start)

    async def publish(self, *bodies: bytes) -> None:
        await send(self._server.port, self._stream, *bodies)

    async def cut(self) -> None:
        await anyio.to_thread.run_sync(self._proxy.cut)

    def broken(self) -> tuple[RedisStream, Opening]:
        return self.source(), opening_of(redis_connection(free_port(), "mine"))


class TestRedisStream(LogConformance):
    @pytest.fixture
    def harness(self, server: Redis) -> Iterator[RedisHarness]:
        with TcpProxy(server.port) as proxy:
            yield RedisHarness(server, proxy)
