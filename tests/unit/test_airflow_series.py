"""What a marker that awaits several messages holds, whoever records them, at the same time or after a crash."""

from __future__ import annotations

import asyncio
import logging
import random

import anyio
import httpx
import pytest

from event_triggers.airflow_api import AirflowApi, ApiSettings
from event_triggers.airflow_ledger import AirflowLedger
from event_triggers.ledger import Arrival, Book, Received
from tests.unit.api_kit import answer
from tests.unit.fake_airflow import TaskInstance, World
from tests.unit.hub_kit import idle, soon


def received(identity: str) -> Received:
    return Received("sqs", "stock", f"pos {identity}", identity, None, "t", payload={"id": identity}, note=identity)


def arrival(*identities: str, wanted: int = 3) -> Arrival:
    return Arrival("shifts", tuple(map(received, identities)), wanted)


def held_in(marker: TaskInstance) -> list[str]:
    """The ids in its facts, which are those of its payloads, in the same order."""
    payloads = [one["id"] for one in marker.xcoms["return_value"]]
    assert [one["id"] for one in marker.xcoms["event"]["messages"]] == payloads
    return payloads


async def record(book: Book, arrival: Arrival) -> list[str]:
    return [one.id for one in (await soon(book.record([arrival])))["shifts"]]


@pytest.fixture(params=[False, True], ids=["public", "route"])
def world(request: pytest.FixtureRequest) -> World:
    return World(route=request.param)


def triggerer(world: World, rng: random.Random) -> AirflowLedger:
    """A ledger of its own, each of whose requests takes effect some rounds of the event loop later."""

    async def take(request: httpx.Request) -> httpx.Response:
        for _ in range(rng.randrange(8)):
            await asyncio.sleep(0)
        response = world.airflow.take(request)
        for _ in range(rng.randrange(8)):
            await asyncio.sleep(0)
        return response if isinstance(response, httpx.Response) else await response

    async def make_api() -> AirflowApi:
        settings = ApiSettings("http://airflow", login="marker", password="s3cret", origin="the test")
        return AirflowApi(settings, clock=world.airflow.clock, transport=httpx.MockTransport(take))

    return AirflowLedger(make_api, clock=world.airflow.clock)


@pytest.mark.parametrize("seed", range(40))
async def test_what_either_says_it_holds_is_there_in_the_end(world: World, seed: int) -> None:
    rng = random.Random(seed)
    wanted = rng.randrange(2, 6)
    messages = [f"m{number}" for number in range(wanted)]
    said: set[str] = set()

    async def record_all(own: list[str]) -> None:
        async with world.book(ledger=triggerer(world, rng)) as book:
            for identity in own:
                if identity in await record(book, arrival(identity, wanted=wanted)):
                    said.add(identity)

    # A queue gives each message to one of them, a log gives both the same.
    shared = rng.random() < 0.3
    first = messages if shared else messages[::2]
    second = messages if shared else messages[1::2]
    async with anyio.create_task_group() as group:
        group.start_soon(record_all, first)
        group.start_soon(record_all, second)

    assert said == set(messages)
    marker = world.marker("shifts")
    assert marker.state == "success"
    assert sorted(held_in(marker)) == messages


@pytest.mark.parametrize("ids", [("m.7", "m.(?)"), ("m.(?)", "m.7"), ("m", "m.(?)")])
async def test_one_message_under_two_ids_counts_once(world: World, ids: tuple[str, str]) -> None:
    """Both triggerers have it, and only one can know the end of its id."""
    ledger = triggerer(world, random.Random(0))
    async with world.book() as first, world.book(ledger=ledger) as second:
        assert await record(first, arrival("a")) == ["a"]
        assert await record(second, arrival("a")) == ["a"]
        assert await record(first, arrival(ids[0])) == ["a", ids[0]]
        assert await record(second, arrival(ids[1])) == ["a", ids[0]]
        assert await record(second, arrival("b")) == ["a", ids[0], "b"]
    assert held_in(world.marker("shifts")) == ["a", ids[0], "b"]


