"""The conformance suite on SQS: moto and ElasticMQ, standard and FIFO queues."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import anyio.to_thread
import pytest

from event_triggers.sources.base import BrokerConnection, Opening, Position
from event_triggers.sources.sqs import SqsQueue
from event_triggers.testing.conformance import BrokerHarness, QueueConformance
from servers.ports import free_port
from servers.process import ServerFailed
from servers.proxy import TcpProxy
from servers.sqs import ElasticMqServer, MotoServer, SqsServer
from tests.support import missing

with contextlib.suppress(ImportError):
    # Takes seconds on a busy machine, the first time: better here than within a test's patience.
    import airflow.providers.amazon.aws.hooks.sqs  # noqa: F401


@pytest.fixture(scope="module", params=[MotoServer, ElasticMqServer], ids=lambda server: server.name)
def server(request: pytest.FixtureRequest) -> Iterator[SqsServer]:
    server: SqsServer = request.param()
    try:
        server.start()
    except ServerFailed as error:
        server.close()
        missing(str(error))
    yield server
    server.close()


class SqsHarness(BrokerHarness):
    # SQS itself refuses empty bodies and characters that XML does not know.
    bodies: ClassVar[Sequence[bytes]] = (b"plain", b'{"a": [1, null]}', "\u20ac \U0001f600\n\ttab".encode())
    odd: ClassVar[bytes] = b"{odd"
    rejected_comes_again: ClassVar[bool] = True
    # Longer than the visibility timeout, so what nobody settles meanwhile must be extended.
    idle: ClassVar[float] = 4.0
    # A standard queue promises no order, and a FIFO queue only within a message group.
    ordered: ClassVar[bool] = False

    def __init__(self, server: SqsServer, proxy: TcpProxy, *, fifo: bool) -> None:
        self._server = server
        self._proxy = proxy
        self._fifo = fifo
        self._name = f"conformance-{uuid.uuid4().hex}" + (".fifo" if fifo else "")
        self._url = server.create_queue(self._name)
        self._client = server.client()

    def source(self) -> SqsQueue:
        # Short times: a long poll that a cut ends goes on at the server and may take messages along for this long.
        return SqsQueue(self._name, conn_id="somewhere", visibility_timeout=3, wait_time_seconds=1)

    def opening(self, *, group: str = "conformance", start: Position | None = None) -> Opening:
        return self._opening(self._proxy.port)

    def _opening(self, port: int) -> Opening:
        async def connection(conn_id: str) -> BrokerConnection:
            extra = {"region_name": "us-east-1", "endpoint_url": f"http://127.0.0.1:{port}"}
            return BrokerConnection(conn_id, "aws", login="access", password="secret", extra=extra)

        return Opening(connection=connection)

    async def publish(self, *bodies: bytes) -> None:
        await anyio.to_thread.run_sync(self._publish, bodies)

    def _publish(self, bodies: Sequence[bytes]) -> None:
        for body in bodies:
            fifo: dict[str, Any] = {}
            if self._fifo:
                # A FIFO queue withholds what follows an unsettled message of the same group, so each is its own.
                fifo = {"MessageGroupId": uuid.uuid4().hex, "MessageDeduplicationId": uuid.uuid4().hex}
            self._client.send_message(QueueUrl=self._url, MessageBody=body.decode(), **fifo)

    async def undelivered(self) -> int:
        return await anyio.to_thread.run_sync(self._server.kept, self._url)

    async def cut(self) -> None:
        await anyio.to_thread.run_sync(self._proxy.cut)

    def broken(self) -> tuple[SqsQueue, Opening]:
        return self.source(), self._opening(free_port())


class TestStandardQueue(QueueConformance):
    @pytest.fixture
    def harness(self, server: SqsServer) -> Iterator[SqsHarness]:
        with TcpProxy(server.port) as proxy:
            yield SqsHarness(server, proxy, fifo=False)


class TestFifoQueue(QueueConformance):
    @pytest.fixture
    def harness(self, server: SqsServer) -> Iterator[SqsHarness]:
        with TcpProxy(server.port) as proxy:
            yield SqsHarness(server, proxy, fifo=True)
