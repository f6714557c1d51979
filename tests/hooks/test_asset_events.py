"""Asset events as triggerers read them: in which order, how soon, and by whom."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import datetime, timezone
from typing import Any

import anyio
import httpx
import pytest
import sqlalchemy as sa

from event_triggers.entry import Interest
from event_triggers.errors import StreamError
from event_triggers.hub import Hub
from event_triggers.message import Message
from event_triggers.sources.assets import AssetEvents
from event_triggers.sources.base import LogStream, Source
from event_triggers.sources.webhook import Webhook
from tests.hooks.kit import ApiServer

PATIENCE = 30


@pytest.fixture(params=[True, False], ids=["plugin", "public"])
def plugin(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


class Assets:
    """Makes assets and their events as Airflow's own transactions do."""

    def new(self) -> str:
        from airflow.models.asset import AssetModel
        from airflow.utils.session import create_session

        name = f"asset-{uuid.uuid4().hex[:12]}"
        with create_session() as session:
            session.add(AssetModel(name=name, uri=f"s3://{name}"))
        return name

    @contextmanager
    def uncommitted(self, name: str, extra: dict[str, Any], **columns: Any) -> Iterator[int]:
        """An event of this asset, which is committed when the context ends."""
        from airflow.models.asset import AssetEvent, AssetModel
        from airflow.utils.session import create_session

        with create_session(scoped=False) as session:
            asset = session.scalars(sa.select(AssetModel).where(AssetModel.name == name)).one()
            event = AssetEvent(asset_id=asset.id, extra=extra, **columns)
            session.add(event)
            session.flush()
            yield event.id

    def event(self, name: str, extra: dict[str, Any], **columns: Any) -> int:
        with self.uncommitted(name, extra, **columns) as identity:
            return identity


@pytest.fixture
def assets(api: ApiServer) -> Assets:
    return Assets()


@asynccontextmanager
async def opened(api: ApiServer, source: Source, *, plugin: bool, **more: Any) -> AsyncIterator[LogStream]:
    async with source.open(api.opening(plugin=plugin, **more)) as stream:
        assert isinstance(stream, LogStream)
        await stream.watch(source)
        yield stream


async def take(stream: LogStream, count: int) -> list[Message]:
    messages: list[Message] = []
    batches = stream.__aiter__()
    with anyio.fail_after(PATIENCE):
        while len(messages) < count:
            messages += await anext(batches)
    return messages


async def test_what_a_message_holds(api: ApiServer, assets: Assets, plugin: bool) -> None:
    name = assets.new()
    extra = {"rows": 5, "big": 12345678901234567890, "text": "\u20ac"}
    async with opened(api, AssetEvents(name), plugin=plugin) as stream:
        made = assets.event(name, extra, source_dag_id=None, source_map_index=-1)
        (message,) = await take(stream, 1)
    assert (message.source, message.stream, message.position, message.id) == ("asset", name, str(made), f"asset:{made}")
    assert message.body == json.dumps(extra, ensure_ascii=False).encode()
    assert message.headers == ()
    assert message.key is None


async def test_who_made_it(api: ApiServer, assets: Assets) -> None:
    name = assets.new()
    source = {"source_dag_id": "d", "source_task_id": "t", "source_run_id": "r", "source_map_index": 3}
    async with opened(api, AssetEvents(name), plugin=True) as stream:
        # Nobody may read a DAG that is not there, so it is made known.
        _make_dag("d")
        assets.event(name, {}, **source)
        (message,) = await take(stream, 1)
    assert message.key == b"d"
    assert message.headers == (("dag_id", b"d"), ("task_id", b"t"), ("run_id", b"r"), ("map_index", b"3"))


def _make_dag(dag_id: str) -> None:
    from airflow.models.dag import DagModel
    from airflow.models.dagbundle import DagBundleModel
    from airflow.utils.session import create_session

    with create_session() as session:
        session.add(DagBundleModel(name="bundle"))
        session.flush()
        session.add(DagModel(dag_id=dag_id, bundle_name="bundle", fileloc="d.py"))  # type: ignore[no-untyped-call]