async def test_what_was_appended_before_a_crash_is_listed_when_it_comes_again(world: World) -> None:
    """Only the public way can be cut off in between: over the route both are written in one transaction."""
    world.airflow.refuse("POST", "event-triggers/marks", 403)
    async with world.book() as book:
        await record(book, arrival("a"))
        marker = world.marker("shifts")
        world.airflow.refuse("PATCH", "xcomEntries", 403)
        recording = asyncio.ensure_future(book.record([arrival("b")]))
        await idle()
        recording.cancel()
        await asyncio.wait({recording})
    assert held_in(marker) == ["a"]
    world.airflow.refusals.clear()
    async with world.book(ledger=world.airflow.ledger()) as book:
        assert await record(book, arrival("c")) == ["a", "b", "c"]
        assert await record(book, arrival("b")) == ["a", "b", "c"]
    assert held_in(marker) == ["a", "b", "c"]
    assert marker.state == "success"


@pytest.mark.parametrize("before", [["a"], []], ids=["some were listed", "none was"])
async def test_a_later_try_knows_what_was_appended_and_not_listed(world: World, before: list[str]) -> None:
    """Else a broker that names a message anew when it comes again would have it counted twice."""
    async with world.book() as book:
        for identity in (*before, "b"):
            await record(book, arrival(identity))
    xcoms = world.marker("shifts").xcoms
    if before:
        del xcoms["event"]["messages"][len(before) :], xcoms["return_value"][len(before) :]
    else:
        del xcoms["event"], xcoms["return_value"]
    async with world.book(ledger=world.airflow.ledger()) as book:
        await soon(book.load())
        assert [one.id for one in await soon(book.received("shifts"))] == [*before, "b"]
        assert await record(book, arrival("c", "d")) == [*before, "b", "c", "d"][:3]
    assert held_in(world.marker("shifts")) == [*before, "b", "c", "d"][:3]


async def test_a_list_that_somebody_else_wrote_shorter_is_written_whole_again(world: World) -> None:
    async with world.book() as book:
        await record(book, arrival("a", "b", wanted=4))
        world.marker("shifts").xcoms["return_value"] = [{"id": "a"}]
        await record(book, arrival("c", wanted=4))
    assert held_in(world.marker("shifts")) == ["a", "b", "c"]


def large(identity: str, size: int) -> Received:
    return Received("sqs", "stock", f"pos {identity}", identity, None, "t", payload=identity * size)


def refuse_larger(world: World, most: int) -> None:
    """From now on requests of more bytes are refused, as by a proxy."""
    real = world.airflow.handler
    too_large = answer(413, {"detail": "Request Entity Too Large"})
    world.airflow.handler = lambda request: real(request) if len(request.content) < most else too_large


async def test_payloads_that_are_too_much_together_are_left_out(world: World) -> None:
    """Where the route does not take them together, they go the public way, one by one."""
    refuse_larger(world, 1200)
    async with world.book() as book:
        await record(book, Arrival("shifts", (large("a", 300),), 3))
        await record(book, Arrival("shifts", (large("b", 700), large("c", 700)), 3))
    marker = world.marker("shifts")
    first, *others = marker.xcoms["return_value"]
    assert first == "a" * 300
    assert [one["position"] for one in others] == ["pos b", "pos c"]
    assert [one["id"] for one in marker.xcoms["event"]["messages"]] == ["a", "b", "c"]
    assert marker.state == "success"
    for said, identity in zip(world.said(logging.ERROR), "bc", strict=True):
        assert f"event shifts: the payload of sqs stock pos {identity} is left out" in said


async def test_over_the_route_what_comes_one_by_one_is_never_too_much_together() -> None:
    """Each travels once, and the lists are written where they are."""
    world = World(route=True)
    refuse_larger(world, 1200)
    async with world.book() as book:
        for identity in "abc":
            await record(book, Arrival("shifts", (large(identity, 700),), 3))
    marker = world.marker("shifts")
    assert marker.xcoms["return_value"] == ["a" * 700, "b" * 700, "c" * 700]
    assert marker.state == "success"
    assert world.said(logging.ERROR) == []


async def test_a_cleared_marker_goes_on_with_what_it_has(world: World) -> None:
    """A wait that timed out is cleared; its markers have another id then."""
    async with world.book() as book:
        await record(book, arrival("a"))
    world.airflow.clear(world.marker("shifts"))
    async with world.book(ledger=world.airflow.ledger()) as book:
        assert await record(book, arrival("b", "c")) == ["a", "b", "c"]
    assert held_in(world.marker("shifts")) == ["a", "b", "c"]
