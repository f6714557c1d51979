"""The sensor: how it starts with and without a worker, and what it makes of the trigger's verdict."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta, timezone
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk import DAG, task
from airflow.sdk.exceptions import (
    AirflowException,
    AirflowFailException,
    AirflowSensorTimeout,
    AirflowSkipException,
    TaskDeferred,
)
from airflow.serialization.serialized_objects import DagSerialization
from jinja2 import UndefinedError

from event_triggers.event import Event
from event_triggers.group import EventGroup
from event_triggers.sensor import GRACE, ArrivedMessage, EventGroupSensor
from event_triggers.testing import MemoryLog, MemoryQueue
from event_triggers.trigger import EventGroupTrigger
from tests.unit.dag_kit import in_the_database, parsed, started_in_the_triggerer

EVENTS = {"orders": Event(MemoryLog("log")), "shifts": Event(MemoryQueue("queue"), count=3)}
STARTED = "2030-01-01T00:00:00+00:00"
DEADLINE = "2030-01-01T06:00:00+00:00"


def group_dag(
    events: Mapping[str, Event] = EVENTS, *, dag_options: Any = None, **options: Any
) -> tuple[DAG, EventGroup]:
    with parsed(**(dag_options or {})) as dag:
        group = EventGroup("inputs", events, **{"timeout": timedelta(hours=6), **options})
    return dag, group


def in_triggerer(events: Mapping[str, Event], **options: Any) -> EventGroupTrigger:
    dag, _ = group_dag(events, **options)
    return started_in_the_triggerer(dag, "inputs.wait")


# ------------------------------------------------------------------ without a worker


def test_it_starts_in_the_triggerer() -> None:
    trigger = in_triggerer(EVENTS)
    assert trigger.serialize()[1] == {
        "events": {
            "orders": {
                "source": EVENTS["orders"].source.serialize(),
                "match": None,
                "count": 1,
                "since": "2030-01-02T00:00:00+00:00",
            },
            "shifts": {"source": EVENTS["shifts"].source.serialize(), "match": None, "count": 3, "since": None},
        },
        "markers": {"orders": "inputs.orders", "shifts": "inputs.shifts"},
        "timeout": 21600.0,
        "deadline": None,
        "slack": 300.0,
        "handled": None,
        "do_xcom_push": True,
        "terms": {},
        "started": None,
        "warned": False,
    }


def test_templates_are_rendered_wherever_they_are() -> None:
    events = {
        "orders": Event(
            MemoryLog("log-{{ dag_run.conf['region'] }}", keys=("{{ ds_nodash }}", "fix")),
            match={"date": ["{{ ds }}"], "detail": {"run": ["{{ run_id }}", "any"], "n": [1, None, True]}},
            since="{{ data_interval_start }}",
        ),
    }
    rendered = in_triggerer(events).events
    orders = Event.deserialize(rendered["orders"])
    assert orders.source == MemoryLog("log-eu", keys=("20300101", "fix"))
    assert orders.match == {"date": ["2030-01-01"], "detail": {"run": ["scheduled__1", "any"], "n": [1, None, True]}}
    assert orders.since == "2030-01-01 00:00:00+00:00"


def test_what_a_worker_has_rendered_is_not_rendered_again() -> None:
    """It may hold what came in a message: an XCom in a pattern. A template there would run what a sender wrote."""
    dag, group = group_dag(
        {"one": Event(MemoryQueue("q"), match={"id": ["{{ dag_run.conf['region'] }}"]})}, on_event=print
    )
    again = started_in_the_triggerer(dag, "inputs.wait")
    assert again.events["one"]["match"] == {"id": ["eu"]}
    again.events["one"]["match"] = {"id": ["{{ conn.aws_default.password }}"]}
    later = EventGroupTrigger(**{**again.serialize()[1], "started": "2030-01-02T00:00:00+00:00"})
    # Its task went with the DAG when the templates were rendered; a later triggerer has it again.
    later.task_instance = SimpleNamespace(  # type: ignore[assignment]
        dag_id=dag.dag_id, run_id="scheduled__1", task_id="inputs.wait", map_index=-1, task=group.sensor
    )
    assert later.template_fields == ("events", "terms"), "Airflow would render it"
    later.render_template_fields({})
    assert later.events["one"]["match"] == {"id": ["{{ conn.aws_default.password }}"]}
    assert group.sensor.start_from_trigger


def test_a_name_that_is_not_defined_is_an_error() -> None:
    """As on a worker; rendered to nothing it would be a wait for what never comes."""
    with pytest.raises(UndefinedError, match="'dss' is undefined"):
        in_triggerer({"one": Event(MemoryQueue("q"), match={"date": ["{{ dss }}"]})})


@pytest.mark.parametrize(
    "options",
    [
        {"user_defined_macros": {"table": lambda: "orders"}},
        {"user_defined_filters": {"shout": str.upper}},
        {"jinja_environment_kwargs": {"trim_blocks": True}},
        {"render_template_as_native_obj": True},
    ],
    ids=lambda options: next(iter(options)),
)
@pytest.mark.parametrize(("value", "needs_worker"), [("{{ table() }}", True), ("plain", False)])
def test_jinja_of_the_dag_is_on_workers_only(options: dict[str, Any], value: str, needs_worker: bool) -> None:
    event = Event(MemoryLog("log"), match={"table": [value]})
    dag, group = group_dag({"one": event}, dag_options=options)
    stored = DagSerialization.from_dict(in_the_database(dag)).get_task("inputs.wait")
    assert group.sensor.start_from_trigger == stored.start_from_trigger == (not needs_worker)
    assert (group.sensor.start_trigger_args is None) == needs_worker


def test_on_a_worker_the_macros_of_the_dag_are_there() -> None:
    event = Event(MemoryQueue("q"), match={"n": ["{{ table() }}", "{{ 40 + 2 }}"]})
    macros = {"table": lambda: "orders"}
    _, group = group_dag(
        {"one": event}, dag_options={"user_defined_macros": macros, "render_template_as_native_obj": True}
    )
    group.sensor.render_template_fields({})
    assert group.sensor.events["one"]["match"] == {"n": ["orders", 42]}


def test_the_dag_survives_being_stored() -> None:
    dag, _ = group_dag(on_event=print, sensor_args={"execution_timeout": timedelta(hours=1), "do_xcom_push": False})
    encoded = in_the_database(dag)
    stored = DagSerialization.from_dict(json.loads(json.dumps(encoded)))
    task_ = stored.get_task("inputs.wait")
    assert task_.start_from_trigger is True
    arguments = task_.start_trigger_args
    assert arguments is not None
    assert arguments.next_method == "resume"
    assert arguments.timeout == timedelta(hours=6) + GRACE
    assert task_.downstream_task_ids == {"inputs.orders", "inputs.shifts"}
    trigger = started_in_the_triggerer(dag, "inputs.wait")
    assert (trigger.handled, trigger.do_xcom_push) == ({}, False)
    assert trigger.slack == timedelta(hours=-5).total_seconds(), "Airflow ends it after an hour, whatever the timeout"


def test_a_value_of_another_task_needs_a_worker() -> None:
    with parsed() as dag:

        @task
        def order() -> str:
            return "4711"

        group = EventGroup("inputs", {"paid": Event(MemoryQueue("q"), match={"order": [order()]})})
    assert not group.sensor.start_from_trigger
    assert dag.get_task("order").downstream_task_ids == {"inputs.wait"}
    in_the_database(dag)


# ------------------------------------------------------------------ on a worker


def deferred(act: Callable[[], Any]) -> tuple[EventGroupTrigger, TaskDeferred]:
    with pytest.raises(TaskDeferred) as caught:
        act()
    trigger = caught.value.trigger
    assert isinstance(trigger, EventGroupTrigger)
    return trigger, caught.value


def verdict(status: str, **more: Any) -> dict[str, Any]:
    """What the trigger yields."""
    nothing: dict[str, Any] = {
        "received": {},
        "missing": [],
        "text": "",
        "arrivals": {},
        "handled": None,
        "started": STARTED,
        "deadline": DEADLINE,
        "warned": False,
    }
    return {"status": status, **nothing, **more}


class FakeTaskInstance:
    """Holds XComs as a worker sees them."""

    def __init__(self, xcoms: Mapping[tuple[str, str], Any] | None = None, map_index: int | None = -1) -> None:
        self.xcoms = dict(xcoms or {})
        self.map_index = map_index
        self.asked: list[Any] = []

    def xcom_pull(self, *, task_ids: str, key: str, map_indexes: int) -> Any:
        self.asked.append(map_indexes)
        return self.xcoms.get((task_ids, key))


def context_of(ti: FakeTaskInstance | None = None) -> Any:
    return {"ti": ti or FakeTaskInstance(), "run_id": "scheduled__1"}


def sensor_of(**options: Any) -> EventGroupSensor:
    return group_dag(**options)[1].sensor


def resume(sensor: EventGroupSensor, event: dict[str, Any], ti: FakeTaskInstance | None = None) -> Any:
    """As the worker resumes it."""
    return sensor.resume_execution("resume", {"event": event}, context_of(ti))


def test_on_a_worker_it_defers_at_once_with_a_fixed_start() -> None:
    before = datetime.now(timezone.utc)
    trigger, raised = deferred(lambda: sensor_of().execute(context_of()))
    assert raised.method_name == "resume"
    assert trigger.started is not None
    assert timedelta() <= datetime.fromisoformat(trigger.started) - before < timedelta(minutes=1)
    assert raised.timeout is not None
    assert timedelta() <= timedelta(hours=6) + GRACE - raised.timeout < timedelta(minutes=1)
    assert trigger.handled is None
    assert json.loads(json.dumps(trigger.serialize()[1])) == trigger.serialize()[1]


def test_a_complete_group_gives_its_facts() -> None:
    facts = {"orders": {"id": "1"}}
    assert resume(sensor_of(on_event=print), verdict("complete", received=facts, handled={})) == facts


def test_a_timeout_names_what_is_missing() -> None:
    event = verdict("timeout", missing=["orders", "shifts (1 of 3)"])
    with pytest.raises(AirflowSensorTimeout) as caught:
        resume(sensor_of(), event)
    assert str(caught.value) == "after 21600 s these events have not come: orders, shifts (1 of 3)"


def test_a_timeout_names_its_cause() -> None:
    with pytest.raises(AirflowSensorTimeout, match=r"have not come: orders \(Airflow answered 403\)"):
        resume(sensor_of(), verdict("timeout", missing=["orders"], text="Airflow answered 403"))


def test_a_marker_marked_failed_fails_it_for_good() -> None:
    with pytest.raises(AirflowFailException, match="the marker of orders was marked failed; still missing: shifts"):
        resume(sensor_of(), verdict("failed", text="the marker of orders was marked failed", missing=["shifts"]))


def test_an_error_may_be_retried() -> None:
    with pytest.raises(AirflowException, match="the group could not wait: ConfigurationError: no host") as caught:
        resume(sensor_of(), verdict("error", text="ConfigurationError: no host"))
    assert not isinstance(caught.value, (AirflowFailException, AirflowSensorTimeout))


@pytest.mark.parametrize("option", ["soft_fail", "never_fail"])
@pytest.mark.parametrize("status", ["timeout", "failed", "error"])
def test_soft_fail_skips_and_still_says_why(option: str, status: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sensor = sensor_of(sensor_args={option: True})
    said: list[str] = []
    monkeypatch.setattr(type(sensor), "log", SimpleNamespace(warning=lambda text, *args: said.append(text % args)))
    with pytest.raises(AirflowSkipException):
        resume(sensor, verdict(status, missing=["orders"], text="the reason"))
    (text,) = said
    assert "orders" in text or "the reason" in text


def test_when_airflow_itself_ends_the_deferral() -> None:
    with pytest.raises(AirflowSensorTimeout):
        sensor_of().resume_execution("__fail__", {"error": "Trigger timeout"}, context_of())


# ------------------------------------------------------------------ arrivals


def worker(orders: int = 0, shifts: int = 0, **options: Any) -> FakeTaskInstance:
    """A worker's view of markers that hold so many messages, received one second after the other."""

    def facts(name: str, count: int, wanted: int) -> dict[str, Any]:
        at = [f"2030-01-01T00:00:{2 * n + (name == 'shifts'):02d}" for n in range(count)]
        return {"wanted": wanted, "messages": [{"id": f"{name} {n}", "received_at": at[n]} for n in range(count)]}

    xcoms: dict[tuple[str, str], Any] = {}
    if orders:
        xcoms["inputs.orders", "event"] = facts("orders", orders, 1)
        xcoms["inputs.orders", "return_value"] = ["a list", "is one payload"]
    if shifts:
        xcoms["inputs.shifts", "event"] = facts("shifts", shifts, 3)
        xcoms["inputs.shifts", "return_value"] = [{"n": n} for n in range(shifts)]
    return FakeTaskInstance(xcoms, **options)


