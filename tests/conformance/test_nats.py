"""The conformance suite on NATS JetStream."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import ClassVar

import anyio.to_thread
import pytest

from event_triggers.sources.base import Opening, Position
from event_triggers.sources.nats import NatsSubject
from event_triggers.testing.conformance import BrokerHarness, LogConformance
from servers.nats import Nats
from servers.ports import free_port
from servers.proxy import TcpProxy
from tests.integration.broker_support import opening_of, unique
from tests.integration.nats_support import create_stream, nats_connection, nats_server, send


@pytest.fixture(scope="module")
def server() -> Iterator[Nats]:
    with nats_server() as server:
        yield server


class NatsHarness(BrokerHarness):
    # Longer than one request waits.
    idle: ClassVar[float] = 3.0

    def __init__(self, server: Nats, proxy: TcpProxy) -> None:
        self._server = server
        self._proxy = proxy
        self.name = unique("conformance")

    def source(self) -> NatsSubject:
        return NatsSubject(f"{self.name}.*", conn_id="mine")

    def opening(self, *, group: str = "conformance", start: Position | None = None) -> Opening:
        return opening_of(nats_connection(self._proxy.port, "mine"), group=group, start=start)

    async def publish(self, *bodies: bytes) -> None:
        # Between messages of another subject, whose sequences are nobody's here.
        await send(self._server.port, f"{self.name}-other", b"other")
        await send(self._server.port, f"{self.name}.one", *bodies)
        await send(self._server.port, f"{self.name}-other", b"other")

    async def cut(self) -> None:
        await anyio.to_thread.run_sync(self._proxy.cut)

    def broken(self) -> tuple[NatsSubject, Opening]:
        return self.source(), opening_of(nats_connection(free_port(), "mine"))


class TestNatsSubject(LogConformance):
    @pytest.fixture
    async def harness(self, server: Nats) -> AsyncIterator[NatsHarness]:
        with TcpProxy(server.port) as proxy:
            harness = NatsHarness(server, proxy)
            await create_stream(server.port, harness.name, f"{harness.name}.*", f"{harness.name}-other")
            yield harness
