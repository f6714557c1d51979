"""KafkaTopic on librdkafka's mock cluster, which the demo runs on."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path

import anyio
import pytest

from event_triggers.entry import Interest
from event_triggers.hub import Hub
from event_triggers.sources.kafka import KafkaTopic
from servers.embedded_kafka import PARTITIONS, EmbeddedKafka, MockKafka
from servers.process import ServerFailed
from tests.integration.kafka_support import kafka_opening, producer, reading
from tests.support import missing


@pytest.fixture
def bootstrap() -> Iterator[str]:
    try:
        kafka = MockKafka()
    except ServerFailed as error:
        missing(str(error))
    with kafka:
        yield kafka.bootstrap


async def test_topic_appears_with_its_first_message(bootstrap: str) -> None:
    async with reading(KafkaTopic("orders"), kafka_opening(bootstrap)) as reader, producer(bootstrap) as client:
        assert reader.log.position() == {}
        for n in range(8):
            await client.send_and_wait("orders", b"%d" % n, partition=n % PARTITIONS)
        assert {m.body for m in await reader.take(8)} == {b"%d" % n for n in range(8)}
        assert reader.log.position() == {f"orders-{partition}": 2 for partition in range(PARTITIONS)}
    async with reading(KafkaTopic("orders"), kafka_opening(bootstrap)) as reader, producer(bootstrap) as client:
        await client.send_and_wait("orders", b"new", partition=1)
        assert await reader.bodies(1) == [b"new"]


async def test_moments_cannot_be_looked_up(bootstrap: str) -> None:
    """Whatever was before is then read again; nobody misses anything."""
    async with producer(bootstrap) as client:
        for n in range(3):
            await client.send_and_wait("orders", b"%d" % n, partition=0)
        async with reading(KafkaTopic("orders"), kafka_opening(bootstrap)) as reader:
            start = await reader.log.locate(datetime.now(timezone.utc) - timedelta(minutes=1))
            assert start == {f"orders-{partition}": 0 for partition in range(PARTITIONS)}
        async with reading(KafkaTopic("orders"), kafka_opening(bootstrap, start=start)) as reader:
            assert await reader.bodies(3) == [b"0", b"1", b"2"]


async def test_since_holds_all_the_same(bootstrap: str) -> None:
    """The hub drops what is too old by its stamp."""
    now = datetime.now(timezone.utc)
    hub = Hub(kafka_opening(bootstrap).connection)
    interest = Interest("late", KafkaTopic("orders"), count=2, since=now)
    async with producer(bootstrap) as client:
        for minutes in (-2, -1, 1, 2):
            stamp = int((now + timedelta(minutes=minutes)).timestamp() * 1000)
            await client.send_and_wait("orders", b"%d" % minutes, timestamp_ms=stamp, partition=0)
        bodies: list[bytes | None] = []
        with anyio.fail_after(20):
            async with hub.subscribe("group", [interest]) as subscription:
                while len(bodies) < 2:
                    for delivery in await subscription.receive():
                        bodies.append(delivery.message.body)
                        delivery.accept()
    assert bodies == [b"1", b"2"]


def test_process_of_its_own(tmp_path: Path) -> None:
    """The file holds the address as soon as it exists; SIGTERM ends it."""
    with EmbeddedKafka(brokers=2) as kafka:
        assert len(kafka.bootstrap.split(",")) == 2
    port_file = tmp_path / "port"
    command = [sys.executable, "-m", "servers.embedded_kafka", "--port-file", str(port_file)]
    root = Path(__file__).parents[2]
    with subprocess.Popen(command, cwd=root, env={**os.environ, "PYTHONPATH": str(root)}) as process:
        while not port_file.exists():
            assert process.poll() is None
        host, _, port = port_file.read_text().strip().partition(":")
        assert host == "127.0.0.1"
        assert int(port) > 0
        process.terminate()
        assert process.wait(10) == 0