def test_arrivals_are_handed_over_in_order_and_it_waits_on() -> None:
    given: list[list[ArrivedMessage]] = []
    sensor = sensor_of(on_event=given.append)
    event = verdict("arrivals", arrivals={"shifts": 2, "orders": 1}, handled={}, missing=["shifts (2 of 3)"])
    trigger, raised = deferred(lambda: resume(sensor, event, worker(orders=1, shifts=2)))
    ((first, second, third),) = given
    assert [one.event for one in (first, second, third)] == ["orders", "shifts", "shifts"]
    assert first.payload == ["a list", "is one payload"]
    assert (second.payload, third.payload) == ({"n": 0}, {"n": 1})
    assert third.facts["id"] == "shifts 1"
    assert trigger.handled == {"shifts": 2, "orders": 1}
    assert trigger.started == STARTED, "the start of the try stays, however often it resumes"
    assert raised.timeout is not None


def test_only_what_is_new_is_handed_over() -> None:
    given: list[list[ArrivedMessage]] = []
    event = verdict("arrivals", arrivals={"shifts": 3, "orders": 1}, handled={"shifts": 2, "orders": 1})
    trigger, _ = deferred(lambda: resume(sensor_of(on_event=given.append), event, worker(orders=1, shifts=3)))
    assert [[one.facts["id"] for one in ones] for ones in given] == [["shifts 2"]]
    assert trigger.handled == {"shifts": 3, "orders": 1}