async def test_an_event_that_commits_late_is_not_lost(api: ApiServer, assets: Assets, plugin: bool) -> None:
    name = assets.new()
    async with opened(api, AssetEvents(name), plugin=plugin) as stream:
        with assets.uncommitted(name, {"which": "late"}):
            assets.event(name, {"which": "first"})
            (first,) = await take(stream, 1)
            position = stream.position()
        (late,) = await take(stream, 1)
        after = stream.position()
    assert (first.json["which"], late.json["which"]) == ("first", "late")
    assert late.offset < first.offset
    async with opened(api, AssetEvents(name), plugin=plugin, start=position) as again:
        assets.event(name, {"which": "last"})
        assert [m.json["which"] for m in await take(again, 2)] == ["late", "last"]
    async with opened(api, AssetEvents(name), plugin=plugin, start=after) as again:
        assert [m.json["which"] for m in await take(again, 1)] == ["last"]
    # Who reads the past finds it in its place, and under the same id.
    start = {"events": late.offset}
    async with opened(api, AssetEvents(name), plugin=plugin, start=start) as again:
        assert [m.id for m in await take(again, 3)][:2] == [late.id, first.id]


async def test_an_event_that_was_not_committed_when_the_stream_opened(
    api: ApiServer, assets: Assets, plugin: bool
) -> None:
    name = assets.new()
    with assets.uncommitted(name, {"which": "late"}):
        assets.event(name, {"which": "before"})
        async with opened(api, AssetEvents(name), plugin=plugin) as stream:
            position = stream.position()
    async with opened(api, AssetEvents(name), plugin=plugin, start=position) as stream:
        assert [m.json["which"] for m in await take(stream, 1)] == ["late"]


async def test_what_is_watched_later_is_seen_by_the_question_that_waits(
    api: ApiServer, assets: Assets, plugin: bool
) -> None:
    one, two = assets.new(), assets.new()
    async with opened(api, AssetEvents(one), plugin=plugin) as stream:
        pulling = asyncio.create_task(take(stream, 1), name="pull")
        await asyncio.sleep(0)
        await stream.watch(AssetEvents(two, uri=f"s3://{two}"))
        assets.event(two, {"which": "two"})
        (message,) = await pulling
    assert message.stream == two
    assert not AssetEvents(one).routes(message)
    assert AssetEvents(two).routes(message)
    assert not AssetEvents(two, uri="s3://other").routes(message)


async def test_a_request_is_seen_as_it_came(api: ApiServer, plugin: bool) -> None:
    name, body = api.hook(), b'{"password": "kept", "n": 1.10}'
    async with opened(api, Webhook(name), plugin=plugin) as stream:
        await api.send(name, body, "d-1")
        (message,) = await take(stream, 1)
    assert (message.source, message.body, message.key) == ("webhook", body, b"d-1")
    assert dict(message.headers)["x-webhook-delivery"] == b"d-1"


async def test_all_hooks_and_assets_share_one_stream_and_the_past_is_read(api: ApiServer, assets: Assets) -> None:
    async def nobody(conn_id: str) -> Any:
        raise AssertionError(conn_id)

    name, hook = assets.new(), api.hook()
    since = datetime.now(timezone.utc)
    await api.send(hook, b'{"n": 0}', "before")
    assets.event(name, {"n": 1})
    hub = Hub(nobody, airflow=api.opening().airflow)
    interests = [
        Interest("asset", AssetEvents(name), pattern={"n": [1]}, since=since),
        Interest("hook", Webhook(hook), pattern={"n": [0]}, since=since),
        Interest("later", Webhook(hook), pattern={"n": [2]}, since=since),
    ]
    seen: dict[str, Any] = {}
    async with hub.subscribe("group", interests) as subscription:
        with anyio.fail_after(PATIENCE):
            while len(seen) < 3:
                for delivery in await subscription.receive():
                    seen.update(dict.fromkeys(delivery.events, delivery.message.json["n"]))
                    delivery.accept()
                if len(seen) == 2:
                    assert len(hub.statistics().channels) == 1
                    await api.send(hook, b'{"n": 2}', "after")
    assert seen == {"asset": 1, "hook": 0, "later": 2}


async def test_who_may_not_read_assets_learns_what_to_grant(api: ApiServer) -> None:
    opening = api.opening()

    @asynccontextmanager
    async def airflow() -> AsyncIterator[Any]:
        from event_triggers.airflow_api import AirflowApi, ApiSettings

        settings = ApiSettings(api.url, token="nonsense", origin="the test")
        async with AirflowApi(settings) as client:
            yield client.call

    from dataclasses import replace

    with pytest.raises(StreamError, match="allowed to read assets"):
        async with Webhook("x").open(replace(opening, airflow=airflow)):
            pass


@pytest.mark.parametrize("path", ["read", "locate"])
async def test_nobody_reads_without_a_login(api: ApiServer, path: str) -> None:
    async with httpx.AsyncClient(trust_env=False) as client:
        answer = await client.post(f"{api.url}/event-triggers/asset-events/{path}", json={"assets": []})
    assert answer.status_code == 401
