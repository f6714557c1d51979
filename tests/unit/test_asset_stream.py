"""The stream of asset events over a reader in memory, and what the sources say of themselves."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from airflow.sdk import Asset

from event_triggers.errors import InvalidEventError
from event_triggers.sources._asset_gaps import MAY_COME_FOR, MOST_GAPS, gaps_between
from event_triggers.sources._asset_reader import AssetName, AssetReader, Page, PublicReader
from event_triggers.sources._asset_stream import AssetStream, message_of
from event_triggers.sources._webhook_wire import Received, from_extra, to_extra
from event_triggers.sources.assets import AssetEvents
from event_triggers.sources.base import load_source
from event_triggers.sources.webhook import Webhook
from event_triggers.testing import ManualClock

NOW = datetime(2030, 1, 1, tzinfo=timezone.utc)


def test_gaps_before_recent_events_only() -> None:
    old = NOW - MAY_COME_FOR - timedelta(seconds=1)
    assert gaps_between(1, [], NOW) == (1, [])
    assert gaps_between(3, [(3, NOW), (4, NOW)], NOW) == (5, [])
    assert gaps_between(3, [(5, NOW), (8, NOW)], NOW) == (9, [3, 4, 6, 7])
    assert gaps_between(3, [(5, old), (8, NOW)], NOW) == (9, [6, 7])
    behind, gaps = gaps_between(1, [(10_000, NOW)], NOW)
    assert (behind, len(gaps), gaps[-1]) == (10_001, MOST_GAPS, 9_999)


class Pages(AssetReader):
    """Gives these pages, one for each question."""

    patience = timedelta(minutes=5)

    def __init__(self, *pages: Page) -> None:
        self.pages = list(pages)
        self.asked: list[tuple[int, list[int]]] = []

    async def head(self) -> Page:
        return self.pages.pop(0)

    async def read(self, assets: Sequence[AssetName], next_id: int, gaps: Sequence[int]) -> Page:
        self.asked.append((next_id, list(gaps)))
        return self.pages.pop(0)

    async def first_since(self, assets: Sequence[AssetName], since: datetime) -> int | None:
        return None


def event(identity: int) -> dict[str, Any]:
    return {
        "id": identity,
        "name": "orders",
        "uri": "orders",
        "timestamp": NOW.isoformat(),
        "extra": "{}",
        "source_dag_id": None,
        "source_task_id": None,
        "source_run_id": None,
        "source_map_index": -1,
    }


async def test_a_missing_id_is_looked_for_until_it_is_too_old() -> None:
    clock = ManualClock(NOW)
    reader = Pages(Page(10), Page(13, (11,), [event(10), event(12)]), Page(14, (), [event(13)]))
    stream = AssetStream(reader, clock)
    await stream.begin(None)
    batches = stream.__aiter__()
    assert [m.offset for m in await batches.__anext__()] == [10, 12]
    assert stream.position() == {"events": 13, "11": 11}
    clock.advance(timedelta(minutes=6).total_seconds())
    assert [m.offset for m in await batches.__anext__()] == [13]
    assert stream.position() == {"events": 14}
    assert reader.asked == [(10, []), (13, [])]


async def test_a_late_event_has_a_partition_of_its_own() -> None:
    stream = AssetStream(Pages(Page(6, (), [event(3), event(5)])), ManualClock(NOW))
    await stream.begin({"events": 5, "3": 3, "2": 3, "9": 9})
    assert stream.position() == {"events": 5, "3": 3}, "one that was delivered, and one that was not passed, are none"
    late, next_one = await stream.__aiter__().__anext__()
    assert (late.partition, late.offset, stream.after(late)) == ("3", 3, 4)
    assert (next_one.partition, next_one.offset) == ("events", 5)
    assert stream.position() == {"events": 6}


class Rows:
    """Airflow's public route over these rows, as small pages."""

    def __init__(self, *rows: tuple[int, float]) -> None:
        self.rows = list(rows)
        self.longest = 3

    async def __call__(self, method: str, path: str, *, json: Any = None, params: Any = None) -> Any:
        assert (method, path) == ("GET", "/api/v2/assets/events")
        rows = sorted(self.rows, key=lambda row: row[1], reverse=params["order_by"].startswith("-"))
        since = params.get("timestamp_gte")
        first = NOW - timedelta(days=1) if since is None else datetime.fromisoformat(since)
        rows = [row for row in rows if NOW + timedelta(seconds=row[1]) >= first]
        offset = params.get("offset", 0)
        page = rows[offset : offset + min(self.longest, params["limit"])]
        stamped = [event(i) | {"timestamp": (NOW + timedelta(seconds=at)).isoformat(), "extra": {}} for i, at in page]
        return {"asset_events": stamped, "total_entries": len(rows)}


