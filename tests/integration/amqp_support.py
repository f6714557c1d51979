"""What the tests of AMQP share: one RabbitMQ for the whole run, connections to it, queues, and a publisher."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import quote

import aio_pika
import anyio
import pytest

from event_triggers.sources.base import BrokerConnection
from servers.process import ServerFailed
from servers.rabbitmq import RabbitMq
from tests.integration.broker_support import PATIENCE
from tests.support import missing

__all__ = ["amqp_connection", "channel", "declare", "kept", "send", "shared_rabbitmq", "until_kept"]

_SHARED = pytest.StashKey[RabbitMq]()


def shared_rabbitmq(config: pytest.Config) -> RabbitMq:
    """The broker of this test run: it takes seconds to start. It listens with TLS too, and knows ``me``."""
    if _SHARED not in config.stash:
        try:
            broker = RabbitMq(tls=True, users={"me": "s3cr3t-right"}, vhosts=("ours/%",))
        except ServerFailed as error:
            missing(str(error))
        config.stash[_SHARED] = broker
        config.add_cleanup(broker.close)
        broker.start()
    return config.stash[_SHARED]


def amqp_connection(port: int, conn_id: str = "amqp_default", **fields: Any) -> BrokerConnection:
    """An Airflow connection to the loopback interface: ``login``, ``password``, ``host``, ``schema``; and extra."""
    given: dict[str, Any] = {"host": "127.0.0.1", "conn_type": "amqp"}
    for name in ("login", "password", "host", "schema", "conn_type"):
        if name in fields:
            given[name] = fields.pop(name)
    return BrokerConnection(conn_id, port=port, extra=fields, **given)


@asynccontextmanager
async def channel(broker: RabbitMq, vhost: str = "", **options: Any) -> AsyncIterator[Any]:
    """Another client's channel."""
    async with (
        await aio_pika.connect(broker.url + quote(vhost, safe="")) as connection,
        connection.channel(**options) as one,
    ):
        yield one


async def declare(broker: RabbitMq, name: str, vhost: str = "", **arguments: Any) -> None:
    """A durable queue that is deleted when nobody uses it for long; arguments as RabbitMQ calls them, with _ for -."""
    async with channel(broker, vhost) as one:
        given = {key.replace("_", "-"): value for key, value in {"x_expires": 600_000, **arguments}.items()}
        await one.declare_queue(name, durable=True, arguments=given)


async def send(broker: RabbitMq, queue: str, *bodies: bytes, exchange: str = "", **properties: Any) -> None:
    """Publish in this order; return when the broker has them in a queue."""
    async with channel(broker, on_return_raises=True) as one:
        target = await one.get_exchange(exchange) if exchange else one.default_exchange
        for body in bodies:
            await target.publish(aio_pika.Message(body, delivery_mode=2, **properties), routing_key=queue)


async def kept(broker: RabbitMq, queue: str) -> int:
    """How many messages the queue has that nobody holds, as another client sees them."""
    async with channel(broker) as one:
        state = await one.declare_queue(queue, passive=True)
        return int(state.declaration_result.message_count or 0)


async def until_kept(broker: RabbitMq, queue: str, count: int) -> None:
    """Return when the queue has this many messages that nobody holds."""
    with anyio.fail_after(PATIENCE):
        while await kept(broker, queue) != count:  # noqa: ASYNC110 - nobody tells when it does
            await anyio.sleep(0.05)