def test_what_came_after_the_verdict_is_handed_over_next_time() -> None:
    given: list[list[ArrivedMessage]] = []
    event = verdict("arrivals", arrivals={"shifts": 1}, handled={})
    trigger, _ = deferred(lambda: resume(sensor_of(on_event=given.append), event, worker(shifts=3)))
    assert [len(ones) for ones in given] == [1]
    assert trigger.handled == {"shifts": 1}


def test_a_handler_may_take_the_context() -> None:
    given: dict[str, Any] = {}

    def handle(messages: list[ArrivedMessage], context: Any) -> None:
        given.update(messages=messages, context=context)

    deferred(lambda: resume(sensor_of(on_event=handle), verdict("arrivals", arrivals={"shifts": 1}), worker(shifts=1)))
    assert given["context"]["run_id"] == "scheduled__1"
    assert len(given["messages"]) == 1


def test_a_handler_that_fails_fails_the_try() -> None:
    def handle(messages: list[ArrivedMessage]) -> None:
        raise RuntimeError("the handler fails")

    with pytest.raises(RuntimeError, match="the handler fails"):
        resume(sensor_of(on_event=handle), verdict("arrivals", arrivals={"shifts": 1}), worker(shifts=1))


@pytest.mark.parametrize("status", ["complete", "timeout", "failed"])
def test_the_last_messages_are_handed_over_before_the_end(status: str) -> None:
    given: list[list[ArrivedMessage]] = []
    event = verdict(status, arrivals={"orders": 1, "shifts": 3}, handled={"shifts": 2}, missing=["x"])
    sensor = sensor_of(on_event=given.append)
    if status == "complete":
        resume(sensor, event, worker(orders=1, shifts=3))
    else:
        with pytest.raises(AirflowException):
            resume(sensor, event, worker(orders=1, shifts=3))
    assert [[one.facts["id"] for one in ones] for ones in given] == [["orders 0", "shifts 2"]]


