"""The line of the marking route: what travels together, what is refused, and what happens when the route goes away."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from event_triggers.airflow_api import AirflowApi
from event_triggers.marking_route import LOOK_FOR_IT_EVERY, MOST_PER_REQUEST, WORKERS, MarkingRoute, RouteRefused
from event_triggers.marks import Mark
from event_triggers.xcoms import MarkerKey
from tests.unit.api_kit import Edge, answer, body_of
from tests.unit.fake_airflow import FakeAirflow, World
from tests.unit.hub_kit import idle, soon
from tests.unit.test_airflow_ledger import arrival, record


class Api(Edge):
    """Answers every mark with its own task id as the state."""

    def __init__(self) -> None:
        super().__init__(self._handle)
        self.about: Any = {"protocol": 1}
        self.asked: list[list[tuple[str, str, str]]] = []

    def _handle(self, request: httpx.Request) -> httpx.Response:
        if request.method == "GET":
            return answer(document=self.about) if self.about else answer(404, {"detail": "Not Found"})
        runs = body_of(request)["runs"]
        self.asked.append([(run["dag_id"], run["run_id"], one["task_id"]) for run in runs for one in run["marks"]])
        answers = [[{"state": one["task_id"]} for one in run["marks"]] for run in runs]
        return answer(document={"protocol": 1, "runs": answers})

    @asynccontextmanager
    async def line(self) -> AsyncIterator[tuple[MarkingRoute, AirflowApi]]:
        async with self.api() as api:
            route = MarkingRoute(api, self.clock)
            await soon(route.find())
            workers = [asyncio.create_task(route.work()) for _ in range(WORKERS)]
            try:
                yield route, api
            finally:
                for worker in workers:
                    worker.cancel()
                await asyncio.wait(workers)


def key(run: str, task_id: str) -> MarkerKey:
    return MarkerKey("dag", run, task_id, -1)


async def mark(route: MarkingRoute, run: str, task_id: str) -> str | None:
    return (await route.mark(key(run, task_id), Mark(task_id))).state


async def test_what_is_due_travels_together_and_a_lone_mark_at_once() -> None:
    edge = Api()
    async with edge.line() as (route, _):
        assert await soon(mark(route, "r1", "a")) == "a"
        places = [(f"r{n % 7}", f"t{n}") for n in range(900)]
        states = await soon(asyncio.gather(*(mark(route, *place) for place in places)))
        assert states == [task_id for _, task_id in places], "each is answered with what became of it"
    assert edge.most_in_flight <= WORKERS
    assert [len(one) for one in edge.asked] == [1, MOST_PER_REQUEST, MOST_PER_REQUEST, MOST_PER_REQUEST]


async def test_a_request_is_no_longer_than_a_proxy_lets_pass() -> None:
    edge = Api()
    async with edge.line() as (route, _):
        marks = [Mark(f"t{n}", note="x" * 200_000) for n in range(6)]
        await soon(asyncio.gather(*(route.mark(key("r", one.task_id), one) for one in marks)))
    assert max(len(request.content) for request in edge.requests) < 600_000


@pytest.mark.parametrize("about", [None, {"protocol": 2}, {"something": "else"}, []])
async def test_where_the_route_is_not_nobody_is_sent_there(about: Any) -> None:
    edge = Api()
    edge.about = about
    async with edge.line() as (route, _):
        assert not route.there
        assert "public REST API, because" in route.way
        with pytest.raises(RouteRefused):
            await route.mark(key("r", "a"), Mark("a"))
        edge.about = {"protocol": 1}
        assert not await soon(route.find()), "it is not asked for with every mark"
        edge.clock.advance(LOOK_FOR_IT_EVERY)
        assert await soon(route.find())


@pytest.mark.parametrize(
    "refusal", [(404, {"detail": "Not Found"}), (405, {"detail": "Method Not Allowed"}), (200, [])]
)
async def test_when_it_goes_away_everybody_is_told(refusal: tuple[int, Any]) -> None:
    edge = Api()
    said: list[tuple[int, str]] = []
    async with edge.line() as (route, api):
        api.listen(lambda level, text: said.append((level, text)))
        edge.handler = lambda request: answer(*refusal)
        marks = asyncio.gather(*(mark(route, "r", f"t{n}") for n in range(50)), return_exceptions=True)
        assert {type(one) for one in await soon(marks)} == {RouteRefused}
        assert not route.there
    ((level, text),) = said
    assert level == logging.WARNING
    assert "public REST API, because the marking route is gone" in text


async def test_one_mark_that_is_refused_holds_up_no_other() -> None:
    edge = Api()
    real = edge.handler
    edge.handler = lambda r: answer(413, {"detail": "too large"}) if b'"t7"' in r.content else real(r)
    async with edge.line() as (route, _):
        marks = asyncio.gather(*(mark(route, "r", f"t{n}") for n in range(20)), return_exceptions=True)
        states = await soon(marks)
    assert isinstance(states.pop(7), RouteRefused)
    assert states == [f"t{n}" for n in range(20) if n != 7]


async def test_who_has_gone_is_not_sent_for() -> None:
    edge = Api()
    async with edge.line() as (route, _):
        edge.gate.clear()
        tasks = []
        for name in ("a", "b", "c"):  # the first two are under way, one with each worker
            tasks.append(asyncio.ensure_future(mark(route, "r", name)))
            await idle()
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        edge.gate.set()
        assert await soon(mark(route, "r", "d")) == "d"
    assert [task_id for ((_, _, task_id),) in edge.asked] == ["a", "b", "d"]


# ------------------------------------------------------------------ in a ledger


async def test_a_wait_goes_on_the_public_way_and_comes_back() -> None:
    world = World(route=True)
    async with world.book() as book:
        await record(book, arrival("shifts", "a", wanted=4))
        world.airflow.route = False
        assert await record(book, arrival("shifts", "a", "b", wanted=4)) == {"shifts": ["a", "b"]}
        world.airflow.route = True
        world.airflow.clock.advance(LOOK_FOR_IT_EVERY)
        assert await record(book, arrival("shifts", "c", "d", wanted=4)) == {"shifts": ["a", "b", "c", "d"]}
    marker = world.marker("shifts")
    assert marker.xcoms["return_value"] == [{"id": one} for one in "abcd"]
    assert [one["id"] for one in marker.xcoms["event"]["messages"]] == list("abcd")
    assert marker.state == "success"
    ways = [text for _, text in world.log if "markers are marked" in text]
    assert [("public REST API" in way) for way in ways] == [False, True, False]


@pytest.mark.parametrize("first_routed", [True, False])
async def test_two_triggerers_that_go_different_ways_agree(first_routed: bool) -> None:
    """A series entry of either is honoured by the other, also by one that has read before the other wrote."""
    world = World(route=first_routed)
    async with world.book() as one:
        await record(one, arrival("shifts", "a", wanted=5))
        world.airflow.route = not first_routed
        async with world.book(ledger=world.airflow.ledger()) as other:
            await record(other, arrival("shifts", "b", wanted=5))
            world.airflow.route = first_routed
            await record(one, arrival("shifts", "c", wanted=5))
            world.airflow.route = not first_routed
            await record(other, arrival("shifts", "d", "e", wanted=5))
    marker = world.marker("shifts")
    assert marker.xcoms["return_value"] == [{"id": one} for one in "abcde"]
    assert [one["id"] for one in marker.xcoms["event"]["messages"]] == list("abcde")
    assert marker.state == "success"


async def test_what_a_person_has_decided_stays_and_is_told() -> None:
    world = World(route=True)
    async with world.book() as book:
        world.airflow.mark(world.marker("orders"), "failed")
        assert await record(book, arrival("orders", "a")) == {"orders": ["a"]}
        assert await soon(book.marked()) == {"orders": "failed"}
    assert world.marker("orders").state == "failed"


async def test_one_request_for_many_arrivals_of_many_groups() -> None:
    """Guards against a request for each mark: counted, not timed."""
    airflow: FakeAirflow = (world := World(route=True)).airflow
    async with world.book() as book, world.book() as other:
        before = len(airflow.answered)
        await soon(
            asyncio.gather(
                *(one.record([arrival(event, "a") for event in ("orders", "stock")]) for one in (book, other))
            )
        )
        assert len(airflow.answered) - before <= WORKERS
