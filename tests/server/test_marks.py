"""The marking route on a real database: what is written, what is answered, and who may."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from airflow import settings
from airflow.listeners import hookimpl
from airflow.listeners.listener import get_listener_manager
from airflow.utils.session import create_session
from sqlalchemy import text
from sqlalchemy.exc import OperationalError

from event_triggers.marks import MARKERS_PATH, MARKS_PATH, MOST_BYTES, MOST_GROUPS, MOST_MARKS, PROTOCOL
from tests.server.kit import DAG_ID, MARKERS, Server

pytestmark = pytest.mark.filterwarnings("ignore")


def message(identity: str, payload: Any = "default") -> dict[str, Any]:
    facts = {"source": "kafka", "stream": "s", "position": f"p {identity}", "id": identity, "timestamp": None}
    payload = {"id": identity} if payload == "default" else payload
    return {"facts": {**facts, "received_at": "t"}, "payload": payload, "note": f"note {identity}"}


def mark(task_id: str, *messages: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"task_id": task_id, "messages": list(messages), **fields}


async def post(client: httpx.AsyncClient, run_id: str, *marks: dict[str, Any], dag_id: str = DAG_ID) -> Any:
    runs = [{"dag_id": dag_id, "run_id": run_id, "marks": list(marks)}]
    answer = await client.post(MARKS_PATH, json={"protocol": PROTOCOL, "runs": runs})
    assert answer.status_code == 200, answer.text
    (answers,) = answer.json()["runs"]
    return answers


def public(run_id: str, task_id: str) -> str:
    return f"/api/v2/dags/{DAG_ID}/dagRuns/{quote(run_id)}/taskInstances/{task_id}"


# ------------------------------------------------------------------ what is written


async def test_a_mark_is_what_the_public_api_makes_of_it(server: Server, client: httpx.AsyncClient) -> None:
    run = server.database.new_run()
    assert await post(client, run, mark("orders", message("a"))) == [{"state": "success", "held": [0]}]
    body = {"new_state": "success", "note": "note a"}
    assert (await client.patch(public(run, "shifts"), json=body)).status_code == 200
    ours, theirs = server.database.task(run, "orders"), server.database.task(run, "shifts")
    for field in ("state", "note", "noted_by", "duration"):
        assert getattr(ours, field) == getattr(theirs, field), field
    assert ours.started == ours.ended is not None
    assert ours.xcoms["return_value"] == {"id": "a"}
    assert ours.xcoms["event"] == {"wanted": 1, "round": ours.id, "messages": [message("a")["facts"]]}
    first, second = server.database.audit(run)
    for column in ("event", "owner", "owner_display_name", "dag_id", "run_id", "map_index", "logical_date"):
        assert getattr(first, column) == getattr(second, column), column
    expected = {**json.loads(second.extra or ""), "method": "POST", "by": "event_triggers"}
    assert json.loads(first.extra or "") == expected


async def test_the_public_api_reads_the_xcoms(server: Server, client: httpx.AsyncClient) -> None:
    run = server.database.new_run()
    payloads = {"orders": {"a": [1, {"b": None}]}, "shifts": '{"text": 1}', "stock": None}
    await post(client, run, *(mark(task, message("a", payload)) for task, payload in payloads.items()))
    for task, payload in payloads.items():
        assert server.database.task(run, task).xcoms["return_value"] == payload
        answer = await client.get(f"{public(run, task)}/xcomEntries/event")
        assert answer.json()["value"]["messages"][0]["id"] == "a"


async def test_messages_add_up_and_twice_is_once(server: Server, client: httpx.AsyncClient) -> None:
    run = server.database.new_run()
    assert await post(client, run, mark("orders", message("a"), wanted=3)) == [{"held": [0]}]
    again = mark("orders", message("a"), message("b"), wanted=3, known=1, last="a")
    assert await post(client, run, again) == [{"first": 1, "held": [1]}]
    (answer,) = await post(client, run, mark("orders", message("c"), message("d"), wanted=3))
    assert answer == {"state": "success", "held": [message("a")["facts"], message("b")["facts"], 0]}
    task = server.database.task(run, "orders")
    assert (task.state, task.note) == ("success", "note c")
    assert task.xcoms["return_value"] == [{"id": one} for one in "abc"]
    assert [one["id"] for one in task.xcoms["event"]["messages"]] == ["a", "b", "c"]
    before = len(server.database.audit(run))
    await post(client, run, mark("orders", message("c"), wanted=3))
    assert len(server.database.audit(run)) == before, "nothing is written for what is there"


async def test_what_was_recorded_and_not_marked_is_marked(server: Server, client: httpx.AsyncClient) -> None:
    run = server.database.new_run()
    await post(client, run, mark("orders", message("a"), wanted=2))
    await post(client, run, mark("orders", message("b"), wanted=2))
    server.database.set(run, "orders", None)
    assert await post(client, run, mark("orders", wanted=2, known=2, last="b")) == [{"state": "success", "first": 2}]
    assert server.database.task(run, "orders").note == "kafka s p b (2 of 2), t"


async def test_what_the_public_way_has_appended_is_taken_in(server: Server, client: httpx.AsyncClient) -> None:
    run = server.database.new_run()
    round_ = server.database.task(run, "orders").id
    value = {"messages": [message("a")["facts"]], "payloads": [{"id": "a"}]}
    body = {"key": f"event_{round_}_0", "value": value}
    assert (await client.post(f"{public(run, 'orders')}/xcomEntries", json=body)).status_code == 201
    await post(client, run, mark("orders", message("b"), wanted=2))
    task = server.database.task(run, "orders")
    # Airflow 3.1 stores what comes over its REST API as text, which nothing of ours reads or writes.
    if isinstance(task.xcoms[f"event_{round_}_0"], dict):
        assert task.xcoms["return_value"] == [{"id": "a"}, {"id": "b"}]
        assert task.xcoms[f"event_{round_}_1"]["payloads"] == [{"id": "b"}]


async def test_the_markers_of_one_map_index(server: Server, client: httpx.AsyncClient) -> None:
    run = server.database.new_run(map_indexes=3)
    await post(client, run, mark("orders", message("a"), map_index=1), {"task_id": "shifts", "map_index": 2})
    states = {(task, i): server.database.task(run, task, i).state for task in ("orders", "shifts") for i in range(3)}
    assert {place for place, state in states.items() if state} == {("orders", 1), ("shifts", 2)}


@pytest.mark.parametrize("state", ["failed", "skipped", "removed", "success"])
async def test_what_somebody_has_decided_stays(server: Server, client: httpx.AsyncClient, state: str) -> None:
    run = server.database.new_run()
    server.database.set(run, "orders", state)
    assert await post(client, run, mark("orders", message("a"))) == [{"state": state, "held": [0]}]
    assert await post(client, run, {"task_id": "orders", "state": "skipped", "note": "n"}) == [{"state": state}]
    assert server.database.task(run, "orders").note is None
    expected = "removed" if state == "removed" else "success"
    assert await post(client, run, {"task_id": "orders", "anyway": True}) == [{"state": expected}]


async def test_what_failed_behind_is_cleared(server: Server, client: httpx.AsyncClient) -> None:
    run = server.database.new_run()
    for task in (*MARKERS, "close_books"):
        server.database.set(run, task, "upstream_failed")
    await post(client, run, mark("orders", message("a")), mark("stock", message("a")))
    states = {task: server.database.task(run, task).state for task in (*MARKERS, "close_books", "join")}
    expected = {"orders": "success", "shifts": "upstream_failed", "stock": "success", "close_books": None, "join": None}
    assert states == expected


async def test_listeners_are_told(server: Server, client: httpx.AsyncClient) -> None:
    told: list[tuple[str, str, str | None]] = []

    class Listener:
        @hookimpl
        def on_task_instance_success(self, previous_state: Any, task_instance: Any) -> None:
            told.append(("success", task_instance.task_id, task_instance.note))

        @hookimpl
        def on_task_instance_failed(self, previous_state: Any, task_instance: Any, error: Any) -> None:
            told.append(("failed", task_instance.task_id, str(error)))
            raise RuntimeError("a listener that fails")

    manager: Any = get_listener_manager()
    listener = Listener()
    manager.add_listener(listener)
    try:
        run = server.database.new_run()
        await post(client, run, {"task_id": "shifts", "state": "failed"}, mark("orders", message("a")))
        await post(client, run, mark("orders", message("a")))
    finally:
        manager.pm.unregister(listener)
    error = "TaskInstance's state was manually set to `failed`."
    assert sorted(told) == [("failed", "shifts", error), ("success", "orders", "note a")], "once each"


# ------------------------------------------------------------------ what is refused


async def test_every_mark_is_answered_for_itself(server: Server, client: httpx.AsyncClient) -> None:
    run = server.database.new_run()
    marks = [mark("orders", message("a")), mark("gone", message("a")), mark("shifts", message("a"), map_index=7)]
    first, second, third = await post(client, run, *marks)
    assert (first, second["status"], third["status"]) == ({"state": "success", "held": [0]}, 404, 404)
    (answer,) = await post(client, "no_such_run", marks[0])
    assert answer["status"] == 404


async def test_payloads_that_are_refused_are_named_and_hold_up_nothing(
    server: Server, client: httpx.AsyncClient
) -> None:
    run = server.database.new_run()
    reserved = mark("orders", message("a"), message("b", [{"x": '{"__classname__": "os.system"}'}]), wanted=2)
    nul = mark("shifts", message("a", {"text": "\0"}))
    first, second, third = await post(client, run, reserved, nul, mark("stock", message("a")))
    assert (first["status"], first["payload"]) == (422, 1)
    assert "reserved serialization keys: __classname__" in first["detail"]
    assert third == {"state": "success", "held": [0]}
    if second != {"state": "success", "held": [0]}:  # SQLite keeps it
        assert (second["status"], second["payload"]) == (500, 0)
        assert server.database.task(run, "shifts").state is None
    assert server.database.task(run, "orders").xcoms == {}


async def test_who_may_not_mark_is_refused(server: Server) -> None:
    run = server.database.new_run()
    async with server.client(None) as nobody:
        assert (await nobody.post(MARKS_PATH, json={"protocol": PROTOCOL, "runs": []})).status_code == 401
        nobody.headers["authorization"] = "Bearer abc"
        assert (await nobody.post(MARKS_PATH, json={"protocol": PROTOCOL, "runs": []})).status_code == 403
    async with server.client("looker") as looker:
        (answer,) = await post(looker, run, mark("orders", message("a")))
    assert answer["status"] == 403
    assert server.database.task(run, "orders").state is None
    assert server.database.audit(run) == []


async def test_requests_are_bounded(client: httpx.AsyncClient) -> None:
    many = [{"dag_id": DAG_ID, "run_id": "r", "marks": [{"task_id": "orders"}] * (MOST_MARKS + 1)}]
    bodies = {
        413: [json.dumps({"protocol": PROTOCOL, "runs": many}), " " * (MOST_BYTES + 1)],
        409: [json.dumps({"protocol": PROTOCOL + 1, "runs": []})],
        422: ["", "{", "[]", '{"protocol": 1}', "[" * 100_000],
    }
    for status, of_status in bodies.items():
        for body in of_status:
            assert (await client.post(MARKS_PATH, content=body)).status_code == status, body[:60]


async def read(client: httpx.AsyncClient, *groups: dict[str, Any]) -> Any:
    answer = await client.post(MARKERS_PATH, json={"protocol": PROTOCOL, "groups": list(groups)})
    assert answer.status_code == 200, answer.text
    return answer.json()["groups"]


async def test_the_markers_of_many_groups_are_read_at_once(server: Server, client: httpx.AsyncClient) -> None:
    first, second, mapped = (server.database.new_run(map_indexes=count) for count in (0, 0, 2))
    await post(client, first, mark("orders", message("a")))
    groups: list[dict[str, Any]] = [
        {"dag_id": DAG_ID, "run_id": first, "task_ids": ["orders", "shifts", "wait", "nothing"]},
        {"dag_id": DAG_ID, "run_id": second, "task_ids": ["stock"]},
        {"dag_id": DAG_ID, "run_id": mapped, "task_ids": ["stock"], "map_index": 1},
        {"dag_id": DAG_ID, "run_id": "no run", "task_ids": ["stock"]},
    ]
    found = await read(client, *groups)
    states = {run: server.database.task(run, "stock", index) for run, index in ((second, -1), (mapped, 1))}
    orders, shifts = (server.database.task(first, task_id) for task_id in ("orders", "shifts"))
    # The sensor is no marker.
    assert found[0] == {"markers": [["orders", orders.id, "success"], ["shifts", shifts.id, None]]}
    assert found[1:3] == [{"markers": [["stock", one.id, None]]} for one in states.values()]
    assert found[3] == {}


async def test_who_may_not_read_a_dag_is_refused_for_it_alone(
    server: Server, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the edge: Airflow's simple auth manager knows no rights on single DAGs, so its answer is changed for one."""
    from airflow.api_fastapi.app import get_auth_manager

    run = server.database.new_run()
    group = {"dag_id": DAG_ID, "run_id": run, "task_ids": ["stock"]}
    async with server.client(None) as nobody:
        document = {"protocol": PROTOCOL, "groups": [group]}
        assert (await nobody.post(MARKERS_PATH, json=document)).status_code == 401
    async with server.client("looker") as looker:
        assert len((await read(looker, group))[0]["markers"]) == 1
    manager = type(get_auth_manager())
    allowed = manager.is_authorized_dag

    def but_one(self: Any, *, details: Any = None, **rights: Any) -> bool:
        return details.id != "theirs" and bool(allowed(self, details=details, **rights))

    monkeypatch.setattr(manager, "is_authorized_dag", but_one)
    theirs, ours = await read(client, {**group, "dag_id": "theirs"}, group)
    assert (theirs["status"], theirs["detail"]) == (403, "Forbidden: read task instances of DAG 'theirs'")
    assert len(ours["markers"]) == 1


