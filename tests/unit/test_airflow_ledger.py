"""Recording in an Airflow: what is stored where, in which order, and what is kept of what was there before."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from typing import Any

import httpx
import pytest

from event_triggers.airflow_book import ASK_AGAIN
from event_triggers.ledger import Arrival, Book, Received
from tests.unit.api_kit import answer
from tests.unit.fake_airflow import GROUP, MARKERS, TaskInstance, World
from tests.unit.hub_kit import idle, soon

EVENTS = tuple(MARKERS)


@pytest.fixture(params=[False, True], ids=["public", "route"])
def world(request: pytest.FixtureRequest) -> World:
    return World(route=request.param)


def received(identity: str, payload: Any = "default") -> Received:
    payload = {"id": identity} if payload == "default" else payload
    return Received("sqs", "stock", f"pos {identity}", identity, None, "t", payload=payload, note=f"note {identity}")


def arrival(event: str, *identities: str, wanted: int = 1) -> Arrival:
    return Arrival(event, tuple(received(one) for one in identities), wanted)


async def record(book: Book, *arrivals: Arrival) -> dict[str, list[str]]:
    held = await soon(book.record(arrivals))
    return {event: [one.id for one in ones] for event, ones in held.items()}


def ids(marker: TaskInstance) -> list[str]:
    return [one["id"] for one in marker.xcoms["event"]["messages"]]


# ------------------------------------------------------------------ recording


async def test_payload_and_facts_are_stored_and_the_marker_is_marked(world: World) -> None:
    async with world.book() as book:
        assert await record(book, arrival("orders", "a")) == {"orders": ["a"]}
    marker = world.marker("orders")
    assert marker.state == "success"
    assert marker.note == "note a"
    assert marker.xcoms == {
        "return_value": {"id": "a"},
        "event": {"wanted": 1, "round": marker.id, "messages": [received("a").facts()]},
    }
    writes = [path.rpartition("taskInstances/")[2] for method, path in world.airflow.answered if method != "GET"]
    writes = [path for path in writes if path != "/event-triggers/markers"]  # which only reads
    in_order = ["inputs.orders/xcomEntries", "inputs.orders/xcomEntries", "inputs.orders"]
    assert writes == (["/event-triggers/marks"] if world.airflow.route else in_order)


async def test_several_events_at_once(world: World) -> None:
    async with world.book() as book:
        await record(book, *(arrival(event, event) for event in EVENTS))
    assert [world.marker(event).state for event in EVENTS] == ["success"] * 3
    assert world.airflow.most_in_flight <= 4


async def test_messages_add_up_until_there_are_enough(world: World) -> None:
    async with world.book() as book:
        assert await record(book, arrival("shifts", "a", wanted=3)) == {"shifts": ["a"]}
        marker = world.marker("shifts")
        assert (marker.state, marker.note, marker.xcoms["return_value"]) == (None, "note a", [{"id": "a"}])
        await record(book, arrival("shifts", "b", "c", wanted=3))
    assert (marker.state, marker.note) == ("success", "note c")
    assert marker.xcoms["return_value"] == [{"id": "a"}, {"id": "b"}, {"id": "c"}]
    assert ids(marker) == ["a", "b", "c"]


async def test_twice_is_the_same_as_once(world: World) -> None:
    async with world.book() as book:
        await record(book, arrival("orders", "a"), arrival("shifts", "a", wanted=2))
        await record(book, arrival("orders", "a"), arrival("shifts", "a", "b", wanted=2))
    assert ids(world.marker("orders")) == ["a"]
    assert world.marker("shifts").xcoms["return_value"] == [{"id": "a"}, {"id": "b"}]


@pytest.mark.parametrize("payload", [None, 0, "", "text", '{"a": 1}', "12", [1, 2], {"value": None}], ids=repr)
async def test_any_payload_is_stored_as_it_is(world: World, payload: object) -> None:
    async with world.book() as book:
        await record(book, Arrival("orders", (received("a", payload),), 1))
        await record(book, Arrival("shifts", (received("a", payload),), 2))
        await record(book, Arrival("shifts", (received("b", payload),), 2))
    assert world.marker("orders").xcoms["return_value"] == payload
    assert world.marker("shifts").xcoms["return_value"] == [payload, payload]


async def test_a_payload_with_reserved_keys_is_stored_as_text(world: World) -> None:
    async with world.book() as book:
        await record(book, Arrival("orders", (received("a", {"__classname__": "os.system"}),), 1))
        await record(book, arrival("shifts", "a", wanted=3))
        await record(book, Arrival("shifts", (received("b", {"x": [{"__type": 1}]}), received("c")), 3))
    payload = world.marker("orders").xcoms["return_value"]
    assert payload["payload_as_text"] == 'json:{"__classname__":"os.system"}'
    assert "reserved serialization keys" in payload["refused"]
    first, second, third = world.marker("shifts").xcoms["return_value"]
    assert first == {"id": "a"}, "what was stored before stays as it is"
    assert third == {"id": "c"}, "so does what came together with it"
    assert second["payload_as_text"] == 'json:{"x":[{"__type":1}]}'
    assert world.marker("orders").state == world.marker("shifts").state == "success"
    first_line, second_line = world.said(logging.WARNING)
    assert "event orders: the payload of sqs stock pos a is stored as text, not as it came" in first_line
    assert "event shifts: the payload of sqs stock pos b is stored as text, not as it came" in second_line


async def test_a_payload_that_a_proxy_finds_too_large_is_left_out(world: World) -> None:
    real = world.airflow.handler
    too_large = answer(413, {"detail": "Request Entity Too Large"})
    world.airflow.handler = lambda request: real(request) if len(request.content) < 800 else too_large
    async with world.book() as book:
        await record(book, Arrival("orders", (received("a", "x" * 1000),), 1))
    left = world.marker("orders").xcoms["return_value"]
    assert {**left, "refused": ""} == {"refused": "", "source": "sqs", "stream": "stock", "position": "pos a"}
    assert "Request Entity Too Large" in left["refused"]
    assert world.marker("orders").state == "success"
    assert "event orders: the payload of sqs stock pos a is left out" in world.said(logging.ERROR)[0]


@pytest.mark.parametrize("even_as_text", [False, True])
async def test_a_payload_over_which_airflow_fails_does_not_hold_up_its_group(world: World, even_as_text: bool) -> None:
    """Its database refuses it, or a plugin does: 500 for this one, while all else is well."""
    real = world.airflow.handler

    def fail_over(request: httpx.Request) -> httpx.Response | Exception:
        bad = b"poison" in request.content and (even_as_text or b"payload_as_text" not in request.content)
        return answer(500, {"detail": "Internal Server Error"}) if bad else real(request)

    world.airflow.handler = fail_over
    async with world.book() as book:
        recording = asyncio.ensure_future(
            book.record([Arrival("shifts", (received("a"), received("b", "poison"), received("c")), 3)])
        )
        await world.airflow.pass_time(recording.done, step=5)
        assert [one.id for one in recording.result()["shifts"]] == ["a", "b", "c"]
    marker = world.marker("shifts")
    assert marker.state == "success"
    before, bad, after = marker.xcoms["return_value"]
    assert (before, after) == ({"id": "a"}, {"id": "c"})
    assert bad.get("payload_as_text") == (None if even_as_text else 'json:"poison"')
    assert "500" in bad["refused"]
    assert "event shifts: the payload of sqs stock pos b is " in world.said(logging.ERROR)[0]
    assert ids(marker) == ["a", "b", "c"]


async def test_while_airflow_fails_over_everything_nothing_is_changed(world: World) -> None:
    """An outage is no refusal: the payload is stored as it came when it is over."""
    real, out = world.airflow.handler, True
    world.airflow.handler = lambda request: answer(500, {"detail": "no database"}) if out else real(request)
    out = False
    async with world.book() as book:
        out = True
        recording = asyncio.ensure_future(book.record([arrival("orders", "a")]))
        for _ in range(30):
            world.airflow.clock.advance(20)
            await idle()
        assert not recording.done()
        out = False
        await world.airflow.pass_time(recording.done, step=20)
    assert world.marker("orders").xcoms["return_value"] == {"id": "a"}
    assert not [line for line in world.said(logging.ERROR) if "payload" in line]


# ------------------------------------------------------------------ what was there before


async def test_what_the_last_try_has_recorded_is_read_back(world: World) -> None:
    async with world.book() as book:
        await record(book, arrival("shifts", "a", "b", wanted=3))
    async with world.book(ledger=world.airflow.ledger()) as book:
        held = await soon(book.received("shifts"))
        assert [one.id for one in held] == ["a", "b"]
        assert held == tuple(replace(received(one), payload=None, note="") for one in "ab")
        assert await soon(book.received("orders")) == ()
        await record(book, arrival("shifts", "b", "c", wanted=3))
    assert world.marker("shifts").xcoms["return_value"] == [{"id": "a"}, {"id": "b"}, {"id": "c"}]


async def test_what_is_complete_but_not_marked_is_marked(world: World) -> None:
    async with world.book() as book:
        world.airflow.refuse("PATCH", "taskInstances", 403)
        world.airflow.refuse("POST", "event-triggers", 403)
        recording = asyncio.ensure_future(book.record([arrival("shifts", "a", "b", wanted=2)]))
        await world.airflow.clock.wait_for_sleepers(2)
        recording.cancel()
        await asyncio.wait({recording})
    world.airflow.refusals.clear()
    assert world.marker("shifts").state is None
    async with world.book() as book:
        assert await record(book, arrival("shifts", wanted=2)) == {"shifts": ["a", "b"]}
    assert world.marker("shifts").state == "success"
    assert world.marker("shifts").note == "sqs stock pos b (2 of 2), t"


async def test_a_recording_that_was_cut_off_between_payload_and_facts(world: World) -> None:
    async with world.book() as book:
        await record(book, arrival("shifts", "a", wanted=3))
    marker = world.marker("shifts")
    marker.xcoms["return_value"] = [{"id": "a"}, {"id": "lost"}]
    world.marker("orders").xcoms["return_value"] = {"id": "lost"}
    async with world.book(ledger=world.airflow.ledger()) as book:
        await record(book, arrival("shifts", "b", wanted=3), arrival("orders", "b"))
    assert marker.xcoms["return_value"] == [{"id": "a"}, {"id": "b"}]
    assert world.marker("orders").xcoms["return_value"] == {"id": "b"}


async def test_a_cleared_marker_begins_anew(world: World) -> None:
    async with world.book() as book:
        await record(book, arrival("orders", "a"), arrival("shifts", "a", "b", wanted=2))
    for event in ("orders", "shifts"):
        world.airflow.clear(world.marker(event))
    async with world.book() as book:
        assert await soon(book.received("shifts")) == ()
        assert await record(book, arrival("orders", "c"), arrival("shifts", "c", wanted=2)) == {
            "orders": ["c"],
            "shifts": ["c"],
        }
    assert world.marker("orders").xcoms["return_value"] == {"id": "c"}
    assert world.marker("shifts").xcoms["return_value"] == [{"id": "c"}]
    assert (world.marker("orders").state, world.marker("shifts").state) == ("success", None)


async def test_an_incomplete_marker_that_is_cleared_keeps_what_it_holds(world: World) -> None:
    async with world.book() as book:
        await record(book, arrival("shifts", "a", wanted=2))
    world.airflow.clear(world.marker("shifts"))
    async with world.book() as book:
        assert [one.id for one in await soon(book.received("shifts"))] == ["a"]
        assert await record(book, arrival("shifts", "b", wanted=2)) == {"shifts": ["a", "b"]}
    assert world.marker("shifts").xcoms["event"]["round"] == world.marker("shifts").id


async def test_what_another_wait_of_the_group_has_recorded_is_kept(world: World) -> None:
    """The other one may be in another triggerer: what it writes is read before it is replaced."""
    async with world.book() as book, world.book(ledger=world.airflow.ledger()) as other:
        await record(book, arrival("shifts", "a", wanted=3), arrival("orders", "a"))
        held = await record(other, arrival("shifts", "b", wanted=3), arrival("orders", "b"))
        assert held == {"shifts": ["a", "b"], "orders": ["a"]}, "the second order finds no room"
        assert await record(book, arrival("shifts", "c", "d", wanted=3)) == {"shifts": ["a", "b", "c"]}
    assert world.marker("shifts").xcoms["return_value"] == [{"id": "a"}, {"id": "b"}, {"id": "c"}]
    assert world.marker("orders").xcoms["return_value"] == {"id": "a"}


async def test_two_waits_of_a_group_in_one_triggerer_write_one_after_the_other(world: World) -> None:
    async with world.book() as book, world.book() as other:
        await record(book, arrival("shifts", "a", wanted=9))
        await asyncio.gather(
            *(record(one, arrival("shifts", name, wanted=9)) for one, name in [(book, "b"), (other, "c"), (book, "d")])
        )
    assert sorted(ids(world.marker("shifts"))) == ["a", "b", "c", "d"]


async def test_facts_that_somebody_removed_are_written_again(world: World) -> None:
    async with world.book() as book:
        await record(book, arrival("shifts", "a", wanted=3))
        for name in ("event", "return_value"):
            del world.marker("shifts").xcoms[name]
        assert await record(book, arrival("shifts", "b", wanted=3)) == {"shifts": ["a", "b"]}
    assert world.marker("shifts").xcoms["return_value"] == [{"id": "a"}, {"id": "b"}]
    assert ids(world.marker("shifts")) == ["a", "b"]


async def test_the_markers_of_one_map_index(world: World) -> None:
    group = replace(GROUP, map_index=1)
    for map_index in range(3):
        world.airflow.add(GROUP.dag_id, GROUP.run_id, *MARKERS.values(), map_index=map_index)
    async with world.book(group) as book:
        await record(book, arrival("orders", "a"))
        await record(book, arrival("shifts", "a", wanted=2))
        assert [one.id for one in await soon(book.received("orders"))] == ["a"]
    for map_index in range(-1, 3):
        marker = world.airflow.find(GROUP.dag_id, GROUP.run_id, "inputs.orders", map_index)
        assert bool(marker.xcoms) == (marker.state == "success") == (map_index == 1)


async def test_the_state_of_the_sensor(world: World) -> None:
    async with world.book() as book:
        assert await soon(book.sensor_state()) == "deferred"
        world.airflow.mark(world.airflow.find(GROUP.dag_id, GROUP.run_id, GROUP.task_id), None)
        assert await soon(book.sensor_state()) is None
        del world.airflow.instances[0]
        assert await soon(book.sensor_state()) == "removed"


# ------------------------------------------------------------------ refusals


async def test_what_is_not_granted_is_said_once_and_waited_for(world: World) -> None:
    world.airflow.refuse("POST", "xcomEntries", 403, "Forbidden")
    world.airflow.refuse("POST", "event-triggers", 403, "Forbidden")
    async with world.book() as book:
        recording = asyncio.ensure_future(book.record([arrival("orders", "a"), arrival("stock", "a")]))
        await world.airflow.clock.wait_for_sleepers(3)
        assert book.trouble is not None
        assert "grant user 'marker'" in book.trouble
        for _ in range(3):
            world.airflow.clock.advance(ASK_AGAIN)
            await idle()
        (said,) = world.said(logging.ERROR)
        assert "Airflow answered 403 to POST" in said
        assert "grant user 'marker' to read and edit task instances and to create and edit XComs" in said
        assert said.endswith("Tried again every 30 s; nothing is acknowledged meanwhile.")
        assert not recording.done()
        world.airflow.refusals.clear()
        await world.airflow.pass_time(recording.done, step=ASK_AGAIN)
        assert book.trouble is None
    assert world.marker("orders").state == world.marker("stock").state == "success"


async def test_a_marker_that_is_not_there_yet_is_waited_for(world: World) -> None:
    marker = world.marker("orders")
    world.airflow.instances.remove(marker)
    async with world.book() as book:
        recording = asyncio.ensure_future(book.record([arrival("orders", "a")]))
        await world.airflow.clock.wait_for_sleepers(2)
        world.airflow.instances.append(marker)
        await world.airflow.pass_time(recording.done, step=ASK_AGAIN)
    assert marker.state == "success"
    assert "404" in world.said(logging.ERROR)[0]


async def test_a_marker_that_has_left_the_dag_holds_nothing_up(world: World) -> None:
    """Its message is on its way when the look shows that nobody needs it any more."""
    async with world.book() as book:
        world.airflow.mark(world.marker("orders"), "removed")
        assert await record(book, arrival("orders", "a"), arrival("stock", "b")) == {"orders": ["a"], "stock": ["b"]}
        world.airflow.clock.advance(60)
        assert await soon(book.marked()) == {"orders": "removed"}
    assert world.marker("orders").state == "removed"
    assert world.marker("stock").state == "success"
