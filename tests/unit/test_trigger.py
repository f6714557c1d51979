"""The trigger: it survives being serialised, knows its deadline, and turns the verdict into Airflow's event."""

from __future__ import annotations

import asyncio
import gc
import json
import weakref
from collections.abc import Mapping
from datetime import datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.models.trigger import Trigger
from airflow.serialization.decoders import smart_decode_trigger_kwargs
from airflow.triggers.base import TaskSuccessEvent, TriggerEvent

from event_triggers.errors import EventTriggersError
from event_triggers.event import Event
from event_triggers.ledger import GroupRef
from event_triggers.runtime import Runtime, use_runtime
from event_triggers.trigger import EventGroupTrigger, as_text
from tests.unit.hub_kit import idle, soon
from tests.unit.wait_kit import GROUP, WaitKit, from_log, from_queue


@pytest.fixture
async def runtime(waits: WaitKit) -> WaitKit:
    """The runtime that the triggers of this test use."""
    use_runtime(Runtime(waits.hub, waits.ledger, waits.clock, payload_limit=1000))
    return waits


def trigger_of(events: Mapping[str, Event], *, group: GroupRef = GROUP, **options: Any) -> EventGroupTrigger:
    trigger = EventGroupTrigger(
        events={name: event.serialize() for name, event in events.items()},
        markers={name: f"inputs.{name}" for name in events},
        **{"timeout": 600.0, **options},
    )
    trigger.task_instance = SimpleNamespace(  # type: ignore[assignment]
        dag_id=group.dag_id, run_id=group.run_id, task_id=group.task_id, map_index=group.map_index
    )
    return trigger


async def only_event(trigger: EventGroupTrigger) -> TriggerEvent:
    """The one event it yields."""
    events = [event async for event in trigger.run()]
    assert len(events) == 1, "Airflow drops all but the first"
    return events[0]


async def test_arguments_come_back_through_airflows_database() -> None:
    trigger = trigger_of(
        {"orders": from_log("{{ ds }}"), "stock": from_queue(count=3)},
        deadline="2030-01-01T00:10:00+00:00",
        slack=300.0,
        handled={"stock": 1},
        do_xcom_push=False,
    )
    path, arguments = trigger.serialize()
    assert path == "event_triggers.trigger.EventGroupTrigger"
    assert json.loads(json.dumps(arguments)) == arguments
    stored = Trigger._decrypt_kwargs(Trigger(path, arguments).encrypted_kwargs)
    decode: Any = smart_decode_trigger_kwargs
    again = EventGroupTrigger(**{name: decode(value) for name, value in stored.items()})
    assert again.serialize() == (path, arguments)


def test_events_as_one_text_are_the_same_events() -> None:
    events = {"orders": from_log("{{ ds }}").serialize(), "stock": from_queue(count=3).serialize()}
    text = as_text(events)
    assert isinstance(text, str)
    markers = {"orders": "inputs.orders"}
    as_data = EventGroupTrigger(events=events, markers=markers, timeout=60.0)
    of_text = EventGroupTrigger(events=text, markers=as_text(markers), timeout=60.0)
    assert of_text.markers == markers
    assert of_text.serialize() == as_data.serialize()


@pytest.mark.parametrize("value", [datetime(2030, 1, 1), ("a", "b"), {1: 2}, float("nan")])
def test_what_is_no_json_stays_as_it_is(value: Any) -> None:
    events = {"orders": {"match": value}}
    assert as_text(events) is events


def test_arguments_of_the_first_release_are_enough() -> None:
    """Triggers in the database outlive an upgrade: what is added later needs a default."""
    trigger = EventGroupTrigger(events={}, markers={}, timeout=60.0)
    assert trigger.serialize()[1] == {
        "events": {},
        "markers": {},
        "timeout": 60.0,
        "deadline": None,
        "slack": 0.0,
        "handled": None,
        "do_xcom_push": True,
        "terms": None,
        "started": None,
        "warned": False,
    }


async def test_a_complete_group_ends_its_task_in_the_triggerer(runtime: WaitKit) -> None:
    runtime.send("orders", to="log", text="x" * 2000)
    event = await soon(only_event(trigger_of({"orders": from_log("orders")})))
    assert isinstance(event, TaskSuccessEvent)
    xcoms: Any = event.xcoms
    assert xcoms["return_value"]["orders"]["id"] == "log:0@0"
    assert runtime.ledger.payload(GROUP, "orders")["truncated"] is True, "the limit of the configuration holds"
    event.model_dump_json()


async def test_without_xcoms_there_is_none(runtime: WaitKit) -> None:
    runtime.send("orders", to="log")
    event = await soon(only_event(trigger_of({"orders": from_log("orders")}, do_xcom_push=False)))
    assert isinstance(event, TaskSuccessEvent)
    assert event.xcoms is None


