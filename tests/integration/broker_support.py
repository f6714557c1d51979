"""What the tests of AMQP, Redis streams and NATS share: openings, and taking messages within bounds."""

from __future__ import annotations

import json
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest

from event_triggers.errors import ConnectionMissingError
from event_triggers.message import Message
from event_triggers.sources.base import BrokerConnection, LogStream, Opening, Outcome, Settlement, Source, Stream

__all__ = ["PATIENCE", "Taker", "in_environment", "opening_of", "taking", "unique"]

PATIENCE = 30.0
"""Seconds that any wait of these tests may take."""


def unique(prefix: str) -> str:
    """A name that no other test uses."""
    return f"{prefix}-{uuid.uuid4().hex[:12]}"


def opening_of(connection: BrokerConnection, **options: Any) -> Opening:
    """An opening that knows this connection, and no other."""

    async def look_up(conn_id: str) -> BrokerConnection:
        if conn_id != connection.conn_id:
            raise ConnectionMissingError(conn_id)
        return connection

    return Opening(connection=look_up, **options)


def in_environment(monkeypatch: pytest.MonkeyPatch, connection: BrokerConnection) -> str:
    """Define this connection as Airflow's hooks find it; its id there."""
    name = unique("connection").replace("-", "_")
    fields: dict[str, Any] = {"conn_type": connection.conn_type, "host": connection.host, "port": connection.port}
    fields |= {"login": connection.login, "password": connection.password, "extra": dict(connection.extra)}
    monkeypatch.setenv(f"AIRFLOW_CONN_{name.upper()}", json.dumps(fields))
    return name


class Taker:
    """Takes messages from an open stream, never waiting without bound."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self._batches = stream.__aiter__()

    @property
    def log(self) -> LogStream:
        """The stream, when it is a log's."""
        assert isinstance(self.stream, LogStream)
        return self.stream

    async def take(self, count: int = 1) -> list[Message]:
        """The next ``count`` messages; more if more come at once."""
        taken: list[Message] = []
        with anyio.fail_after(PATIENCE):
            while len(taken) < count:
                taken += await self._batches.__anext__()
        return taken

    async def bodies(self, count: int = 1) -> list[bytes | None]:
        return [message.body for message in await self.take(count)]

    async def settle(self, *messages: Message, outcome: Outcome = Outcome.ACCEPTED) -> None:
        with anyio.fail_after(PATIENCE):
            await self.stream.settle([Settlement(message, outcome) for message in messages])


@asynccontextmanager
async def taking(opening: Opening, source: Source) -> AsyncIterator[Taker]:
    """Open as the hub does: open, watch, then iterate."""
    with anyio.fail_after(PATIENCE * 4):
        async with source.open(opening) as stream:
            await stream.watch(source)
            yield Taker(stream)
