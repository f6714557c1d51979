"""The package's own ledger on a real API server: through the route, the public API, and from one to the other."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from event_triggers.airflow_api import AirflowApi
from event_triggers.airflow_ledger import AirflowLedger
from event_triggers.ledger import Arrival, Book, GroupRef, Received
from tests.server.kit import AFTER_3_1, DAG_ID, MARKERS, Server

pytestmark = pytest.mark.filterwarnings("ignore")


class Gate(httpx.AsyncBaseTransport):
    """In front of the API server: can hide the route, as if the plugin were not loaded."""

    def __init__(self, inner: httpx.AsyncBaseTransport) -> None:
        self._inner = inner
        self.hidden = False
        self.asked: list[str] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(request.url.path)
        if self.hidden and request.url.path.startswith("/event-triggers"):
            return httpx.Response(404, json={"detail": "Not Found"})
        return await self._inner.handle_async_request(request)


@asynccontextmanager
async def opened(server: Server, gate: Gate, run: str, log: list[str]) -> AsyncIterator[Book]:
    async def make_api() -> AirflowApi:
        return AirflowApi(server.settings(), transport=gate)

    group = GroupRef(DAG_ID, run, "wait")
    markers = {name: name for name in MARKERS}
    async with AirflowLedger(make_api).open(group, markers, lambda _, text: log.append(text)) as book:
        await book.load()
        yield book


def received(identity: str) -> Received:
    return Received("sqs", "q", f"p {identity}", identity, None, "2030-01-01T00:00:00Z", {"id": identity}, "a note")


def arrival(event: str, *identities: str, wanted: int) -> Arrival:
    return Arrival(event, tuple(received(one) for one in identities), wanted)


@pytest.mark.parametrize("first", ["route", "public"])
async def test_a_wait_goes_on_when_the_way_changes(server: Server, first: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if not AFTER_3_1:
        pytest.skip("Airflow 3.1 writes XComs of the public way through a supervisor, and there is none here")
    monkeypatch.setattr("event_triggers.marking_route.LOOK_FOR_IT_EVERY", 0.0)
    run = server.database.new_run()
    gate, log = Gate(server.transport), list[str]()
    gate.hidden = first == "public"
    async with opened(server, gate, run, log) as book:
        await book.record([arrival("orders", "a", wanted=4)])
        gate.hidden = not gate.hidden
        held = await book.record([arrival("orders", "a", "b", wanted=4), arrival("stock", "x", wanted=1)])
        assert [one.id for one in held["orders"]] == ["a", "b"]
        gate.hidden = not gate.hidden
        await book.record([arrival("orders", "c", "d", wanted=4), arrival("stock", "x", wanted=1)])
    task = server.database.task(run, "orders")
    assert task.xcoms["return_value"] == [{"id": one} for one in "abcd"]
    assert [one["id"] for one in task.xcoms["event"]["messages"]] == list("abcd")
    assert task.state == server.database.task(run, "stock").state == "success"
    assert any("public REST API" in line for line in log)
    assert any("through the marking route" in line for line in log)


async def test_one_request_does_what_takes_three(server: Server) -> None:
    run = server.database.new_run()
    gate, log = Gate(server.transport), list[str]()
    async with opened(server, gate, run, log) as book:
        gate.asked.clear()
        await book.record([arrival(name, "a", wanted=1) for name in MARKERS])
        assert gate.asked == ["/event-triggers/marks"]
        await book.end("shifts", "skipped", "too late for that")
        await book.join("join")
    assert {server.database.task(run, name).state for name in (*MARKERS, "join")} == {"success"}
    assert log == ["markers are marked through the marking route in Airflow's API server"]


def test_the_server_is_airflow_itself(server: Server) -> Any:
    assert any(getattr(route, "path", "") == "/event-triggers" for route in server.app.routes)