async def test_with_a_handler_a_complete_group_goes_to_the_worker(runtime: WaitKit) -> None:
    runtime.send("orders", to="log")
    event = await soon(only_event(trigger_of({"orders": from_log("orders")}, handled={})))
    assert type(event) is TriggerEvent
    payload = event.payload
    assert json.loads(json.dumps(payload)) == payload
    assert payload["status"] == "complete"
    assert payload["arrivals"] == {"orders": 1}
    assert payload["handled"] == {}
    assert payload["received"]["orders"]["id"] == "log:0@0"


async def test_a_timeout_says_what_the_sensor_needs(runtime: WaitKit) -> None:
    events = {"orders": from_log("orders"), "shifts": from_queue(count=2)}
    trigger = trigger_of(events, deadline="2030-01-01T00:01:00Z")
    running = asyncio.ensure_future(only_event(trigger))
    await idle()
    runtime.send("shift")
    await runtime.later(60)
    payload = (await soon(running)).payload
    assert payload["status"] == "timeout"
    assert payload["missing"] == ["orders", "shifts (1 of 2)"]
    assert payload["deadline"] == "2030-01-01T00:01:00+00:00"
    assert payload["handled"] is None


@pytest.mark.parametrize(
    ("arguments", "after", "expected"),
    [
        ({"deadline": "2030-01-01T00:05:00+02:00"}, None, timedelta(hours=-2, minutes=5)),
        ({"timeout": 60.0}, timedelta(minutes=6), timedelta(minutes=6)),
        ({"timeout": 60.0, "slack": 300.0}, timedelta(minutes=6), timedelta(minutes=1)),
        ({"timeout": 60.0, "slack": -500.0}, timedelta(seconds=100), timedelta(seconds=600)),
        ({"timeout": 60.0}, None, timedelta(minutes=1)),
        ({"deadline": "2030-01-01T00:05:00Z"}, timedelta(hours=9), timedelta(minutes=5)),
    ],
    ids=["given", "by airflow", "with slack", "shorter by execution_timeout", "unknown", "given wins"],
)
async def test_when_the_time_is_up(
    runtime: WaitKit, arguments: dict[str, Any], after: timedelta | None, expected: timedelta
) -> None:
    trigger = trigger_of({"orders": from_log()}, **arguments)
    trigger.timeout_after = None if after is None else runtime.start + after
    started = trigger._started(Runtime(*_parts(runtime)))
    assert started + timedelta(seconds=trigger.timeout) == runtime.start + expected


def _parts(kit: WaitKit) -> tuple[Any, ...]:
    return kit.hub, kit.ledger, kit.clock, 1000


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"source": {"type": "no.such.Source"}}, "InvalidEventError: source class 'no.such.Source' cannot be imported"),
        ({"count": 0}, "InvalidEventError: an Event's count must be a whole number from 1"),
        ({"since": "yesterday"}, "InvalidEventError: since='yesterday' is no ISO 8601 moment"),
        ({"match": "no.such.callable"}, "InvalidEventError: match='no.such.callable' cannot be imported here"),
    ],
)
async def test_what_was_rendered_wrongly_is_an_error_of_the_sensor(
    runtime: WaitKit, change: dict[str, Any], text: str
) -> None:
    trigger = trigger_of({"orders": from_log()})
    trigger.events["orders"].update(change)
    payload = (await soon(only_event(trigger))).payload
    assert payload["status"] == "error"
    assert text in payload["text"]


class _Dag:
    """Stands for what Airflow's triggerer makes anew for each trigger that is started without a worker."""


def test_the_dag_is_not_kept_once_the_templates_are_rendered() -> None:
    trigger = trigger_of({"orders": from_log()}, started=None)
    trigger.events["orders"]["match"] = {"date": ["{{ ds }}"]}
    dag = _Dag()
    kept = weakref.ref(dag)
    arguments = SimpleNamespace(trigger_kwargs={"events": {}})
    task = SimpleNamespace(dag=dag, template_fields=("events",), template_ext=(), start_trigger_args=arguments)
    ti = SimpleNamespace(dag_id="dag", run_id="run", task_id="wait", map_index=-1, task=task)
    trigger.task_instance = ti  # type: ignore[assignment]
    context = {"dag": dag, "task": task, "ti": ti, "ds": "2026-11-22"}
    del dag, task
    trigger.render_template_fields(context)
    gc.collect()
    assert kept() is None
    assert trigger.events["orders"]["match"] == {"date": ["2026-11-22"]}
    assert trigger._group().identity == "dag/run/wait/-1"


async def test_it_waits_for_a_task_and_nothing_else(runtime: WaitKit) -> None:
    trigger = trigger_of({"orders": from_log()})
    trigger.task_instance = None
    payload = (await soon(only_event(trigger))).payload
    assert "it cannot be used to schedule DAGs" in payload["text"]


@pytest.mark.parametrize("index", [None, -1])
async def test_a_task_that_is_not_mapped(runtime: WaitKit, index: int | None) -> None:
    trigger = trigger_of({"orders": from_log()})
    trigger.task_instance.map_index = index  # type: ignore[union-attr]
    assert trigger._group() == GROUP


