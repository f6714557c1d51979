"""What an author declares of conditions and time: mistakes are told at parse time, the rest travels as meant."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime, timedelta, timezone
from typing import Any

import pendulum
import pytest
from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.sdk import DAG

from event_triggers.condition import at_least
from event_triggers.errors import InvalidEventError
from event_triggers.event import Event
from event_triggers.group import EventGroup
from event_triggers.marker import EventJoin, EventMarker
from event_triggers.sensor import EventGroupSensor
from event_triggers.terms import Terms, Timeline
from event_triggers.testing import MemoryLog, MemoryQueue
from tests.unit.dag_kit import parsed, started_in_the_triggerer

LOG, QUEUE = MemoryLog("log"), MemoryQueue("queue")
EVENTS = {"orders": Event(LOG), "stock": Event(QUEUE)}
NOON = "2030-01-01T12:00:00Z"


def told(context: Any) -> None:
    """A notifier."""


def events(**options: Any) -> Mapping[str, Event]:
    return {**EVENTS, "orders": Event(LOG, **options)}


# ------------------------------------------------------------------ mistakes


@pytest.mark.parametrize(
    ("options", "texts"),
    [
        ({"condition": at_least(3)}, ["at_least(3)", "can never hold", "only 2 required events"]),
        ({"condition": "orders and stok"}, ["no event 'stok'", "did you mean 'stock'?"]),
        ({"condition": "not orders"}, ["there is no 'not'"]),
        ({"condition": ""}, ["condition '': it is empty"]),
        ({"condition": 3}, ["condition", "3"]),
        ({"condition": None}, ["condition", "None"]),
        ({"condition": "orders", "events": events(required=False)}, ["'orders'", "required=False"]),
        ({"events": {"orders": Event(LOG, required=False)}}, ["required"]),
        ({"sequence": True, "condition": "any"}, ["sequence=True", "condition 'any'"]),
        ({"sequence": "yes"}, ["sequence must be True or False, got 'yes'"]),
        ({"correlate": {"orders": "id"}}, ["nothing says where ['stock'] have it", "correlate"]),
        ({"correlate": {"orders": "id", "stok": "id"}}, ["correlate names ['stok']", "'stock'"]),
        ({"correlate": "order..id"}, ["correlate of event 'orders'", "dotted path", "'order..id'"]),
        ({"events": events(correlate="id")}, ["nothing says where ['stock'] have it"]),
        ({"within": 0}, ["within must be longer than nothing"]),
        ({"within": "1h"}, ["within must be a timedelta or a number of seconds, got '1h'"]),
        ({"timeout": 0}, ["timeout must be longer than nothing"]),
        ({"timeout": "noon"}, ["timeout: 'noon' is no cron expression"]),
        ({"timeout": "0 0 30 2 *"}, ["timeout: the cron expression '0 0 30 2 *' never comes"]),
        ({"deadline": "noon"}, ["deadline='noon' is no ISO 8601 moment"]),
        ({"deadline": 5}, ["deadline must be a datetime or an ISO 8601 string, got 5"]),
        ({"since": NOON, "valid_for": "day"}, ["since and valid_for both say", "give one"]),
        ({"events": events(since=NOON, valid_for="day")}, ["event 'orders' has both since and valid_for"]),
        ({"valid_for": "week"}, ["valid_for must be 'day', 'month'", "'week'"]),
        ({"valid_for": "day", "events": {"stock": Event(QUEUE)}}, ["valid_for looks back", "no event"]),
        ({"since": "noon"}, ["since='noon' is no ISO 8601 moment"]),
        ({"until": "noon"}, ["until='noon' is no ISO 8601 moment"]),
        ({"until": "2029-01-01", "events": events(since=NOON)}, ["event 'orders'", "until='2029-01-01' is before"]),
        ({"warn_after": 5}, ["warn_after says when, and notifier who", "give both"]),
        ({"notifier": told}, ["warn_after says when, and notifier who", "give both"]),
        ({"warn_after": 5, "notifier": "me"}, ["notifier must be", "got 'me'"]),
        ({"warn_after": "5", "notifier": told}, ["warn_after must be a timedelta or a number of seconds, got '5'"]),
        ({"warn_after": 600, "notifier": told, "timeout": 600}, ["warn_after=600 is not before the time is up"]),
    ],
)
def test_a_mistake_is_one_sentence_that_names_the_group(options: dict[str, Any], texts: list[str]) -> None:
    with pytest.raises(InvalidEventError) as caught, parsed():
        EventGroup("inputs", **{"events": EVENTS, **options})
    said = str(caught.value)
    assert said.startswith(("EventGroup 'inputs': ", "EventGroupSensor 'inputs.wait': "))
    assert "\n" not in said
    assert [text for text in texts if text not in said] == [], said


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"timeout": -1}, "an Event's timeout must be longer than nothing"),
        ({"timeout": "often"}, "an Event's timeout: 'often' is no cron expression"),
        ({"required": "no"}, "an Event's required must be True or False, got 'no'"),
        ({"valid_for": "year"}, "an Event's valid_for must be 'day', 'month'"),
        ({"source": QUEUE, "valid_for": "day"}, "valid_for='day' looks back .* memory-queue queue is a queue"),
        ({"correlate": ""}, "an Event's correlate must be the dotted path of a field"),
        ({"since": NOON, "until": "2030-01-01T11:00:00Z"}, "until='2030-01-01T11:00:00Z' is before since="),
    ],
)
def test_a_mistake_in_an_event_is_one_sentence(options: dict[str, Any], text: str) -> None:
    with pytest.raises(InvalidEventError, match=text):
        Event(**{"source": LOG, **options})


def test_a_join_by_hand_must_stand_behind_every_marker() -> None:
    text = "the join 'join' must stand directly behind every marker, and does not behind 'stock'"
    with DAG("by_hand", schedule=None) as dag:
        wait = EventGroupSensor(task_id="wait", events=EVENTS, condition="any", join="join", timeout=60)
        markers = [EventMarker(task_id=name) for name in EVENTS]
        wait >> markers
        markers[0] >> EventJoin(task_id="join")
    check: Any = dag
    with pytest.raises(InvalidEventError, match=f"EventGroupSensor 'wait': {text}"):
        check.resolve_template_files()  # as the DAG processor does


# ------------------------------------------------------------------ what travels


def trigger_of(*, dag_options: Any = None, **options: Any) -> Any:
    with parsed(**(dag_options or {})) as dag:
        EventGroup("inputs", **{"events": EVENTS, "timeout": 600, **options})
    return started_in_the_triggerer(dag, "inputs.wait")


def test_all_terms_reach_the_triggerer() -> None:
    deadline = "{{ (dag_run.run_after + macros.timedelta(hours=1)).isoformat() }}"
    trigger = trigger_of(
        condition="any", within=timedelta(minutes=1), correlate="id", deadline=deadline, warn_after=60, notifier=told
    )
    assert Terms.deserialize(trigger.terms) == Terms(
        condition="any",
        within=60.0,
        correlate={"orders": "id", "stock": "id"},
        deadline="2030-01-02T01:00:00+00:00",
        warn_after=60.0,
        join="inputs.join",
    )


def test_what_is_said_for_the_group_holds_for_events_that_do_not_say_it() -> None:
    given = {"own": Event(LOG, since=NOON), "orders": Event(LOG), "stock": Event(QUEUE)}
    sent = trigger_of(events=given, valid_for="day", until="2031-01-01").events
    assert [sent[name].get("valid_for") for name in given] == [None, "day", None], "a queue keeps nothing"
    assert [sent[name]["since"] for name in given] == [NOON, "2030-01-02T00:00:00+00:00", None]
    assert {sent[name]["until"] for name in given} == {"2031-01-01"}


@pytest.mark.parametrize(
    "event",
    [
        Event(LOG, until=datetime(2031, 1, 1, tzinfo=timezone.utc), timeout=timedelta(minutes=1), valid_for=3600),
        Event(LOG, required=False, timeout="0 12 * * *", valid_for="month", correlate="a.b"),
    ],
)
def test_an_event_comes_back_as_it_was(event: Event) -> None:
    data = json.loads(json.dumps(event.serialize()))
    again = Event.deserialize(data)
    assert again.serialize() == data
    assert (again.timeout, again.valid_for, again.required) == (event.timeout, event.valid_for, event.required)


def test_terms_come_back_as_they_were_and_say_only_what_is_said() -> None:
    terms = Terms(condition="any", sequence=False, within=3.0, timezone="Europe/Berlin", cron="0 12 * * *", join="j")
    data = json.loads(json.dumps(terms.serialize()))
    assert Terms.deserialize(data) == terms
    assert Terms().serialize() == {}


def test_what_an_earlier_release_sent_is_a_group_that_waits_for_all() -> None:
    assert Terms.deserialize(None) == Terms() == Terms.deserialize({})
    event = Event.deserialize({"source": LOG.serialize(), "match": None, "count": 1, "since": None})
    assert (event.required, event.until, event.timeout, event.valid_for, event.correlate) == (True, *[None] * 4)


def test_what_a_later_release_sends_is_refused() -> None:
    with pytest.raises(InvalidEventError, match=r"terms that are not known here \(\['mood'\]\); upgrade"):
        Terms.deserialize({"mood": "good"})


# ------------------------------------------------------------------ time zones

BERLIN = {"start_date": pendulum.datetime(2030, 1, 1, tz="Europe/Berlin")}


@pytest.mark.parametrize(
    ("options", "zone"),
    [
        ({}, None),
        ({"valid_for": timedelta(hours=1)}, None),
        ({"valid_for": "day"}, "Europe/Berlin"),
        ({"timeout": "0 12 * * *"}, "Europe/Berlin"),
        ({"events": events(timeout="0 12 * * *")}, "Europe/Berlin"),
    ],
)
def test_the_zone_of_the_dag_is_sent_where_it_matters(options: dict[str, Any], zone: str | None) -> None:
    with DAG("daily", schedule=None, **BERLIN):  # type: ignore[arg-type]
        group = EventGroup("inputs", **{"events": EVENTS, "timeout": 600, **options})
    assert group.sensor.terms.get("timezone") == zone


def test_a_dag_that_is_given_late_gives_its_zone_too() -> None:
    dag = DAG("daily", schedule=None, **BERLIN)  # type: ignore[arg-type]
    wait = EventGroupSensor(task_id="wait", events={"orders": Event(LOG)}, timeout="0 12 * * *")
    EmptyOperator(task_id="first", dag=dag) >> wait
    wait >> EventMarker(task_id="orders")
    check: Any = dag
    check.resolve_template_files()  # as the DAG processor does
    assert wait.terms["timezone"] == "Europe/Berlin"
    if wait.start_trigger_args is not None:
        assert (wait.start_trigger_args.trigger_kwargs or {})["terms"]["timezone"] == "Europe/Berlin"


@pytest.mark.parametrize(
    ("started", "due"),
    [
        ("2030-03-31T00:30:00Z", "2030-03-31T01:30:00+00:00"),  # 02:30 is not on that day; it counts as 03:30
        ("2030-10-27T00:00:00Z", "2030-10-27T01:30:00+00:00"),  # 02:30 comes twice; the second one counts
        ("2030-07-01T00:00:00Z", "2030-07-01T00:30:00+00:00"),
        ("2030-01-01T00:00:00Z", "2030-01-01T01:30:00+00:00"),
    ],
)
def test_a_cron_timeout_goes_by_the_clock_on_the_wall(started: str, due: str) -> None:
    with DAG("daily", schedule=None, **BERLIN):  # type: ignore[arg-type]
        sensor = EventGroup("inputs", EVENTS, timeout="30 2 * * *").sensor
    began = datetime.fromisoformat(started.replace("Z", "+00:00"))
    timeline = Timeline.of(Terms.deserialize(sensor.terms), {}, began, sensor.timeout)
    assert timeline.deadline.isoformat() == due
    assert sensor.timeout >= timedelta(hours=25).total_seconds(), "the longest day of the year"
