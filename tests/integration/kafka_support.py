"""One real Kafka for all tests of a run, topics of their own for each, and openings that reach it."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
from aiokafka import AIOKafkaProducer  # type: ignore[import-untyped]
from aiokafka.admin import AIOKafkaAdminClient, NewTopic  # type: ignore[import-untyped]

from event_triggers.message import Message
from event_triggers.sources.base import BrokerConnection, Opening, Position
from event_triggers.sources.kafka import KafkaTopic
from event_triggers.testing.conformance import Reader
from servers.kafka import KafkaCluster, KafkaListener
from servers.process import ServerFailed
from servers.proxy import TcpProxy
from tests.support import missing

__all__ = [
    "SharedKafka",
    "admin",
    "create_topic",
    "eventually",
    "kafka_opening",
    "producer",
    "reading",
    "shared_kafka",
    "until",
]


class SharedKafka:
    """A broker with a listener of its own behind a proxy."""

    def __init__(self) -> None:
        listener = KafkaListener("PROXIED")
        self.proxy = TcpProxy(listener.port)
        # Clients are told the proxy's port, else they would walk around it after their first question.
        behind = KafkaListener("PROXIED", port=listener.port, advertised=self.proxy.port)
        self.cluster = KafkaCluster(listeners=[[behind]])

    def start(self) -> SharedKafka:
        try:
            self.cluster.start()
        except BaseException:
            self.close()
            raise
        return self

    def close(self) -> None:
        self.cluster.close()
        self.proxy.close()

    @property
    def direct(self) -> str:
        """``bootstrap.servers`` that do not go through the proxy."""
        return self.cluster.bootstrap

    def opening(self, *, start: Position | None = None, **extra: Any) -> Opening:
        """Through the proxy."""
        return kafka_opening(self.proxy.address, start=start, **extra)

    async def topic(self, partitions: int = 1, **settings: Any) -> str:
        """A fresh topic's name."""
        name = f"topic-{uuid.uuid4().hex[:12]}"
        await create_topic(self.direct, name, partitions, **settings)
        return name


def shared_kafka(config: pytest.Config) -> SharedKafka:
    """The run's Kafka; started when the first test asks for it, ended with the run."""
    if _KAFKA not in config.stash:
        shared = SharedKafka()
        config.add_cleanup(shared.close)
        try:
            config.stash[_KAFKA] = shared.start()
        except ServerFailed as error:
            config.stash[_KAFKA] = str(error)
    kafka = config.stash[_KAFKA]
    if isinstance(kafka, str):
        missing(f"Apache Kafka cannot be started: {kafka}")
    return kafka


_KAFKA = pytest.StashKey[SharedKafka | str]()


def kafka_opening(bootstrap: str, *, start: Position | None = None, **extra: Any) -> Opening:
    """An opening whose connection reaches ``bootstrap``; ``extra`` has underscores for the dots in the keys."""
    values: Mapping[str, Any] = {
        "bootstrap.servers": bootstrap,
        "retry.backoff.ms": 100,
        # Offsets are asked behind the fetch that waits, and tests ask for many.
        "fetch.wait.max.ms": 100,
        **{key.replace("_", "."): value for key, value in extra.items()},
    }

    async def connection(conn_id: str) -> BrokerConnection:
        return BrokerConnection(conn_id, "kafka", extra=values)

    return Opening(start=start, connection=connection)


@asynccontextmanager
async def reading(source: KafkaTopic, opening: Opening, *, patience: float = 20) -> AsyncIterator[Reader]:
    """Open a source as the hub does; no step of the reader waits longer than ``patience`` seconds."""
    async with source.open(opening) as stream:
        await stream.watch(source)
        yield Reader(source, stream, patience)


async def until(reader: Reader, position: Mapping[str, int], *, patience: float = 20) -> list[Message]:
    """Pull until the stream is at this position; what came on the way."""
    messages: list[Message] = []
    with anyio.fail_after(patience):
        while reader.log.position() != position:
            messages += await reader.batch()
    return messages


async def create_topic(bootstrap: str, name: str, partitions: int = 1, replicas: int = 1, **settings: Any) -> None:
    """``settings`` has underscores for the dots in the keys."""
    configs = {key.replace("_", "."): value for key, value in settings.items()}
    async with admin(bootstrap) as client:
        await client.create_topics([NewTopic(name, partitions, replicas, topic_configs=configs)])


async def eventually(condition: Callable[[], bool], *, patience: float = 20) -> None:
    """Wait until this holds."""
    with anyio.fail_after(patience):
        while not condition():  # noqa: ASYNC110 - nobody tells when it does
            await anyio.sleep(0.01)


@asynccontextmanager
async def producer(bootstrap: str, **arguments: Any) -> AsyncIterator[AIOKafkaProducer]:
    """A producer that waits for every message to be stored."""
    client = AIOKafkaProducer(bootstrap_servers=bootstrap, acks="all", **arguments)
    await client.start()
    try:
        yield client
    finally:
        await client.stop()


@asynccontextmanager
async def admin(bootstrap: str) -> AsyncIterator[AIOKafkaAdminClient]:
    """An admin client."""
    client = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await client.start()
    try:
        yield client
    finally:
        await client.close()