# ------------------------------------------------------------------ when a person ends the wait


@pytest.mark.parametrize(
    ("state", "kept"),
    [
        ("success", False),
        ("failed", False),
        ("skipped", False),
        ("upstream_failed", False),
        ("removed", False),
        (None, True),
        ("scheduled", True),
        ("queued", True),
        ("deferred", True),
        ("up_for_retry", True),
    ],
)
async def test_sessions_stay_when_the_sensor_only_starts_over(runtime: WaitKit, state: str | None, kept: bool) -> None:
    events = {"shift": from_queue(per_group=True)}
    async with runtime.running(events):
        pass
    assert runtime.broker.sessions("queue") == {GROUP.identity}
    runtime.ledger.sensor_states[GROUP] = state
    await soon(trigger_of(events).on_kill())
    assert (runtime.broker.sessions("queue") == {GROUP.identity}) is kept


async def test_sessions_stay_when_it_cannot_be_known(runtime: WaitKit) -> None:
    events = {"shift": from_queue(per_group=True)}
    async with runtime.running(events):
        pass
    trigger = trigger_of(events)
    trigger.task_instance = None
    with pytest.raises(EventTriggersError):
        await trigger.on_kill()
    assert runtime.broker.sessions("queue") == {GROUP.identity}


async def stopped(trigger: EventGroupTrigger) -> None:
    """Run it, cancel it, and let it clean up, as Airflow does."""

    async def run() -> None:
        try:
            await only_event(trigger)
        finally:
            await trigger.cleanup()

    task = asyncio.ensure_future(run())
    await idle()
    task.cancel()
    await idle()
    await soon(asyncio.wait({task}))


@pytest.mark.parametrize("tells", [True, False], ids=["3.3", "3.1"])
@pytest.mark.parametrize("state", ["failed", "removed", "deferred"])
async def test_airflow_that_does_not_tell_who_stops_a_wait_is_asked(
    runtime: WaitKit, monkeypatch: pytest.MonkeyPatch, tells: bool, state: str
) -> None:
    monkeypatch.setattr("event_triggers.trigger.TELLS_WHO_STOPS", tells)
    runtime.ledger.sensor_states[GROUP] = state
    await stopped(trigger_of({"shift": from_queue(per_group=True)}))
    assert (runtime.broker.sessions("queue") == set()) is (not tells and state != "deferred")


@pytest.mark.parametrize("state", ["success", "deferred"])
@pytest.mark.parametrize("lost", [True, False])
async def test_who_ran_a_wait_that_has_ended_elsewhere_leaves_no_session(
    runtime: WaitKit, monkeypatch: pytest.MonkeyPatch, lost: bool, state: str
) -> None:
    """A triggerer that was taken for dead has made the session anew that the other one removed at the end."""
    monkeypatch.setattr("event_triggers.trigger.TELLS_WHO_STOPS", True)
    monkeypatch.setattr(runtime.hub, "has_lost_session", lambda group: lost and group == GROUP.identity)
    runtime.ledger.sensor_states[GROUP] = state
    stopping = asyncio.ensure_future(stopped(trigger_of({"shift": from_queue(per_group=True)})))
    began = runtime.clock.monotonic()
    while not stopping.done():
        await idle()
        runtime.clock.advance(1)
    await stopping
    assert runtime.clock.monotonic() - began < 10
    assert (runtime.broker.sessions("queue") == set()) is (lost and state == "success")


async def test_the_session_goes_when_airflow_hears_a_moment_later_that_the_wait_has_ended(
    runtime: WaitKit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("event_triggers.trigger.TELLS_WHO_STOPS", True)
    monkeypatch.setattr(runtime.hub, "has_lost_session", lambda group: group == GROUP.identity)
    runtime.ledger.sensor_states[GROUP] = "deferred"
    stopping = asyncio.ensure_future(stopped(trigger_of({"shift": from_queue(per_group=True)})))
    for _ in range(3):
        await idle()
    assert runtime.broker.sessions("queue") == {GROUP.identity}
    runtime.ledger.sensor_states[GROUP] = "success"
    runtime.clock.advance(1)
    await soon(stopping)
    assert runtime.broker.sessions("queue") == set()


async def test_a_triggerer_that_shuts_down_waits_for_no_answer_for_long(
    runtime: WaitKit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("event_triggers.trigger.TELLS_WHO_STOPS", False)
    trigger = trigger_of({"shift": from_queue(per_group=True)})
    running = asyncio.ensure_future(only_event(trigger))
    await idle()
    runtime.ledger.pause()
    running.cancel()
    await soon(asyncio.wait({running}))
    cleaning = asyncio.ensure_future(trigger.cleanup())
    await idle()
    assert not cleaning.done()
    runtime.clock.advance(5)
    await soon(cleaning)
    assert runtime.broker.sessions("queue") == {GROUP.identity}