async def test_the_public_route_is_read_in_the_order_of_ids() -> None:
    call = Rows((1, 0), (2, 5), (3, 4), (4, 5), (5, 5.5))
    reader = PublicReader(call, ManualClock(NOW + timedelta(seconds=6)))
    page = await reader.read([("orders", None)], 1, [])
    assert [e["id"] for e in page.events] == [1, 2, 3, 4, 5]
    assert (page.next, page.gaps) == (6, ())
    call.rows += [(8, 6), (6, 7)]
    page = await reader.read([("orders", "orders")], 6, [])
    assert ([e["id"] for e in page.events], page.next, page.gaps) == ([6, 8], 9, (7,))
    call.rows += [(7, -100)]  # a clock that goes wrong by a minute and a half
    page = await reader.read([("orders", None)], 9, [7])
    assert ([e["id"] for e in page.events], page.next, page.gaps) == ([7], 9, ())


async def test_the_public_route_from_a_position() -> None:
    call = Rows(*((number, number) for number in range(1, 20)))
    page = await PublicReader(call, ManualClock(NOW + timedelta(seconds=30))).read([("orders", None)], 15, [])
    assert [e["id"] for e in page.events] == [15, 16, 17, 18, 19]


@pytest.mark.parametrize("body", [b"", b"text", "\u20ac".encode(), b"\0", bytes(range(256)), b'{"password": 1}'])
def test_a_request_is_read_back_as_it_came(body: bytes) -> None:
    received = Received("d", (("x-a", b"1"), ("x-a", b"\xe9")), body)
    assert from_extra(json.loads(json.dumps(to_extra(received)))) == received


@pytest.mark.parametrize("extra", [None, {}, [], {"delivery": "d", "headers": [], "body_base64": "?"}, {"delivery": 1}])
def test_another_event_of_a_hooks_asset_is_an_asset_event(extra: Any) -> None:
    assert from_extra(extra) is None
    made = message_of(event(1) | {"name": "webhook/x", "extra": json.dumps(extra)}, late=False)
    assert (made.source, made.json) == ("asset", extra)


def test_an_asset_is_named_by_itself_or_by_its_name() -> None:
    source = AssetEvents(Asset("orders", uri="s3://bucket/orders"))
    assert (source.asset, source.uri) == ("orders", "s3://bucket/orders")
    assert load_source(json.loads(json.dumps(source.serialize()))) == source
    assert AssetEvents("orders").asset_name == ("orders", None)
    assert AssetEvents("orders").label == "asset orders"


@pytest.mark.parametrize("wrong", [5, None, Asset, ["orders"]], ids=str)
def test_what_is_no_asset(wrong: Any) -> None:
    with pytest.raises(InvalidEventError, match="AssetEvents needs"):
        AssetEvents(wrong)


def test_a_hook_has_an_asset_and_a_connection() -> None:
    hook = Webhook("finance-signoff")
    assert hook.asset == Asset("webhook/finance-signoff", group="webhook")
    assert hook.asset.uri == hook.asset.name
    assert hook.conn_id == "webhook_finance-signoff"
    assert hook.label == "webhook finance-signoff"
    Webhook("{{ params.hook }}").validate()


@pytest.mark.parametrize("wrong", ["", "a b", "-a", "a/b", "x" * 101, 5, None], ids=str)
def test_what_no_hook_can_be_called(wrong: Any) -> None:
    with pytest.raises(InvalidEventError, match="no hook can be called"):
        Webhook(wrong).validate()


def test_hooks_and_assets_share_a_stream() -> None:
    one, two = Webhook("a"), AssetEvents("b")
    assert (one.family, one.key("g")) == (two.family, two.key("h"))
