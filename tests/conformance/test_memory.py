"""The conformance suite on the sources in memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import pytest

from event_triggers.sources.base import Opening, Position, Source
from event_triggers.testing import MemoryBroker, MemoryLog, MemoryQueue
from event_triggers.testing.conformance import BrokerHarness, LogConformance, QueueConformance


class MemoryHarness(BrokerHarness):
    patience: ClassVar[float] = 5.0
    closing: ClassVar[float] = 1.0
    idle: ClassVar[float] = 0.0

    def __init__(self, source: Source) -> None:
        self.broker = MemoryBroker("conformance", batch_size=16)
        self._source = source

    def source(self) -> Source:
        return self._source

    def opening(self, *, group: str = "conformance", start: Position | None = None) -> Opening:
        return Opening(group=group, start=start)

    async def publish(self, *bodies: bytes) -> None:
        for body in bodies:
            self.broker.publish("topic", body)

    async def undelivered(self) -> int:
        group = "conformance" if getattr(self._source, "per_group", False) else ""
        return self.broker.undelivered("topic", group=group)

    async def cut(self) -> None:
        self.broker.cut()

    def broken(self) -> tuple[Source, Opening]:
        return type(self._source)("topic", broker="nowhere"), self.opening()  # type: ignore[call-arg]


class TestMemoryLog(LogConformance):
    @pytest.fixture(params=[1, 3], ids=lambda n: f"{n}-partitions")
    def harness(self, request: pytest.FixtureRequest) -> Iterator[MemoryHarness]:
        harness = MemoryHarness(MemoryLog("topic", broker="conformance"))
        harness.broker.partitions("topic", request.param)
        yield harness
        assert harness.broker.statistics().open_streams == 0


class TestMemoryQueue(QueueConformance):
    @pytest.fixture(params=[False, True], ids=["one-queue", "session-per-group"])
    def harness(self, request: pytest.FixtureRequest) -> Iterator[MemoryHarness]:
        harness = MemoryHarness(MemoryQueue("topic", per_group=request.param, broker="conformance"))
        yield harness
        assert harness.broker.statistics().open_streams == 0
