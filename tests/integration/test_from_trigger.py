"""Triggers of other providers as sources, each with the real thing that it waits for, but without an Airflow around it.

In a whole Airflow they run in ``tests/airflow/test_started.py``.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import boto3  # type: ignore[import-untyped]
import pytest
import redis
from aiohttp import web
from airflow.providers.amazon.aws.triggers.s3 import S3KeyTrigger
from airflow.providers.common.messaging.triggers.msg_queue import MessageQueueTrigger
from airflow.providers.http.triggers.http import HttpSensorTrigger, HttpTrigger
from airflow.providers.standard.triggers.file import FileDeleteTrigger, FileTrigger
from airflow.providers.standard.triggers.temporal import DateTimeTrigger, TimeDeltaTrigger
from airflow.triggers.base import BaseTrigger

from event_triggers.message import Message
from event_triggers.sources.base import Opening, Stream, load_source
from event_triggers.sources.from_trigger import FromTrigger
from servers.redis import Redis, find_redis
from servers.sqs import MotoServer
from tests.support import missing

AWS = {"region_name": "us-east-1", "aws_access_key_id": "key", "aws_secret_access_key": "secret"}


@pytest.fixture(scope="module")
def server() -> Iterator[Redis]:
    if find_redis() is None:
        missing("Redis is not installed (apt-get install redis-server)")
    with Redis() as server:
        yield server


@pytest.fixture(scope="module")
def moto() -> Iterator[MotoServer]:
    with MotoServer() as server:
        yield server


@pytest.fixture
def aws(moto: MotoServer, monkeypatch: pytest.MonkeyPatch) -> MotoServer:
    extra = {"region_name": "us-east-1", "endpoint_url": moto.endpoint_url}
    connection = {"conn_type": "aws", "login": "key", "password": "secret", "extra": extra}
    monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", json.dumps(connection))
    return moto


@asynccontextmanager
async def running(trigger: BaseTrigger, **options: Any) -> AsyncIterator[Stream]:
    """The stream of a trigger, made from what is stored of it."""
    source = load_source(json.loads(json.dumps(FromTrigger(trigger, **options).serialize())))
    async with source.open(Opening()) as stream:
        await stream.watch(source)
        yield stream


async def take(stream: Stream) -> Message:
    with anyio.fail_after(30):
        return (await stream.__aiter__().__anext__())[0]


async def test_redis(server: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(
        "AIRFLOW_CONN_REDIS_DEFAULT", json.dumps({"conn_type": "redis", "host": "127.0.0.1", "port": server.port})
    )
    trigger = MessageQueueTrigger(scheme="redis+pubsub", channels=["orders"], poll_interval=0.05)
    with redis.Redis(port=server.port) as client:
        async with running(trigger, body="data") as stream:
            for n in range(3):
                with anyio.fail_after(30):
                    # Each run of this trigger listens anew, and hears nothing of what was said before.
                    while not client.publish("orders", json.dumps({"n": n})):  # noqa: ASYNC110 - Redis tells nobody
                        await anyio.sleep(0.02)
                assert (await take(stream)).json == {"n": n}
                with anyio.fail_after(30):
                    while dict(client.pubsub_numsub("orders"))[b"orders"] > 1:  # noqa: ASYNC110 - nor that
                        await anyio.sleep(0.02)


async def test_moments() -> None:
    moment = datetime.now(timezone.utc) - timedelta(hours=1)
    async with running(DateTimeTrigger(moment=moment)) as stream:
        assert datetime.fromisoformat((await take(stream)).json.replace("Z", "+00:00")) == moment
    async with running(TimeDeltaTrigger(timedelta(seconds=0.5))) as stream:
        assert (await take(stream)).text
    async with running(DateTimeTrigger(moment=moment, end_from_trigger=True)) as stream:
        assert (await take(stream)).json == {"state": "success", "xcoms": None}


async def test_files(tmp_path: Path) -> None:
    path = tmp_path / "flag"
    path.touch()
    async with running(FileTrigger(str(path), poke_interval=0.05)) as stream:
        assert (await take(stream)).json is True
    async with running(FileDeleteTrigger(str(path), poke_interval=0.05)) as stream:
        ids = [(await take(stream)).id]
        path.touch()
        ids.append((await take(stream)).id)
    assert len(set(ids)) == 2
    assert not path.exists()


async def test_s3(aws: MotoServer) -> None:
    client = boto3.client("s3", endpoint_url=aws.endpoint_url, **AWS)
    client.create_bucket(Bucket="landing")
    async with running(S3KeyTrigger("landing", "orders.csv", poke_interval=0.1)) as stream:
        await anyio.to_thread.run_sync(lambda: client.put_object(Bucket="landing", Key="orders.csv", Body=b"1"))
        assert (await take(stream)).json["status"] == "success"
    client.close()


async def test_sqs(aws: MotoServer) -> None:
    url = aws.create_queue("any-trigger")
    trigger = MessageQueueTrigger(scheme="sqs", sqs_queue=url, waiter_delay=1)
    async with running(trigger, body="message_batch.0.Body") as stream:
        await anyio.to_thread.run_sync(lambda: aws.client().send_message(QueueUrl=url, MessageBody='{"n": 1}'))
        assert (await take(stream)).json == {"n": 1}


async def test_http(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = 0

    async def answer(request: web.Request) -> web.Response:
        nonlocal asked
        asked += 1
        return web.json_response({"ready": True}, status=200 if asked > 2 else 404)

    app = web.Application()
    app.router.add_get("/ready", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    connection = {"conn_type": "http", "host": "127.0.0.1", "port": runner.addresses[0][1]}
    monkeypatch.setenv("AIRFLOW_CONN_HTTP_DEFAULT", json.dumps(connection))
    try:
        async with running(HttpSensorTrigger(endpoint="ready", poke_interval=0.05)) as stream:
            await take(stream)
        async with running(HttpTrigger(endpoint="ready", method="GET")) as stream:
            assert (await take(stream)).json["response"]["status_code"] == 200
    finally:
        await runner.cleanup()