def test_without_a_handler_nothing_is_read() -> None:
    ti = worker(orders=1)
    assert resume(sensor_of(), verdict("complete", received={"a": 1}, arrivals={"orders": 1}), ti) == {"a": 1}
    assert ti.asked == []


@pytest.mark.parametrize(("index", "asked"), [(None, -1), (-1, -1), (4, 4)])
def test_the_markers_of_its_own_map_index(index: int | None, asked: int) -> None:
    ti = worker(shifts=1, map_index=index)
    deferred(lambda: resume(sensor_of(on_event=lambda _: None), verdict("arrivals", arrivals={"shifts": 1}), ti))
    assert set(ti.asked) == {asked}


def test_a_payload_that_somebody_removed_does_not_hide_the_message() -> None:
    given: list[list[ArrivedMessage]] = []
    ti = worker(shifts=2)
    del ti.xcoms["inputs.shifts", "return_value"]
    event = verdict("arrivals", arrivals={"shifts": 2}, handled={})
    deferred(lambda: resume(sensor_of(on_event=given.append), event, ti))
    assert [(one.payload, one.facts["id"]) for one in given[0]] == [(None, "shifts 0"), (None, "shifts 1")]


def test_an_event_of_an_earlier_release_is_understood() -> None:
    """A trigger that was started before the upgrade says when the time is up, and not when it began."""
    old = {"status": "arrivals", "received": {}, "missing": ["shifts"], "text": "", "arrivals": {}, "handled": {}}
    sensor = sensor_of(on_event=print)
    trigger, _ = deferred(lambda: resume(sensor, {**old, "deadline": DEADLINE}))
    assert (trigger.started, trigger.handled, trigger.warned) == (STARTED, {}, False)
