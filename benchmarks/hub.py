"""``python -m benchmarks.hub``: what a message and a waiting group cost in a triggerer, as ratios in one run.

A real Kafka, and the hub in this process. Beside it, in turns and in the same process, the least that must be done: the
bare aiokafka consumer that decodes each message from JSON, and Airflow's own idle trigger. Each function measures one
thing; the benchmark of the whole uses them, too. Exits 1 when a target is missed.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import statistics
import sys
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import datetime, timedelta, timezone
from typing import NamedTuple

import msgspec
import psutil  # type: ignore[import-untyped]
from aiokafka import AIOKafkaConsumer, TopicPartition  # type: ignore[import-untyped]
from aiokafka.admin import AIOKafkaAdminClient, NewTopic  # type: ignore[import-untyped]

from benchmarks.lag import lag
from benchmarks.memory import memory_per_group
from benchmarks.stream import LAST, fill, first_seen, topic, waiting_hub
from benchmarks.targets import Target
from benchmarks.waiting import (
    EVENTS,
    TOPICS,
    all_live,
    group_trigger,
    idle_trigger,
    kafka_connections,
    running,
    triggerer,
)
from event_triggers.entry import Interest
from event_triggers.hub import Hub
from event_triggers.sources.kafka import KafkaTopic
from servers.kafka import KafkaCluster

__all__ = ["IdleCpu", "Throughput", "ahead", "connections", "idle_cpu", "start", "throughput"]

_decode = msgspec.json.Decoder().decode


class Throughput(NamedTuple):
    """Messages per second while so many events wait on one topic."""

    waiting: int
    hub: float
    bare: float
    ratio: float
    """The median of what each round gives."""


class IdleCpu(NamedTuple):
    """Which part of a core triggers take while nothing comes."""

    ours: float
    idle: float

    @property
    def beyond(self) -> float:
        """What groups take more than Airflow's own idle triggers."""
        return self.ours - self.idle


# ------------------------------------------------------------------ messages per second


async def _bare(bootstrap: str, name: str) -> tuple[int, float]:
    """All messages of a topic with the bare consumer, and the seconds since the first."""
    consumer = AIOKafkaConsumer(
        bootstrap_servers=bootstrap,
        group_id=None,
        enable_auto_commit=False,
        isolation_level="read_committed",
        # Not by seeking: the client's own first position may come after that, and would be the end.
        auto_offset_reset="earliest",
    )
    await consumer.start()
    try:
        partition = TopicPartition(name, 0)
        consumer.assign([partition])
        end = (await consumer.end_offsets([partition]))[partition]
        seen, began = 0, time.perf_counter()
        while seen < end:
            for records in (await consumer.getmany(timeout_ms=500, max_records=500)).values():
                for record in records:
                    _decode(record.value)
                seen += len(records)
        return seen, time.perf_counter() - began
    finally:
        await consumer.stop()


async def _through_hub(bootstrap: str, name: str, waiting: int, total: int) -> float:
    """Messages per second through the hub, from the first batch to the last message."""
    async with waiting_hub(bootstrap, name, waiting) as (hub, subscription):
        seen = await first_seen(hub)
        began = time.perf_counter()
        (delivery,) = await subscription.receive()
        seconds = time.perf_counter() - began
        delivery.accept()
    return (total - seen) / seconds


async def throughput(
    bootstrap: str, waiting: Sequence[int] = (1, 1000, 20_000), *, messages: int = 40_000, rounds: int = 5
) -> list[Throughput]:
    """Messages per second through hub and index, and with the bare client before and behind it, in turns."""
    measured: dict[int, list[tuple[float, float]]] = {count: [] for count in waiting}
    async with topic(bootstrap) as name:
        await fill(bootstrap, name, messages)
        for _ in range(rounds):
            for count in waiting:
                gc.collect()
                seen, before = await _bare(bootstrap, name)
                hub = await _through_hub(bootstrap, name, count, messages + 1)
                seen_again, behind = await _bare(bootstrap, name)
                measured[count].append((hub, (seen + seen_again) / (before + behind)))
    return [
        Throughput(
            count,
            statistics.median(hub for hub, _ in pairs),
            statistics.median(bare for _, bare in pairs),
            statistics.median(hub / bare for hub, bare in pairs),
        )
        for count, pairs in measured.items()
    ]


# ------------------------------------------------------------------ one message behind many


