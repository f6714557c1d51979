"""The line of those who read markers over the route: what travels together, and what becomes of refusals."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from event_triggers.marker_reader import MarkerReader
from event_triggers.marking_route import MarkingRoute, RouteRefused
from event_triggers.marks import MOST_GROUPS, GroupMarkers, MarkerState
from tests.unit.api_kit import Edge, answer, body_of
from tests.unit.fake_airflow import World
from tests.unit.hub_kit import idle, soon


class Api(Edge):
    """Answers for each group one marker, called as its run."""

    def __init__(self) -> None:
        super().__init__(self._handle)
        self.about: dict[str, Any] = {"protocol": 1, "reads": True}
        self.refusal: httpx.Response | None = None
        self.asked: list[list[str]] = []

    def _handle(self, request: httpx.Request) -> httpx.Response:
        if request.method == "GET":
            return answer(document=self.about)
        if self.refusal is not None:
            return self.refusal
        self.asked.append([group["run_id"] for group in body_of(request)["groups"]])
        found: list[Any] = [
            {"status": 403, "detail": "no"} if run == "theirs" else {"markers": [[run, "id", None]]}
            for run in self.asked[-1]
        ]
        return answer(document={"protocol": 1, "groups": found})

    @asynccontextmanager
    async def line(self) -> AsyncIterator[MarkerReader]:
        async with self.api() as api:
            reader = MarkerReader(api, MarkingRoute(api, self.clock))
            worker = asyncio.create_task(reader.work())
            try:
                yield reader
            finally:
                worker.cancel()
                await asyncio.wait({worker})


def of_run(run: str) -> GroupMarkers:
    return GroupMarkers("dag", run, ["marker"])


async def test_a_lone_group_is_asked_for_at_once_and_many_together() -> None:
    edge = Api()
    async with edge.line() as reader:
        assert await soon(reader.read(of_run("first"))) == [MarkerState("first", "id", None)]
        runs = [f"r{n}" for n in range(MOST_GROUPS + 50)]
        found = await soon(asyncio.gather(*(reader.read(of_run(run)) for run in runs)))
    assert [markers[0].task_id for markers in found] == runs
    assert edge.asked[0] == ["first"]
    assert len(edge.asked) <= 4
    assert max(map(len, edge.asked)) <= MOST_GROUPS


async def test_what_is_refused_for_one_group_is_answered_for_the_others() -> None:
    edge = Api()
    async with edge.line() as reader:
        ours, theirs = await soon(
            asyncio.gather(reader.read(of_run("ours")), reader.read(of_run("theirs")), return_exceptions=True)
        )
    assert ours == [MarkerState("ours", "id", None)]
    assert isinstance(theirs, RouteRefused)


@pytest.mark.parametrize("document", [None, {"protocol": 1, "groups": []}, {"nothing": 1}, {"protocol": 1}])
async def test_a_route_that_does_not_answer_well_is_not_asked_again(document: Any) -> None:
    edge = Api()
    edge.refusal = answer(404, {"detail": "Not Found"}) if document is None else answer(document=document)
    async with edge.line() as reader:
        for _ in range(2):
            with pytest.raises(RouteRefused):
                await soon(reader.read(of_run("r")))
    assert len([one for one in edge.requests if one.method == "POST"]) == 1


async def test_a_release_that_cannot_read_is_not_asked() -> None:
    edge = Api()
    edge.about = {"protocol": 1}
    async with edge.line() as reader:
        with pytest.raises(RouteRefused):
            await soon(reader.read(of_run("r")))
    assert [one.method for one in edge.requests] == ["GET"]


async def test_who_has_gone_is_not_asked_for() -> None:
    edge = Api()
    async with edge.line() as reader:
        await soon(reader.read(of_run("first")))
        edge.gate.clear()
        waiting = []
        for run in ("a", "b", "c"):
            waiting.append(asyncio.ensure_future(reader.read(of_run(run))))
            await idle()
        waiting[1].cancel()
        edge.gate.set()
        await soon(asyncio.wait(waiting))
    assert edge.asked == [["first"], ["a"], ["c"]]


@pytest.mark.parametrize("route", [True, False])
async def test_a_group_reads_its_markers_once_whichever_way(route: bool) -> None:
    world = World(route=route)
    world.marker("orders").state = "success"
    async with world.book() as book:
        states = await soon(book.load())
    assert {event: state for event, state in states.items() if state} == {"orders": "success"}
    assert world.airflow.asked("POST", "event-triggers/markers") == (2 if route else 0)
    assert world.airflow.asked("GET", "taskInstances") == (0 if route else 2)
