"""What the tests of NATS share: a server, connections to it, streams, and a publisher."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import nats

from event_triggers.sources.base import BrokerConnection
from servers.nats import Nats
from servers.process import ServerFailed
from tests.support import missing

__all__ = ["create_stream", "jetstream", "nats_connection", "nats_server", "send"]


@contextmanager
def nats_server(**options: Any) -> Iterator[Nats]:
    """A running server, or a skip."""
    try:
        server = Nats(**options)
    except ServerFailed as error:
        missing(str(error))
    with server:
        yield server


def nats_connection(port: int, conn_id: str = "nats_default", **fields: Any) -> BrokerConnection:
    """An Airflow connection to the loopback interface: ``login``, ``password``, ``host``; and extra."""
    given: dict[str, Any] = {"host": "127.0.0.1"}
    given.update({name: fields.pop(name) for name in ("login", "password", "host") if name in fields})
    return BrokerConnection(conn_id, "nats", port=port, extra=fields, **given)


@asynccontextmanager
async def jetstream(port: int, **options: Any) -> AsyncIterator[Any]:
    """Another client's JetStream."""
    async with await nats.connect(f"nats://127.0.0.1:{port}", **options) as client:
        yield client.jetstream()


async def create_stream(port: int, name: str, *subjects: str, **config: Any) -> None:
    async with jetstream(port) as stream:
        await stream.add_stream(name=name, subjects=list(subjects), **config)


async def send(port: int, subject: str, *bodies: bytes, **options: Any) -> list[int]:
    """Publish in this order; the sequences under which they are kept."""
    async with jetstream(port, **options) as stream:
        return [(await stream.publish(subject, body)).seq for body in bodies]
