"""Messages of every bad sort through RabbitMQ, Redis and NATS: none stops or fails anything."""

from __future__ import annotations

from collections.abc import Mapping

import anyio
import pytest

from event_triggers.sources.amqp import AmqpQueue
from event_triggers.sources.nats import NatsSubject
from event_triggers.sources.redis import RedisStream
from tests.integration import amqp_support, nats_support, redis_support
from tests.integration.broker_support import opening_of, taking, unique
from tests.integration.test_bad_input import LONG_AGO, check


async def test_amqp(request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture) -> None:
    broker = amqp_support.shared_rabbitmq(request.config)
    source = AmqpQueue(unique("queue"), unmatched="delete")
    await amqp_support.declare(broker, source.queue)

    async def send(bodies: Mapping[str, bytes]) -> None:
        await amqp_support.send(broker, source.queue, *bodies.values(), headers={"h\u202e": bytearray(b"\xff")})

    await check(caplog, opening_of(amqp_support.amqp_connection(broker.port)), source, send)


async def test_redis(caplog: pytest.LogCaptureFixture) -> None:
    source = RedisStream(unique("stream"), field="data")
    with redis_support.redis_server() as server:

        async def send(bodies: Mapping[str, bytes]) -> None:
            await redis_support.send(server.port, source.stream, *bodies.values())

        opening = opening_of(redis_support.redis_connection(server.port))
        await check(caplog, opening, source, send, since=LONG_AGO)


async def test_nats(caplog: pytest.LogCaptureFixture) -> None:
    with nats_support.nats_server() as server:
        await nats_support.create_stream(server.port, "S", "s.*")
        source = NatsSubject("s.*", stream="S")

        async def send(bodies: Mapping[str, bytes]) -> None:
            await nats_support.send(server.port, "s.\u202e", *bodies.values())

        await check(caplog, opening_of(nats_support.nats_connection(server.port)), source, send, since=LONG_AGO)


async def test_nats_headers_that_are_no_text() -> None:
    """Written by hand: clients refuse to write what the server passes on."""
    with nats_support.nats_server() as server:
        await nats_support.create_stream(server.port, "S", "s")
        source = NatsSubject("s", stream="S")
        async with taking(opening_of(nats_support.nats_connection(server.port)), source) as taker:
            async with await anyio.connect_tcp("127.0.0.1", server.port) as raw:
                header = b"NATS/1.0\r\nodd\xff: \xff\x00v\r\n\r\n"
                size = len(header)
                await raw.send(b'CONNECT {"headers": true}\r\nHPUB s %d %d\r\n%b\r\nPING\r\n' % (size, size, header))
                with anyio.fail_after(20):
                    while b"PONG" not in await raw.receive():
                        pass
            await nats_support.send(server.port, "s", b"good")
            messages = await taker.take(2)
            assert [message.body for message in messages] == [b"", b"good"]
