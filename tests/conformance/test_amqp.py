"""The conformance suite on RabbitMQ: a classic and a quorum queue."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import ClassVar

import anyio.to_thread
import pytest

from event_triggers.sources.amqp import AmqpQueue
from event_triggers.sources.base import Opening, Position
from event_triggers.testing.conformance import BrokerHarness, QueueConformance
from servers.ports import free_port
from servers.proxy import TcpProxy
from servers.rabbitmq import RabbitMq
from tests.integration.amqp_support import amqp_connection, declare, kept, send, shared_rabbitmq
from tests.integration.broker_support import opening_of, unique


@pytest.fixture(scope="module")
def broker(request: pytest.FixtureRequest) -> RabbitMq:
    return shared_rabbitmq(request.config)


class AmqpHarness(BrokerHarness):
    # Longer than two heartbeats, after which the broker drops a silent client.
    idle: ClassVar[float] = 2.5
    # Quorum queues requeue to their end.
    ordered: ClassVar[bool] = False

    def __init__(self, broker: RabbitMq, proxy: TcpProxy, queue_type: str) -> None:
        self._broker = broker
        self._proxy = proxy
        self._queue = unique(queue_type)

    def source(self) -> AmqpQueue:
        return AmqpQueue(self._queue, conn_id="mine")

    def opening(self, *, group: str = "conformance", start: Position | None = None) -> Opening:
        return opening_of(amqp_connection(self._proxy.port, "mine", heartbeat=1), group=group, start=start)

    async def publish(self, *bodies: bytes) -> None:
        await send(self._broker, self._queue, *bodies)

    async def undelivered(self) -> int:
        return await kept(self._broker, self._queue)

    async def cut(self) -> None:
        await anyio.to_thread.run_sync(self._proxy.cut)

    def broken(self) -> tuple[AmqpQueue, Opening]:
        return self.source(), opening_of(amqp_connection(free_port(), "mine"))


class TestAmqpQueue(QueueConformance):
    @pytest.fixture(params=["classic", "quorum"])
    async def harness(self, request: pytest.FixtureRequest, broker: RabbitMq) -> AsyncIterator[AmqpHarness]:
        with TcpProxy(broker.port) as proxy:
            harness = AmqpHarness(broker, proxy, request.param)
            await declare(broker, harness.source().queue, x_queue_type=request.param)
            yield harness