async def test_too_many_groups_and_other_protocols_are_refused(client: httpx.AsyncClient) -> None:
    group = {"dag_id": DAG_ID, "run_id": "r", "task_ids": []}
    for status, document in (
        (413, {"protocol": PROTOCOL, "groups": [group] * (MOST_GROUPS + 1)}),
        (409, {"protocol": PROTOCOL + 1, "groups": []}),
        (422, {"protocol": PROTOCOL}),
    ):
        assert (await client.post(MARKERS_PATH, json=document)).status_code == status


async def test_a_database_that_is_away_is_no_refusal(
    server: Server, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the edge: the database's driver says that it has lost its connection."""

    def away(*_: Any, **__: Any) -> Any:
        raise OperationalError("SELECT 1", {}, Exception("server closed the connection unexpectedly"))

    monkeypatch.setattr("event_triggers.server.batches.write_run", away)
    runs = [{"dag_id": DAG_ID, "run_id": "r", "marks": [{"task_id": "orders"}]}]
    answer = await client.post(MARKS_PATH, json={"protocol": PROTOCOL, "runs": runs})
    assert answer.status_code == 503


# ------------------------------------------------------------------ at the same time


async def test_two_clients_that_record_for_one_marker_lose_nothing(server: Server) -> None:
    async with server.client() as one, server.client() as other:
        for round_ in range(5):
            run = server.database.new_run()
            marks = [[mark("orders", message(f"{who}{n}"), wanted=8) for n in range(5)] for who in "ab"]

            async def record(client: httpx.AsyncClient, of: list[dict[str, Any]], run: str = run) -> list[list[Any]]:
                return [await post(client, run, single) for single in of]

            answers = await asyncio.gather(record(one, marks[0]), record(other, marks[1]))
            task = server.database.task(run, "orders")
            held = [facts["id"] for facts in task.xcoms["event"]["messages"]]
            assert len(held) == len(set(held)) == 8, round_
            assert task.xcoms["return_value"] == [{"id": one} for one in held]
            assert task.state == "success"
            told = {x["id"] for of in answers for (answer,) in of for x in answer["held"] if isinstance(x, dict)}
            assert told <= set(held)


async def test_payloads_are_stored_as_they_are(server: Server, client: httpx.AsyncClient) -> None:
    """What is no value in SQL, and what JSON can hold and a database's JSON, or its text, may not."""
    run = server.database.new_run()
    payloads: list[Any] = [None, {"a": None, "b": [None, True, 1.5, ""]}, 2**63 - 1, "ü\u2028'\\\"$1 :now", [], "null"]
    for payload in payloads:
        run = server.database.new_run()
        (answer,) = await post(client, run, mark("orders", message("one", payload)))
        task = server.database.task(run, "orders")
        assert (answer["state"], task.state) == ("success", "success")
        assert task.xcoms["return_value"] == payload
        assert task.xcoms["event"]["messages"][0]["id"] == "one"


async def test_what_the_database_does_not_take_is_refused_alone(server: Server, client: httpx.AsyncClient) -> None:
    """PostgreSQL has no character of code 0; SQLite has."""
    run = server.database.new_run()
    bad, good = mark("orders", message("bad", "\0")), mark("stock", message("good"))
    answers = await post(client, run, bad, good)
    refused = not str(settings.SQL_ALCHEMY_CONN).startswith("sqlite")
    assert [answer.get("status", 200) for answer in answers] == [500 if refused else 200, 200]
    assert server.database.task(run, "stock").state == "success"
    assert server.database.task(run, "orders").state == (None if refused else "success")


def test_whoever_wants_pythons_lock_gets_it_sooner_while_marks_are_made(server: Server) -> None:
    from event_triggers.server import batches  # imports what warns before the server is there

    usual = sys.getswitchinterval()
    with suppress(RuntimeError), batches._giving_way():
        assert sys.getswitchinterval() < usual
        raise RuntimeError
    assert sys.getswitchinterval() == usual


async def test_a_run_that_somebody_holds_is_waited_for_and_no_other(server: Server, client: httpx.AsyncClient) -> None:
    """As the scheduler holds it. SQLite has no lock of a run: there is nothing to hold."""
    held, free = server.database.new_run(), server.database.new_run()
    if str(settings.SQL_ALCHEMY_CONN).startswith("sqlite"):
        pytest.skip("SQLite locks the whole database")
    with create_session(scoped=False) as session:  # the scoped one is what the test looks with
        session.execute(text("SELECT id FROM dag_run WHERE run_id = :run FOR UPDATE"), {"run": held})
        runs = [{"dag_id": DAG_ID, "run_id": run, "marks": [mark("orders", message("a"))]} for run in (held, free)]
        posted = asyncio.ensure_future(client.post(MARKS_PATH, json={"protocol": PROTOCOL, "runs": runs}))
        while server.database.task(free, "orders").state is None:  # noqa: ASYNC110 - only the database knows
            await asyncio.sleep(0.01)
        assert server.database.task(held, "orders").state is None
        session.rollback()
    assert [one["state"] for (one,) in (await posted).json()["runs"]] == ["success", "success"]


@contextmanager
def busy_scheduler(run_ids: Sequence[str]) -> Iterator[None]:
    """Holds these runs as a busy scheduler does: for a while, and at once again; it passes over what others hold."""
    enough, holds = threading.Event(), threading.Event()
    statement = text("SELECT id FROM dag_run WHERE run_id = ANY (:runs) FOR UPDATE SKIP LOCKED")

    def hold() -> None:
        while not enough.is_set():
            with create_session(scoped=False) as session:
                session.execute(statement, {"runs": list(run_ids)})
                holds.set()
                enough.wait(0.3)

    with ThreadPoolExecutor(1) as thread:
        holding = thread.submit(hold)
        try:
            holds.wait()
            yield
        finally:
            enough.set()
            holding.result()


async def test_runs_that_a_busy_scheduler_holds_are_had_in_between(server: Server, client: httpx.AsyncClient) -> None:
    if str(settings.SQL_ALCHEMY_CONN).startswith("sqlite"):
        pytest.skip("SQLite locks the whole database")
    run_ids = [server.database.new_run() for _ in range(3)]
    refused = mark("shifts", message("b", {"__classname__": "x", "__version__": 1, "__data__": 1}))
    runs = [{"dag_id": DAG_ID, "run_id": run, "marks": [refused, mark("orders", message("a"))]} for run in run_ids]
    with busy_scheduler(run_ids):
        answer = await client.post(MARKS_PATH, json={"protocol": PROTOCOL, "runs": runs})
    assert [[one.get("status", 200) for one in run] for run in answer.json()["runs"]] == [[422, 200]] * 3
    assert {server.database.task(run, "orders").state for run in run_ids} == {"success"}


async def test_one_of_them_that_cannot_be_written_hides_no_other(server: Server, client: httpx.AsyncClient) -> None:
    if str(settings.SQL_ALCHEMY_CONN).startswith("sqlite"):
        pytest.skip("SQLite locks the whole database")
    run_ids = [server.database.new_run() for _ in range(2)]
    bad, good = mark("orders", message("a", "\0")), mark("stock", message("a"))
    marks = zip(run_ids, ([bad, good], [good]), strict=True)
    runs = [{"dag_id": DAG_ID, "run_id": run, "marks": some} for run, some in marks]
    with busy_scheduler(run_ids):
        answer = await client.post(MARKS_PATH, json={"protocol": PROTOCOL, "runs": runs})
    assert [[one.get("status", 200) for one in run] for run in answer.json()["runs"]] == [[500, 200], [200]]
    assert {server.database.task(run, "stock").state for run in run_ids} == {"success"}


async def test_a_run_that_somebody_keeps_is_told_to_be_locked_and_no_other(
    server: Server, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    if str(settings.SQL_ALCHEMY_CONN).startswith("sqlite"):
        pytest.skip("SQLite locks the whole database")
    monkeypatch.setattr("event_triggers.server.batches._LONGEST_WAIT", 0.05)
    monkeypatch.setattr("event_triggers.server.batches._WAIT_ALONE", 2.0)  # longer than the scheduler holds one
    kept, other = server.database.new_run(), server.database.new_run()
    runs = [{"dag_id": DAG_ID, "run_id": run, "marks": [mark("orders", message("a"))]} for run in (kept, other)]
    with create_session(scoped=False) as session, busy_scheduler([other]):
        session.execute(text("SELECT id FROM dag_run WHERE run_id = :run FOR UPDATE"), {"run": kept})
        ((answer,), (good,)) = (await client.post(MARKS_PATH, json={"protocol": PROTOCOL, "runs": runs})).json()["runs"]
        session.rollback()
    assert (answer["status"], answer["detail"]) == (503, "the run is locked by somebody else, and was so for seconds")
    assert good["state"] == "success"
