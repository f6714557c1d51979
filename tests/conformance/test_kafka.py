"""The conformance suite on a real Apache Kafka, for a topic with one partition and for one with several."""

from __future__ import annotations

from collections.abc import AsyncIterator

import anyio.to_thread
import pytest
from aiokafka import AIOKafkaProducer  # type: ignore[import-untyped]

from event_triggers.sources.base import Opening, Position
from event_triggers.sources.kafka import KafkaTopic
from event_triggers.testing.conformance import BrokerHarness, LogConformance
from servers.ports import free_port
from tests.integration.kafka_support import SharedKafka, kafka_opening, producer, shared_kafka


class KafkaHarness(BrokerHarness):
    def __init__(self, kafka: SharedKafka, topic: str, client: AIOKafkaProducer) -> None:
        self._kafka = kafka
        self._topic = topic
        self._producer = client

    def source(self) -> KafkaTopic:
        return KafkaTopic(self._topic, conn_id="somewhere")

    def opening(self, *, group: str = "conformance", start: Position | None = None) -> Opening:
        return self._kafka.opening(start=start)

    async def publish(self, *bodies: bytes) -> None:
        stored = [await self._producer.send(self._topic, body) for body in bodies]
        for one in stored:
            await one

    async def cut(self) -> None:
        assert await anyio.to_thread.run_sync(self._kafka.proxy.cut) > 0, "the source does not go through the proxy"

    def broken(self) -> tuple[KafkaTopic, Opening]:
        return self.source(), kafka_opening(f"127.0.0.1:{free_port()}")


@pytest.fixture(params=[1, 4], ids=["one partition", "four partitions"])
async def harness(request: pytest.FixtureRequest) -> AsyncIterator[KafkaHarness]:
    kafka = shared_kafka(request.config)
    topic = await kafka.topic(request.param)
    async with producer(kafka.direct) as client:
        # The producer connects with its first message; the tasks of that connection are not the tested stream's.
        await client.send_and_wait("elsewhere", b"")
        yield KafkaHarness(kafka, topic, client)


class TestKafka(LogConformance):
    pass
