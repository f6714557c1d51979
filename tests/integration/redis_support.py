"""What the tests of Redis streams share: a server, connections to it, and another client."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from redis.asyncio import Redis as Client

from event_triggers.sources.base import BrokerConnection
from servers.process import ServerFailed
from servers.redis import Redis
from tests.support import missing

__all__ = ["client", "redis_connection", "redis_server", "send"]


@contextmanager
def redis_server(**options: Any) -> Iterator[Redis]:
    """A running server, or a skip."""
    try:
        server = Redis(**options)
    except ServerFailed as error:
        missing(str(error))
    with server:
        yield server


def redis_connection(port: int, conn_id: str = "redis_default", **fields: Any) -> BrokerConnection:
    """An Airflow connection to the loopback interface: ``login``, ``password``, ``host``; and extra."""
    given: dict[str, Any] = {"host": "127.0.0.1"}
    given.update({name: fields.pop(name) for name in ("login", "password", "host") if name in fields})
    return BrokerConnection(conn_id, "redis", port=port, extra=fields, **given)


@asynccontextmanager
async def client(port: int, **options: Any) -> AsyncIterator[Any]:
    """Another client of the server; text in, bytes out."""
    async with Client(host="127.0.0.1", port=port, **options) as redis:
        yield redis


async def send(port: int, stream: str, *bodies: bytes, field: str = "data") -> list[bytes]:
    """Add an entry for each body, in this order; their ids."""
    async with client(port) as redis:
        return [await redis.xadd(stream, {field: body}) for body in bodies]
