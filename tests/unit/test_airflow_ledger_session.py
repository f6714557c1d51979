"""What all groups share in a ledger: getting in, one look at what people have marked, and leaving nothing behind."""

from __future__ import annotations

import asyncio
import contextvars
import logging
from contextlib import AsyncExitStack
from dataclasses import replace
from datetime import timedelta
from typing import Any
from urllib.parse import quote

import pytest
from airflow.sdk.exceptions import AirflowRuntimeError, ErrorType
from airflow.sdk.execution_time import task_runner
from airflow.sdk.execution_time.comms import ErrorResponse, SetXCom

from event_triggers.airflow_book import ASK_AGAIN
from event_triggers.airflow_desk import Desk
from event_triggers.airflow_ledger import LOOK_EVERY, AirflowLedger
from event_triggers.errors import ConfigurationError
from event_triggers.ledger import Arrival, Book, Received
from tests.unit.api_kit import answer
from tests.unit.fake_airflow import GROUP, MARKERS, World
from tests.unit.hub_kit import idle, soon


@pytest.fixture
def world() -> World:
    return World()


def arrival(event: str, identity: str = "a", *, wanted: int = 1) -> Arrival:
    return Arrival(
        event, (Received("sqs", "q", "1", identity, None, "t", payload={"id": identity}, note="note"),), wanted
    )


async def look(world: World) -> None:
    """Let the time of the next look come, and pass."""
    await idle()
    world.airflow.clock.advance(LOOK_EVERY)
    for _ in range(5):
        await idle()


async def marked(book: Book) -> dict[str, str]:
    return await soon(book.marked())


async def nothing_marked(book: Book) -> bool:
    waiting = asyncio.ensure_future(book.marked())
    await idle()
    waiting.cancel()
    await asyncio.wait({waiting})
    return waiting.cancelled()


# ------------------------------------------------------------------ marks made by hand


async def test_what_people_mark_is_seen(world: World) -> None:
    async with world.book() as book:
        world.airflow.mark(world.marker("orders"), "success")
        world.airflow.mark(world.marker("stock"), "skipped")
        await look(world)
        assert await marked(book) == {"orders": "success", "stock": "skipped"}
        await look(world)
        assert await nothing_marked(book), "a state is told once"
        world.airflow.mark(world.marker("stock"), "failed")
        await look(world)
        assert await marked(book) == {"stock": "failed"}


async def test_what_was_marked_before_is_loaded_and_not_told_again(world: World) -> None:
    world.airflow.mark(world.marker("orders"), "success")
    async with world.book() as book:
        assert (await soon(book.load()))["orders"] == "success"
        await look(world)
        assert await nothing_marked(book)


async def test_what_the_group_has_recorded_was_not_marked_by_hand(world: World) -> None:
    async with world.book() as book:
        await soon(book.record([arrival("orders")]))
        await look(world)
        assert await nothing_marked(book)


async def test_one_look_serves_all_groups(world: World) -> None:
    groups = [replace(GROUP, run_id=f"run {number}") for number in range(30)]
    for group in groups:
        world.airflow.add(group.dag_id, group.run_id, *MARKERS.values())
    async with AsyncExitStack() as stack:
        books = [await stack.enter_async_context(world.book(group)) for group in groups]
        for one in world.airflow.instances:
            if one.operator == "EventMarker":
                world.airflow.mark(one, "success")
        before = world.airflow.asked("GET", "taskInstances")
        await look(world)
        assert world.airflow.asked("GET", "taskInstances") == before + 1, "93 markers are one page"
        for book in books:
            assert await marked(book) == dict.fromkeys(MARKERS, "success")


async def test_many_markers_are_read_page_by_page(world: World) -> None:
    world.airflow.add(GROUP.dag_id, GROUP.run_id, *(f"other_{number}" for number in range(250)))
    orders = world.marker("orders")
    world.airflow.instances.remove(orders)
    world.airflow.instances.append(orders)
    async with world.book() as book:
        for one in world.airflow.instances:
            world.airflow.mark(one, "success")
        await look(world)
        assert set(await marked(book)) == set(MARKERS)
        assert (await soon(book.load()))["orders"] == "success"