async def ahead(bootstrap: str, messages: int = 10_000) -> float:
    """Seconds from the subscription to the one message that matches, behind so many others."""
    async with topic(bootstrap) as name:
        await fill(bootstrap, name, messages)
        hub = Hub(kafka_connections(bootstrap))
        wanted = {key: [value] for key, value in LAST.items()}
        since = datetime.now(timezone.utc) - timedelta(hours=1)
        began = time.perf_counter()
        async with hub.subscribe("group", [Interest("last", KafkaTopic(name), wanted, since=since)]) as subscription:
            (delivery,) = await subscription.receive()
            seconds = time.perf_counter() - began
            delivery.accept()
        return seconds


# ------------------------------------------------------------------ waiting groups


@asynccontextmanager
async def waiting_groups(bootstrap: str, groups: int, topics: int = TOPICS) -> AsyncIterator[float]:
    """So many groups wait; gives the seconds from the making of their triggers until all streams were live."""
    prefix = f"bench-{uuid.uuid4().hex[:8]}"
    client = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await client.start()
    try:
        await client.create_topics([NewTopic(f"{prefix}-{number}", 1, 1) for number in range(topics)])
        async with triggerer(bootstrap) as shared:
            began = time.perf_counter()
            triggers = [group_trigger(number, topics=topics, prefix=prefix) for number in range(groups)]
            async with running(triggers):
                await all_live(shared.hub, groups * EVENTS)
                yield time.perf_counter() - began
    finally:
        await client.close()


async def start(bootstrap: str, groups: int = 1000, topics: int = TOPICS) -> float:
    """Seconds from the making of the triggers until all streams are live."""
    async with waiting_groups(bootstrap, groups, topics) as seconds:
        return seconds


async def connections(bootstrap: str, groups: int, topics: int = TOPICS) -> int:
    """How many TCP connections to the brokers there are while so many groups wait."""
    ports = {int(address.rpartition(":")[2]) for address in bootstrap.split(",")}
    async with waiting_groups(bootstrap, groups, topics):
        await asyncio.sleep(1)
        open_ones = psutil.Process().net_connections("tcp")
        # The one with which the topics were made is no trigger's.
        established = [one for one in open_ones if one.status == "ESTABLISHED" and one.raddr]
        return len([one for one in established if one.raddr.port in ports]) - 1


async def idle_cpu(bootstrap: str, groups: int = 1000, seconds: float = 20) -> IdleCpu:
    """Which part of a core so many triggers take while nothing comes: groups, and Airflow's own."""

    async def used() -> float:
        await asyncio.sleep(2)
        before = time.process_time()
        await asyncio.sleep(seconds)
        return (time.process_time() - before) / seconds

    async with running([idle_trigger(number) for number in range(groups)]):
        idle = await used()
    async with waiting_groups(bootstrap, groups):
        return IdleCpu(await used(), idle)


# ------------------------------------------------------------------ the report


def measure(bootstrap: str) -> list[Target]:
    """All of it, each in an event loop of its own."""
    flows = asyncio.run(throughput(bootstrap))
    for flow in flows:
        print(
            f"{flow.waiting} events wait: {flow.hub:.0f} messages/s, the bare client {flow.bare:.0f}: {flow.ratio:.2f}"
        )
    late = asyncio.run(lag(bootstrap))
    print(f"lag at {late.rate:.0f} a second: median {late.p50 * 1e3:.1f} ms, most {late.most * 1e3:.1f} ms")
    few, many = (asyncio.run(connections(bootstrap, groups)) for groups in (1, 1000))
    cpu = asyncio.run(idle_cpu(bootstrap))
    print(f"idle: {cpu.ours * 100:.2f} % of a core; Airflow's own idle triggers {cpu.idle * 100:.2f} %")
    print(f"1000 groups are live after {asyncio.run(start(bootstrap)):.1f} s")
    memory = asyncio.run(memory_per_group())
    return [
        Target("messages per second with 20000 events waiting, of the bare consumer's", flows[-1].ratio, 0.7, "", True),
        Target("event-loop lag p99", late.p99 * 1e3, 50, "ms"),
        Target("10000 messages ahead of the match", asyncio.run(ahead(bootstrap)), 1, "s"),
        Target("Kafka connections for 1000 groups, beyond those for one", many - few, 0, ""),
        Target("CPU of 1000 idle groups beyond idle triggers", cpu.beyond * 100, 2, "%"),
        Target("memory of a waiting group beyond an idle trigger's", memory.beyond / 1024, 40, "KB"),
    ]


def main() -> int:
    """Run it all and print the report."""
    logging.disable(logging.WARNING)
    with KafkaCluster() as cluster:
        targets = measure(cluster.bootstrap)
    print(*targets, sep="\n")
    return 0 if all(target.met for target in targets) else 1


if __name__ == "__main__":
    sys.exit(main())
