"""What an author writes: groups, sensors, markers; each mistake is one clear sentence when the DAG is parsed."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.sdk import TaskGroup, task
from airflow.serialization.serialized_objects import DagSerialization

from event_triggers.errors import InvalidEventError
from event_triggers.event import Event
from event_triggers.group import EventGroup
from event_triggers.marker import EventMarker
from event_triggers.message import Message
from event_triggers.sensor import EventGroupSensor
from event_triggers.testing import MemoryLog, MemoryQueue
from tests.unit.dag_kit import in_the_database, parsed


def any_message(message: Message) -> bool:
    return True


QUEUE = MemoryQueue("queue")
ONE = {"one": Event(QUEUE)}
TWO = {"one": Event(QUEUE), "two": Event(MemoryLog("log"), count=2)}


# ------------------------------------------------------------------ layout


def test_a_group_is_a_sensor_and_a_marker_for_each_event() -> None:
    with parsed() as dag:
        group = EventGroup("inputs", TWO, timeout=60)

        @task
        def close_books(orders: Any) -> None: ...

        group >> close_books(group["one"].output)
    assert sorted(dag.task_ids) == ["close_books", "inputs.one", "inputs.two", "inputs.wait"]
    assert dag.get_task("inputs.wait").downstream_task_ids == {"inputs.one", "inputs.two"}
    assert dag.get_task("close_books").upstream_task_ids == {"inputs.one", "inputs.two"}
    assert group.sensor.markers == {"one": "inputs.one", "two": "inputs.two"}
    assert list(group.events()) == ["one", "two"]
    assert group["two"] is dag.get_task("inputs.two")


def test_a_group_inside_a_group() -> None:
    with parsed() as dag, TaskGroup("outer"):
        group = EventGroup("inputs", ONE)
    assert group.sensor.markers == {"one": "outer.inputs.one"}
    assert dag.get_task("outer.inputs.wait").downstream_task_ids == {"outer.inputs.one"}


def test_parts_wired_by_hand() -> None:
    with parsed() as dag:
        wait = EventGroupSensor(task_id="wait", events=TWO, timeout=60)
        wait >> [EventMarker(task_id="one"), EventMarker(task_id="two")] >> EmptyOperator(task_id="after")
    assert wait.markers == {"one": "one", "two": "two"}
    assert dag.get_task("after").upstream_task_ids == {"one", "two"}


def test_parts_wired_by_hand_in_a_group_with_other_names() -> None:
    with parsed(), TaskGroup("inputs"):
        wait = EventGroupSensor(task_id="wait", events=TWO, markers={"two": "inputs.second"})
        wait >> [EventMarker(task_id="one"), EventMarker(task_id="second")]
    assert wait.markers == {"one": "inputs.one", "two": "inputs.second"}


def test_arguments_reach_the_tasks() -> None:
    with parsed(default_args={"timeout": 77.0, "owner": "team"}):
        group = EventGroup(
            "inputs",
            ONE,
            sensor_args={"soft_fail": True, "retries": 3},
            marker_args={"doc_md": "a marker"},
            tooltip="what comes in",
        )
    assert (group.sensor.timeout, group.sensor.soft_fail, group.sensor.retries) == (77.0, True, 3)
    assert group["one"].doc_md == "a marker"
    assert group["one"].owner == group.sensor.owner == "team"
    assert group.tooltip == "what comes in"


@pytest.mark.parametrize(("timeout", "seconds"), [(timedelta(hours=6), 21600.0), (60, 60.0), (0.5, 0.5)])
def test_a_timeout(timeout: timedelta | float, seconds: float) -> None:
    with parsed():
        assert EventGroup("inputs", ONE, timeout=timeout).sensor.timeout == seconds


def test_the_default_timeout_is_airflows() -> None:
    with parsed():
        assert EventGroup("inputs", ONE).sensor.timeout == timedelta(days=7).total_seconds()


def test_a_marker_does_nothing_and_is_known_by_one_name() -> None:
    class MyMarker(EventMarker):
        """A subclass, found in Airflow like the others."""

    with parsed() as dag:
        wait = EventGroupSensor(task_id="wait", events=TWO)
        wait >> [EventMarker(task_id="one"), MyMarker(task_id="two")]
    stored = DagSerialization.from_dict(in_the_database(dag))
    for name in TWO:
        marker = stored.get_task(name)
        assert marker.task_type == "EventMarker"
        assert marker.inherits_from_empty_operator, "the scheduler never sends it to a worker"


# ------------------------------------------------------------------ mistakes


def sensor(events: Any = ONE, **options: Any) -> None:
    EventGroupSensor(task_id="wait", events=events, **options)


MISTAKES: dict[str, tuple[Any, str]] = {
    "an unknown event name": (
        lambda: EventGroup("inputs", TWO)["three"],
        "EventGroup 'inputs' has no event 'three'; it has ['one', 'two']",
    ),
    "an empty group": (lambda: EventGroup("inputs", {}), "a group without events would wait for nothing"),
    "no mapping": (lambda: EventGroup("inputs", [Event(QUEUE)]), "must be a mapping of names to Events, got list"),  # type: ignore[arg-type]
    "no event": (
        lambda: sensor({"one": QUEUE}),
        "'one' must be an Event, such as Event(KafkaTopic('orders')), got Mem",
    ),
    "no source": (lambda: Event("queue"), "an Event's source must be a Source such as KafkaTopic(...), got 'queue'"),  # type: ignore[arg-type]
    "a negative count": (lambda: Event(QUEUE, count=-1), "an Event's count must be a whole number from 1, got -1"),
    "a count of zero": (lambda: Event(QUEUE, count=0), "an Event's count must be a whole number from 1, got 0"),
    "a count that is none": (lambda: Event(QUEUE, count=True), "count must be a whole number from 1, got True"),
    "a negative timeout": (
        lambda: sensor(timeout=-5),
        "EventGroupSensor 'wait': timeout must be longer than nothing, got -5",
    ),
    "a timeout of zero": (lambda: EventGroup("inputs", ONE, timeout=0), "timeout must be longer than nothing"),
    "a negative timedelta": (lambda: sensor(timeout=timedelta(seconds=-1)), "timeout must be longer than nothing"),
    "an endless timeout": (lambda: sensor(timeout=float("inf")), "timeout is longer than a thousand years"),
    "a timeout that is none": (lambda: sensor(timeout="soon"), "timeout"),
    "a lambda": (
        lambda: Event(QUEUE, match=lambda message: True),
        "cannot be imported by the triggerer; put the funct",
    ),
    "no match": (lambda: Event(QUEUE, match=7), "match must be a mapping, the dotted path of a callable, or None"),  # type: ignore[arg-type]
    "no path": (lambda: Event(QUEUE, match="orders"), "match='orders' is no dotted path of a callable, such as"),
    "an empty pattern": (lambda: Event(QUEUE, match={}), "match: an empty mapping says nothing"),
    "a value that is none": (lambda: Event(QUEUE, match={"a": [object()]}), "match['a'][0]: expected a string, a num"),
    "no moment": (lambda: Event(QUEUE, since="yesterday"), "since='yesterday' is no ISO 8601 moment"),
    "not serialisable": (
        lambda: sensor({"one": Event(MemoryQueue("q", shared=object()))}),  # type: ignore[arg-type]
        "event 'one' cannot be sent to the triggerer, because something in it is not JSON: object",
    ),
    "an event named wait": (lambda: EventGroup("inputs", {"wait": Event(QUEUE)}), "an event cannot be named 'wait'"),
    "an event named join": (lambda: EventGroup("inputs", {"join": Event(QUEUE)}), "an event cannot be named 'join'"),
    "a name that is none": (lambda: sensor({"a b": Event(QUEUE)}), "'a b' is no name for an event; it becomes a task"),
    "an empty name": (lambda: sensor({"": Event(QUEUE)}), "'' is no name for an event"),
    "a number for a name": (lambda: sensor({1: Event(QUEUE)}), "1 is no name for an event"),
    "markers of others": (lambda: sensor(markers={"x": "y"}), "markers names ['x'], which are not among its events"),
    "no handler": (lambda: sensor(on_event="print"), "on_event must be a function, got 'print'"),
    "the group's arguments": (
        lambda: EventGroup("inputs", ONE, sensor_args={"timeout": 1, "task_id": "x", "retries": 1}),
        "EventGroup 'inputs': sensor_args cannot hold ['task_id', 'timeout'], the group sets those",
    ),
    "the markers' arguments": (
        lambda: EventGroup("inputs", ONE, marker_args={"task_id": "x"}),
        "EventGroup 'inputs': marker_args cannot hold ['task_id'], the group sets those",
    ),
    "too long": (
        lambda: sensor({f"e{n}": Event(QUEUE, match={"a": ["x" * 100_000]}) for n in range(50)}),
        "the declarations of its events are longer than 4194304 bytes; split it",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_clear_sentence(mistake: str) -> None:
    make, text = MISTAKES[mistake]
    with pytest.raises(InvalidEventError) as caught, parsed():
        make()
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_marker_is_missing() -> None:
    with pytest.raises(InvalidEventError) as caught, parsed():
        EventGroupSensor(task_id="wait", events=TWO) >> EventMarker(task_id="one")
    assert str(caught.value) == (
        "EventGroupSensor 'wait': event 'two' has no marker; put EventMarker(task_id='two') directly behind the "
        "sensor, or use EventGroup, which does"
    )


def test_a_marker_is_there_but_not_behind_the_sensor() -> None:
    with pytest.raises(InvalidEventError, match="event 'one' has no marker"), parsed():
        EventGroupSensor(task_id="wait", events=ONE) >> EmptyOperator(task_id="between") >> EventMarker(task_id="one")


def test_a_marker_that_is_none() -> None:
    with pytest.raises(InvalidEventError) as caught, parsed():
        EventGroupSensor(task_id="wait", events=ONE) >> EmptyOperator(task_id="one")
    assert str(caught.value) == (
        "EventGroupSensor 'wait': task 'one' stands for event 'one' but is a EmptyOperator; make it an EventMarker"
    )


def test_a_function_is_taken_by_its_path() -> None:
    event = Event(QUEUE, match=any_message)
    assert event.match == f"{__name__}.any_message"