async def test_where_thousands_have_changed_the_runs_that_wait_are_asked_for(world: World) -> None:
    """Those are our own marks, as when all groups complete at the same moment."""
    world.airflow.add("other", "run", *(f"other_{number}" for number in range(1001)))
    async with world.book() as book:
        for one in world.airflow.instances:
            world.airflow.mark(one, "success")
        before = world.airflow.asked("GET", "taskInstances")
        await look(world)
        assert set(await marked(book)) == set(MARKERS)
        assert world.airflow.asked("GET", "taskInstances") == before + 2
        # And it goes back less far than usual for what it would only find again: once, and not six times.
        for _ in range(3):
            await look(world)
        assert world.airflow.asked("GET", "taskInstances") == before + 2 + 2 + 1 + 1
        # Somebody whose clock is late marks by hand: found when the crowd is over, a minute after it was last seen.
        late = world.marker("stock")
        world.airflow.mark(late, "failed")
        assert late.updated_at is not None
        late.updated_at -= timedelta(minutes=10)
        for _ in range(3):
            await look(world)
        assert await nothing_marked(book)
        await look(world)
        assert await marked(book) == {"stock": "failed"}


async def test_who_has_marks_to_make_looks_later(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    async with world.book() as book:
        with monkeypatch.context() as patch:
            patch.setattr(Desk, "busy", True)
            world.airflow.mark(world.marker("orders"), "success")
            for _ in range(5):
                await look(world)
            assert await nothing_marked(book)
            await look(world)
            assert await marked(book) == {"orders": "success"}, "but not for ever"
            world.airflow.mark(world.marker("stock"), "skipped")
            await look(world)
            assert await nothing_marked(book)
        await look(world)
        assert await marked(book) == {"stock": "skipped"}


async def test_only_what_has_changed_lately_is_asked_for(world: World) -> None:
    async with world.book():
        await look(world)
        await look(world)
    asked = [r for r in world.airflow.requests if r.url.path.startswith("/api/v2/dags/~/dagRuns/~/")]
    assert [request.url.params["updated_at_gte"] for request in asked] == [
        "2029-12-31T23:59:00+00:00",
        "2029-12-31T23:59:10+00:00",
    ]
    assert asked[0].url.params.get_list("state") == ["success", "failed", "skipped", "removed"]


async def test_who_may_not_look_over_all_dags_asks_for_each_run(world: World) -> None:
    world.airflow.refuse("GET", "dags/~/", 403)
    async with world.book() as book:
        world.airflow.mark(world.marker("orders"), "success")
        await look(world)
        assert await marked(book) == {"orders": "success"}
        await look(world)
        assert await nothing_marked(book)
    assert world.airflow.asked("GET", "dags/~/") == 1


async def test_where_airflow_cannot_stand_one_look_for_all_each_run_is_asked_for(world: World) -> None:
    """Over very many task instances the database may give up; the next look is one for all again."""
    world.airflow.refuse("GET", "dags/~/", 500)
    async with world.book() as book:
        world.airflow.mark(world.marker("orders"), "success")
        waiting = asyncio.ensure_future(book.marked())
        for _ in range(20):
            await soon(book.received("stock"))
            await look(world)
        assert await soon(waiting) == {"orders": "success"}
        world.airflow.refusals.clear()
        world.airflow.mark(world.marker("stock"), "success")
        each = ("GET", f"dags/{GROUP.dag_id}/dagRuns/{quote(GROUP.run_id)}/taskInstances")
        asked = world.airflow.answered.count(each)
        assert asked > 1
        await look(world)
        await look(world)
        assert await marked(book) == {"stock": "success"}
        assert world.airflow.answered.count(each) == asked


async def test_who_may_not_look_at_all_is_told_once(world: World) -> None:
    async with world.book() as book:
        world.airflow.refuse("GET", "taskInstances", 403)
        for _ in range(3):
            await look(world)
        (said,) = world.said(logging.WARNING)
        assert said.startswith("marks made by hand are not seen, because Airflow answered 403")
        world.airflow.refusals.clear()
        world.airflow.mark(world.marker("orders"), "success")
        await look(world)
        assert await marked(book) == {"orders": "success"}


@pytest.mark.parametrize("document", [{}, [], {"task_instances": [{}], "total_entries": 1}], ids=repr)
async def test_an_answer_that_nobody_has_foreseen_does_not_end_the_looks(
    world: World, document: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async with world.book() as book:
        real = world.airflow.handler
        world.airflow.handler = lambda request: answer(200, document)
        await look(world)
        assert "the states of markers could not be read" in caplog.text
        world.airflow.handler = real
        world.airflow.mark(world.marker("orders"), "success")
        await look(world)
        assert await marked(book) == {"orders": "success"}
        await soon(book.record([arrival("stock")]))


async def test_a_look_while_airflow_is_away_is_made_up_for(world: World) -> None:
    async with world.book() as book:
        real = world.airflow.handler
        world.airflow.handler = lambda request: answer(503)
        world.airflow.mark(world.marker("orders"), "success")
        await look(world)
        world.airflow.clock.advance(600)
        await idle()
        world.airflow.handler = real
        waiting = asyncio.ensure_future(book.marked())
        await world.airflow.pass_time(waiting.done)
        assert await waiting == {"orders": "success"}


# ------------------------------------------------------------------ getting in, and leaving


async def test_nothing_runs_before_the_first_group_and_after_the_last(world: World) -> None:
    def running() -> set[str]:
        return {task.get_name() for task in asyncio.all_tasks()}

    before = running()
    async with world.book(), world.book():
        assert running() - before == {
            "event_triggers: ledger",
            "event_triggers: marking route 0",
            "event_triggers: marking route 1",
            "event_triggers: marks 0",
            "event_triggers: marks 1",
            "event_triggers: markers",
            "event_triggers: marks made by hand",
        }
        assert world.airflow.asked("GET", "version") == 1
    await idle()
    assert running() == before
    async with world.book() as book:
        await soon(book.record([arrival("orders")]))
    assert world.airflow.asked("GET", "version") == 2


async def test_credentials_may_be_corrected_while_groups_wait(world: World) -> None:
    world.airflow.tokens = lambda request: answer(401)

    async def use() -> None:
        async with world.book():
            pass

    groups = asyncio.gather(*(use() for _ in range(5)))
    await world.airflow.clock.wait_for_sleepers(5)
    assert len(world.airflow.token_requests) == 1, "however many wait, Airflow is asked once"
    assert "refused the login of user 'marker'" in str(world.shared.trouble)
    for _ in range(2):
        world.airflow.clock.advance(ASK_AGAIN)
        await idle()
    said = world.said(logging.ERROR)
    assert len(said) == 5, "each group's log says it, once"
    assert said[0].endswith("Tried again every 30 s.")
    world.airflow.tokens = None
    await world.airflow.pass_time(groups.done, step=ASK_AGAIN)


async def test_every_group_that_waits_is_told_that_airflow_is_away(world: World) -> None:
    real = world.airflow.handler
    world.airflow.handler = lambda request: answer(503)

    async def use() -> None:
        async with world.book():
            pass

    groups = asyncio.gather(use(), use())
    await world.airflow.pass_time(lambda: len(world.log) >= 2)
    assert world.said(logging.WARNING) == ["Airflow's API at http://airflow answers 503; what arrives waits for it"] * 2
    world.airflow.handler = real
    await world.airflow.pass_time(groups.done)


async def test_who_is_cancelled_while_getting_in_leaves_the_door_open(world: World) -> None:
    async def use(event: str) -> None:
        async with world.book() as book:
            await book.record([arrival(event)])

    world.airflow.gate.clear()
    first, second = asyncio.ensure_future(use("orders")), asyncio.ensure_future(use("stock"))
    await idle()
    first.cancel()
    await asyncio.wait({first})
    world.airflow.gate.set()
    await soon(second)
    assert (world.marker("orders").state, world.marker("stock").state) == (None, "success")


async def test_what_cannot_be_mended_by_waiting_is_raised(world: World) -> None:
    async def make_api() -> Any:
        raise ConfigurationError("the connection 'x' names no host")

    with pytest.raises(ConfigurationError, match="names no host"):
        async with AirflowLedger(make_api, clock=world.airflow.clock).open(GROUP, MARKERS, lambda *_: None):
            pass


@pytest.mark.parametrize("version", ["", "dev", "3"])
async def test_an_api_without_a_version_is_refused(world: World, version: str) -> None:
    world.airflow.version = version
    with pytest.raises(ConfigurationError, match="which is none"):
        async with world.book():
            pass


async def test_each_group_is_told_in_its_own_context(world: World) -> None:
    """Airflow finds a task's log by context variables, so that is where a text must be written."""
    name = contextvars.ContextVar("name", default="nobody")
    told: list[str] = []

    async def use(group: str) -> None:
        name.set(group)
        async with world.shared.open(GROUP, MARKERS, lambda *_: told.append(name.get())) as book:
            await book.record([arrival("orders")])

    real = world.airflow.handler
    async with world.book():
        world.airflow.handler = lambda request: answer(503)
        groups = asyncio.gather(use("one"), use("two"))
        await world.airflow.pass_time(lambda: len(told) >= 2)
        assert sorted(told) == ["one", "two"]
        world.airflow.handler = real
        await world.airflow.pass_time(groups.done)


# ------------------------------------------------------------------ Airflow 3.1


class Supervisor:
    """Takes XComs as the supervisor of a triggerer does."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.refuses = False

    async def asend(self, message: SetXCom) -> None:
        if self.refuses:
            raise AirflowRuntimeError(ErrorResponse(error=ErrorType.API_SERVER_ERROR, detail={"message": "away"}))
        index = -1 if message.map_index is None else message.map_index
        marker = self.world.airflow.find(message.dag_id, message.run_id, message.task_id, index)
        marker.xcoms[message.key] = message.value


async def test_airflow_3_1_is_given_xcoms_through_the_supervisor(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.airflow.version = "3.1.0"
    supervisor = Supervisor(world)
    monkeypatch.setattr(task_runner, "SUPERVISOR_COMMS", supervisor, raising=False)
    async with world.book() as book:
        await soon(book.record([arrival("orders"), arrival("shifts", wanted=2), arrival("stock")]))
        supervisor.refuses = True
        recording = asyncio.ensure_future(book.record([arrival("shifts", "b", wanted=2)]))
        await world.airflow.clock.wait_for_sleepers(2)
        assert "Airflow did not take XCom" in str(book.trouble)
        supervisor.refuses = False
        await world.airflow.pass_time(recording.done)
    assert world.marker("orders").xcoms["return_value"] == {"id": "a"}
    assert world.marker("shifts").xcoms["return_value"] == [{"id": "a"}, {"id": "b"}]
    assert [world.marker(event).state for event in MARKERS] == ["success"] * 3
    assert world.airflow.asked("POST") == world.airflow.asked("PATCH", "xcomEntries") == 0


async def test_a_task_that_is_newer_than_its_run_is_given_xcoms_through_the_supervisor(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.airflow.refuse("POST", "inputs.orders/", 404, "Task with ID: `inputs.orders` not found in dag: `dag`")
    supervisor = Supervisor(world)
    monkeypatch.setattr(task_runner, "SUPERVISOR_COMMS", supervisor, raising=False)
    async with world.book() as book:
        await soon(book.record([arrival("orders", "a", wanted=2)]))
        await soon(book.record([arrival("orders", "b", wanted=2), arrival("stock")]))
    assert world.marker("orders").xcoms["return_value"] == [{"id": "a"}, {"id": "b"}]
    assert [one["id"] for one in world.marker("orders").xcoms["event"]["messages"]] == ["a", "b"]
    assert world.marker("orders").state == "success"


async def test_a_task_that_is_in_neither_is_waited_for(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.airflow.refuse("POST", "inputs.orders/", 404, "Task with ID: `inputs.orders` not found in dag: `dag`")
    world.airflow.instances.remove(world.marker("orders"))
    monkeypatch.setattr(task_runner, "SUPERVISOR_COMMS", None, raising=False)  # not to be asked
    async with world.book() as book:
        recording = asyncio.ensure_future(book.record([arrival("orders")]))
        await soon(world.airflow.clock.wait_for_sleepers(2))
        assert "The Task Instance with task_id" in str(book.trouble)
        recording.cancel()
        await asyncio.wait({recording})


async def test_airflow_3_1_outside_a_triggerer(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.airflow.version = "3.1.0"
    monkeypatch.delattr(task_runner, "SUPERVISOR_COMMS", raising=False)
    async with world.book() as book:
        recording = asyncio.ensure_future(book.record([arrival("orders")]))
        await world.airflow.clock.wait_for_sleepers(2)
        assert "in a triggerer only" in str(book.trouble)
        recording.cancel()
        await asyncio.wait({recording})
