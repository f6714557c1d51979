"""The line of marks: what is due together travels together, and nobody waits for somebody else's refusal."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import httpx
import pytest

from event_triggers.errors import AirflowApiError
from event_triggers.marking import MOST_PER_REQUEST, WORKERS, Mark, MarkingLine
from event_triggers.xcoms import MarkerKey
from tests.unit.api_kit import answer, body_of
from tests.unit.fake_airflow import FakeAirflow
from tests.unit.hub_kit import idle, soon


def mark(task_id: str, run_id: str = "run", *, note: str | None = "note", map_index: int = -1) -> Mark:
    return Mark(MarkerKey("dag", run_id, task_id, map_index), note)


def names(count: int) -> list[str]:
    return [f"event_{number}" for number in range(count)]


@pytest.fixture
def airflow() -> FakeAirflow:
    airflow = FakeAirflow()
    for run_id in ("run", "other"):
        airflow.add("dag", run_id, *names(60))
    return airflow


@asynccontextmanager
async def working(
    airflow: FakeAirflow, *, workers: int = WORKERS, across_runs: bool = True
) -> AsyncIterator[MarkingLine]:
    async with airflow.api() as api:
        line = MarkingLine(api, across_runs=across_runs)
        async with anyio.create_task_group() as group:
            for _ in range(workers):
                group.start_soon(line.work)
            await idle()
            yield line
            group.cancel_scope.cancel()


def bulk_sizes(airflow: FakeAirflow) -> list[int]:
    """How many marks each request had that carried several."""
    bodies = [body_of(request) for request in airflow.requests if request.url.path.endswith("/taskInstances")]
    return [len(body["actions"][0]["entities"]) for body in bodies]


def green(airflow: FakeAirflow, run_id: str = "run") -> int:
    return sum(one.state == "success" for one in airflow.instances if one.run_id == run_id)


async def mark_all(line: MarkingLine, *marks: Mark) -> list[BaseException | None]:
    return await soon(asyncio.gather(*(line.mark(one) for one in marks), return_exceptions=True))


async def test_a_lone_mark_is_sent_at_once_by_itself(airflow: FakeAirflow) -> None:
    async with working(airflow) as line:
        await soon(line.mark(mark("event_1")))
    (request,) = airflow.requests
    assert request.url.path == "/api/v2/dags/dag/dagRuns/run/taskInstances/event_1"
    assert body_of(request) == {"new_state": "success", "note": "note"}
    assert airflow.find("dag", "run", "event_1").note == "note"


async def test_a_mark_without_a_note_leaves_the_note_alone(airflow: FakeAirflow) -> None:
    async with working(airflow) as line:
        await soon(line.mark(mark("event_1", note=None)))
    assert body_of(airflow.requests[0]) == {"new_state": "success"}


async def test_a_mapped_marker_is_marked_alone(airflow: FakeAirflow) -> None:
    for map_index in range(3):
        airflow.add("dag", "run", "mapped", map_index=map_index)
    async with working(airflow) as line:
        await soon(line.mark(mark("mapped", map_index=1)))
    assert [airflow.find("dag", "run", "mapped", index).state for index in range(3)] == [None, "success", None]


async def test_marks_that_are_due_together_travel_together(airflow: FakeAirflow) -> None:
    async with working(airflow) as line:
        assert await mark_all(line, *map(mark, names(50))) == [None] * 50
    assert green(airflow) == 50
    assert sum(bulk_sizes(airflow)) >= 40
    assert max(bulk_sizes(airflow)) == MOST_PER_REQUEST
    assert len(airflow.requests) <= 5


async def test_marks_of_several_runs_travel_together_where_airflow_takes_them(airflow: FakeAirflow) -> None:
    async with working(airflow, workers=1) as line:
        await mark_all(line, *(mark(name, run_id) for name in names(5) for run_id in ("run", "other")))
    assert (green(airflow), green(airflow, "other")) == (5, 5)
    (request,) = airflow.requests
    assert request.url.path == "/api/v2/dags/~/dagRuns/~/taskInstances"


async def test_marks_of_several_runs_travel_apart_where_airflow_does_not(airflow: FakeAirflow) -> None:
    airflow.version = "3.1.0"
    async with working(airflow, workers=1, across_runs=False) as line:
        await mark_all(line, *(mark(name, run_id) for name in names(5) for run_id in ("run", "other")))
    assert (green(airflow), green(airflow, "other")) == (5, 5)
    assert sorted(request.url.path for request in airflow.requests) == [
        "/api/v2/dags/dag/dagRuns/other/taskInstances",
        "/api/v2/dags/dag/dagRuns/run/taskInstances",
    ]


async def test_what_is_in_that_state_already_is_marked(airflow: FakeAirflow) -> None:
    airflow.mark(airflow.find("dag", "run", "event_1"), "success")
    async with working(airflow) as line:
        assert await mark_all(line, mark("event_1")) == [None]
        assert await mark_all(line, *map(mark, names(5))) == [None] * 5
    assert green(airflow) == 5


@pytest.mark.parametrize("state", ["skipped", "failed"])
async def test_what_was_skipped_or_failed_before_a_restart_is_so_again(airflow: FakeAirflow, state: str) -> None:
    async with working(airflow) as line:
        for _ in range(2):
            assert await mark_all(line, mark("event_1")._replace(state=state)) == [None]
    assert airflow.find("dag", "run", "event_1").state == state


async def test_a_conflict_that_undid_the_mark_is_a_refusal(airflow: FakeAirflow) -> None:
    """Two who write a note at the same time: the database takes one of them, with all that came along."""
    airflow.refuse("PATCH", "event_1", 409, "Unique constraint violation")
    async with working(airflow) as line:
        (error,) = await mark_all(line, mark("event_1"))
    assert "409" in str(error)
    assert "Unique constraint violation" in str(error)


async def test_one_refusal_in_a_request_is_nobody_elses(airflow: FakeAirflow) -> None:
    async with working(airflow, workers=1) as line:
        results = await mark_all(line, *map(mark, ["event_0", "event_1", "nowhere", "event_2"]))
    assert [type(result) for result in results] == [type(None), type(None), AirflowApiError, type(None)]
    assert getattr(results[2], "status", None) == 404
    assert green(airflow) == 3
    assert bulk_sizes(airflow) == [4]


async def test_a_request_that_is_refused_as_a_whole_is_repeated_one_by_one(airflow: FakeAirflow) -> None:
    airflow.refuse("PATCH", "dags/~/", 403)
    async with working(airflow) as line:
        assert await mark_all(line, *map(mark, names(10))) == [None] * 10
    assert green(airflow) == 10


async def test_an_answer_that_names_fewer_than_were_asked_is_not_believed(airflow: FakeAirflow) -> None:
    real = airflow.handler

    def forgetful(request: httpx.Request) -> httpx.Response | Exception:
        if request.url.path.endswith("/taskInstances"):
            return answer(document={"update": {"success": ["dag.run.event_0[-1]"], "errors": []}})
        return real(request)

    airflow.handler = forgetful
    async with working(airflow, workers=1) as line:
        await mark_all(line, *map(mark, names(3)))
    assert green(airflow) == 3


@pytest.mark.parametrize("document", [None, [], {"update": None}, {"update": {"success": 7}}, "text"], ids=repr)
async def test_an_answer_that_nobody_has_foreseen_does_not_stop_the_line(
    airflow: FakeAirflow, document: object
) -> None:
    real = airflow.handler
    airflow.handler = lambda request: httpx.Response(200, json=document)
    async with working(airflow, workers=1) as line:
        await mark_all(line, *map(mark, names(3)))
        airflow.handler = real
        assert await mark_all(line, *map(mark, names(3))) == [None] * 3
    assert green(airflow) == 3


async def test_the_same_mark_twice_is_one(airflow: FakeAirflow) -> None:
    async with working(airflow, workers=1) as line:
        assert await mark_all(line, *map(mark, ["event_1", "event_2", "event_1"])) == [None] * 3
    assert bulk_sizes(airflow) == [2]
    assert len(airflow.requests) == 1


async def test_who_has_gone_is_not_marked(airflow: FakeAirflow) -> None:
    async with working(airflow, workers=1) as line:
        airflow.gate.clear()
        first = asyncio.ensure_future(line.mark(mark("event_0")))
        await idle()
        others = [asyncio.ensure_future(line.mark(mark(name))) for name in names(4)[1:]]
        await idle()
        others[1].cancel()
        await idle()
        airflow.gate.set()
        await soon(asyncio.gather(first, others[0], others[2]))
        assert others[1].cancelled()
    assert [airflow.find("dag", "run", name).state for name in names(4)] == ["success", "success", None, "success"]


async def test_a_worker_that_is_stopped_leaves_its_marks_in_the_line(airflow: FakeAirflow) -> None:
    async with airflow.api() as api:
        line = MarkingLine(api, across_runs=True)
        airflow.gate.clear()
        worker = asyncio.ensure_future(line.work())
        marks = asyncio.gather(*(line.mark(mark(name)) for name in names(3)))
        await idle()
        worker.cancel()
        await asyncio.wait({worker})
        assert not marks.done()
        airflow.gate.set()
        worker = asyncio.ensure_future(line.work())
        await soon(marks)
        worker.cancel()
        await asyncio.wait({worker})
    assert green(airflow) == 3


async def test_while_airflow_is_away_marks_wait(airflow: FakeAirflow) -> None:
    real = airflow.handler
    airflow.handler = lambda request: answer(503)
    async with working(airflow) as line:
        marks = asyncio.gather(*(line.mark(mark(name)) for name in names(30)))
        await airflow.clock.wait_for_sleepers()
        assert not marks.done()
        airflow.handler = real
        await airflow.pass_time(marks.done)
    assert green(airflow) == 30
