"""The floor under all latencies: the bare client libraries, which receive one message after the other."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from benchmarks import plan
from benchmarks.report import Report
from benchmarks.traffic import Sender
from benchmarks.world import Brokers

__all__ = ["measure_floor"]

_RUN = "floor"
_GAP = 0.05


def measure_floor(brokers: Brokers, report: Report, *, messages: int) -> None:
    """From sending to the decoded message, through aiokafka, aiobotocore and aiomqtt."""
    for broker, received in asyncio.run(_all(brokers, messages)).items():
        report.add(f"bare client {broker}", received, "s")


async def _all(brokers: Brokers, messages: int) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {}
    for broker, connected in (("kafka", _kafka), ("sqs", _sqs), ("mqtt", _mqtt)):
        async with connected(brokers) as bodies:
            times[broker] = await _times(brokers.send, broker, bodies, messages)
    return times


async def _times(send: Sender, broker: str, bodies: AsyncIterator[bytes | str], messages: int) -> list[float]:
    times: list[float] = []
    for _ in range(messages):
        await asyncio.sleep(random.uniform(0, _GAP))
        began = time.time()
        sending = asyncio.create_task(asyncio.to_thread(send.event, broker, _RUN, plan.EVENTS[0]), name="send")
        assert json.loads(await anext(bodies))["run"] == _RUN
        times.append(time.time() - began)
        await sending
    return times


@asynccontextmanager
async def _kafka(brokers: Brokers) -> AsyncIterator[AsyncIterator[bytes]]:
    from aiokafka import AIOKafkaConsumer  # type: ignore[import-untyped]

    consumer = AIOKafkaConsumer(plan.TOPICS[0], bootstrap_servers=brokers.kafka.bootstrap)
    await consumer.start()
    try:
        await consumer.seek_to_end()

        async def bodies() -> AsyncIterator[bytes]:
            async for message in consumer:
                yield message.value

        yield bodies()
    finally:
        await consumer.stop()


@asynccontextmanager
async def _sqs(brokers: Brokers) -> AsyncIterator[AsyncIterator[str]]:
    from aiobotocore.session import get_session

    sqs = brokers.sqs
    url = brokers.send.create_queue(plan.QUEUE)
    async with get_session().create_client(
        "sqs",
        region_name=sqs.region,
        endpoint_url=sqs.endpoint_url,
        aws_access_key_id=sqs.access_key,
        aws_secret_access_key=sqs.secret_key,
    ) as client:

        async def bodies() -> AsyncIterator[str]:
            while True:
                answer = await client.receive_message(QueueUrl=url, WaitTimeSeconds=20, MaxNumberOfMessages=10)
                for message in answer.get("Messages", []):
                    await client.delete_message(QueueUrl=url, ReceiptHandle=message["ReceiptHandle"])
                    yield message["Body"]

        yield bodies()


@asynccontextmanager
async def _mqtt(brokers: Brokers) -> AsyncIterator[AsyncIterator[bytes]]:
    import aiomqtt

    async with aiomqtt.Client("127.0.0.1", brokers.mosquitto.port) as client:
        await client.subscribe(f"bench/{_RUN}", qos=1)

        async def bodies() -> AsyncIterator[bytes]:
            async for message in client.messages:
                assert isinstance(message.payload, bytes)
                yield message.payload

        yield bodies()
