"""Broken networks, brokers that go and come, readers that do not read."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace

import anyio.to_thread
import pytest
from aiokafka import TopicPartition  # type: ignore[import-untyped]

from event_triggers.entry import Interest
from event_triggers.errors import ConfigurationError, MissingExtraError, StreamError
from event_triggers.hub import Hub
from event_triggers.sources.base import Opening
from event_triggers.sources.kafka import KafkaTopic
from servers.kafka import KafkaCluster
from servers.ports import free_port
from tests.integration.faults import live, take, until_told
from tests.integration.kafka_support import (
    SharedKafka,
    create_topic,
    eventually,
    kafka_opening,
    producer,
    reading,
    shared_kafka,
)


@pytest.fixture
def kafka(request: pytest.FixtureRequest) -> SharedKafka:
    return shared_kafka(request.config)


@pytest.fixture
def network(kafka: SharedKafka) -> Iterator[SharedKafka]:
    """The same, with its network mended afterwards."""
    yield kafka
    kafka.proxy.restore()
    kafka.proxy.cut()


async def test_cut_is_healed_without_a_word(network: SharedKafka) -> None:
    topic = await network.topic()
    async with producer(network.direct) as client, reading(KafkaTopic(topic), network.opening()) as reader:
        for n in range(5):
            await anyio.to_thread.run_sync(network.proxy.cut)
            await client.send_and_wait(topic, b"%d" % n)
            assert await reader.bodies(1) == [b"%d" % n]


async def test_network_that_swallows_everything(network: SharedKafka) -> None:
    """The stream raises in bounded time, closes in bounded time, and goes on where it was."""
    topic = await network.topic()
    opening = network.opening(socket_timeout_ms=1000)
    async with producer(network.direct) as client:
        async with reading(KafkaTopic(topic), opening) as reader:
            await client.send_and_wait(topic, b"1")
            assert await reader.bodies(1) == [b"1"]
            network.proxy.black_hole()
            await client.send_and_wait(topic, b"2")
            with pytest.raises(StreamError, match="no broker has answered for 6 s"):
                await reader.take(1)
            position = reader.log.position()
            closing = time.monotonic()
        assert time.monotonic() - closing < 30, "it waited for the client, which does not give up"
        with pytest.raises(StreamError, match=r"no answer within 1 s; check bootstrap\.servers"):
            async with KafkaTopic(topic).open(opening):
                pass
        await asyncio.to_thread(network.proxy.restore)
        async with reading(KafkaTopic(topic), network.opening(start=position)) as reader:
            assert await reader.bodies(1) == [b"2"]


async def test_short_swallowing_is_healed(network: SharedKafka) -> None:
    topic = await network.topic()
    opening = network.opening(socket_timeout_ms=1000)
    async with producer(network.direct) as client, reading(KafkaTopic(topic), opening) as reader:
        pulling = asyncio.create_task(reader.bodies(1))
        await asyncio.wait({pulling}, timeout=0.1)
        network.proxy.black_hole()
        await client.send_and_wait(topic, b"late")
        accepted = network.proxy.accepted
        # It gives the silent connection up and makes another, before the stream as a whole counts as broken.
        await eventually(lambda: network.proxy.accepted > accepted)
        await asyncio.to_thread(network.proxy.restore)
        assert await pulling == [b"late"]


@contextlib.asynccontextmanager
async def own_cluster(brokers: int, request: pytest.FixtureRequest) -> AsyncIterator[KafkaCluster]:
    shared_kafka(request.config)  # skips where there is no Kafka
    cluster = KafkaCluster(brokers)
    try:
        await asyncio.to_thread(cluster.start)
        yield cluster
    finally:
        await asyncio.to_thread(cluster.close)


async def test_broker_that_is_restarted(request: pytest.FixtureRequest) -> None:
    """In order and by a power cut: the stream heals or raises, and nothing is lost or comes twice."""
    async with own_cluster(1, request) as cluster:
        (node,) = cluster.nodes
        source, opening = KafkaTopic("orders"), kafka_opening(cluster.bootstrap)
        await create_topic(cluster.bootstrap, "orders")
        interest = Interest("orders", source, count=9)
        hub = Hub(opening.connection).subscribe("group", [interest])
        async with reading(source, opening, patience=90) as reader, hub as group:
            await live(group)
            for end in (node.stop, node.kill):
                async with producer(cluster.bootstrap) as client:
                    await client.send_and_wait("orders", b"before")
                assert await reader.bodies(1) == [b"before"]
                pulling = asyncio.create_task(reader.bodies(1))
                await asyncio.to_thread(end)
                await asyncio.to_thread(node.start)
                async with producer(cluster.bootstrap) as client:
                    await client.send_and_wait("orders", b"after")
                assert await pulling == [b"after"]
                assert [one.message.body for one in await take(group, 2)] == [b"before", b"after"]


async def test_leader_that_fails(request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture) -> None:
    """With replicas another broker takes over; without, the partition waits and the others go on."""
    async with own_cluster(3, request) as cluster:
        await create_topic(cluster.bootstrap, "copied", 3, 3)
        await create_topic(cluster.bootstrap, "single", 3, 1)
        sources = [KafkaTopic("copied"), KafkaTopic("single")]
        # Not shorter: on a busy machine brokers may all be silent for some seconds, which ends a stream.
        opening = kafka_opening(cluster.bootstrap, socket_timeout_ms=5000)
        hub = Hub(opening.connection)
        interests = [Interest("copied", sources[0], count=6), Interest("single", sources[1], count=99)]
        async with (
            hub.subscribe("group", interests) as group,
            reading(sources[0], opening, patience=90) as copied,
            reading(sources[1], opening, patience=90) as single,
            producer(cluster.bootstrap) as client,
        ):
            await live(group)
            for partition in range(3):
                await client.send_and_wait("copied", b"%d" % partition, partition=partition)
                await client.send_and_wait("single", b"%d" % partition, partition=partition)
            assert set(await copied.bodies(3)) == set(await single.bodies(3)) == {b"0", b"1", b"2"}
            leaders = {p: client.client.cluster.leader_for_partition(TopicPartition("single", p)) for p in range(3)}
            lost, left = 0, [p for p in range(3) if leaders[p] != leaders[0]]
            assert left, f"one broker leads all: {leaders}"
            await asyncio.to_thread(cluster.nodes[leaders[lost] - 1].kill)
            for partition in range(3):
                await client.send_and_wait("copied", b"again %d" % partition, partition=partition)
            assert set(await copied.bodies(3)) == {b"again 0", b"again 1", b"again 2"}
            for partition in left:
                await client.send_and_wait("single", b"again", partition=partition)
            assert set(await single.bodies(len(left))) == {b"again"}
            pulling = asyncio.create_task(single.bodies(1))
            # Who has read nothing of it yet cannot know where it begins, and reads the others meanwhile.
            heard: list[str] = []
            anew = replace(opening, start={}, tell=lambda _, text, *values: heard.append(text % values))
            async with reading(sources[1], anew, patience=90) as other:
                everything = asyncio.create_task(other.bodies(3 + len(left) + 1))
                line = await until_told(caplog, f"no broker answers for partition single-{lost}", patience=120)
                assert "its messages have to wait" in line
                await eventually(lambda: any(f"for partition single-{lost}" in one for one in heard), patience=90)
                assert not pulling.done()
                # The end of that partition is not known now, so whoever wants to begin there has to wait.
                with pytest.raises(StreamError, match=rf"no broker leads .*single-{lost}"):
                    async with sources[1].open(opening):
                        pass
                await asyncio.to_thread(cluster.nodes[leaders[lost] - 1].start)
                await client.send_and_wait("single", b"back", partition=lost)
                assert Counter(await everything) == Counter([b"0", b"1", b"2", b"back", *[b"again"] * len(left)])
            assert await pulling == [b"back"]
            deliveries = await take(group, 6 + 3 + len(left) + 1)
            assert [one.message.body for one in deliveries].count(b"back") == 1
            assert sum("copied" in one.events for one in deliveries) == 6


async def test_reader_that_does_not_read_costs_little(kafka: SharedKafka) -> None:
    """60 MB wait at the broker, not in the triggerer; and none of it is lost."""
    topic = await kafka.topic(2)
    body = b"x" * 100_000
    async with producer(kafka.direct) as client, reading(KafkaTopic(topic), kafka.opening()) as reader:
        before = kafka.proxy.delivered
        for n in range(600):
            await client.send(topic, body, partition=n % 2)
        await client.flush()
        waiting = time.monotonic() + 2
        await eventually(lambda: time.monotonic() > waiting)
        assert kafka.proxy.delivered - before < 5_000_000
        received = 0
        while received < 600:
            received += len(await reader.batch())
        assert received == 600
        assert reader.log.position() == {f"{topic}-0": 300, f"{topic}-1": 300}


async def test_nobody_listens() -> None:
    ports = free_port(), free_port()
    bootstrap = ",".join(f"127.0.0.1:{port}" for port in ports)
    with pytest.raises(StreamError) as caught:
        async with KafkaTopic("t", conn_id="mine").open(kafka_opening(bootstrap)):
            pass
    text = str(caught.value)
    assert "'mine'" in text
    for port in ports:
        assert f"127.0.0.1:{port}: nothing listens there (connection refused); check bootstrap.servers" in text


async def test_host_that_does_not_exist() -> None:
    with pytest.raises(StreamError, match=r"the host name is not known .*; check bootstrap\.servers"):
        async with KafkaTopic("t").open(kafka_opening("no-such-host.invalid:9092")):
            pass


async def test_server_that_is_no_kafka() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        opening = kafka_opening(f"127.0.0.1:{port}", socket_timeout_ms=1000)
        with pytest.raises(StreamError, match="no answer within 1 s"):
            async with KafkaTopic("t").open(opening):
                pass


async def test_connection_without_servers() -> None:
    with pytest.raises(ConfigurationError, match=r"'kafka_default'.*bootstrap\.servers"):
        async with KafkaTopic("t").open(kafka_opening("")):
            pass


async def test_missing_client(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    for name in [name for name in sys.modules if name.startswith("event_triggers.sources._kafka_")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "aiokafka", None)
    import event_triggers.sources

    monkeypatch.delattr(event_triggers.sources, "_kafka_client", raising=False)
    with pytest.raises(MissingExtraError, match=r"pip install 'airflow-event-triggers\[kafka\]'"):
        async with KafkaTopic("t").open(Opening()):
            pass
