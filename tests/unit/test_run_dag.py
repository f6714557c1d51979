"""Users' tests of DAGs: run_dag on a real DAG with Airflow's dag.test(), run_group on one group."""

from __future__ import annotations

import os
import re
import runpy
import sys
import tempfile
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta, timezone
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import DAG, task, task_group

from event_triggers import Event, EventGroup, EventGroupSensor, EventMarker, KafkaTopic, MqttTopic, SqsQueue, at_least
from event_triggers.errors import EventTriggersError
from event_triggers.message import Message
from event_triggers.offline.lines import OfflineError
from event_triggers.testing import MemoryQueue, RunResult, Sent, run_dag, run_group
from tests.unit.test_docs_testing import blocks

pytestmark = [
    # dag.test() leaves its supervisor's sockets and its connection to the database to the garbage collector.
    pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning"),
    pytest.mark.filterwarnings("ignore:unclosed database in:ResourceWarning"),
]
RUN_AFTER = "2026-11-22T06:00:00Z"
START = datetime(2026, 11, 22, 6, tzinfo=timezone.utc)
HOUR = timedelta(hours=1)
handled: list[tuple[str, Any]] = []
told: list[list[str]] = []


def is_large(message: Message) -> bool:
    return bool(message.json["n"] > 10)


def group_dag(events: dict[str, Event], **arguments: Any) -> DAG:
    """A DAG with one group, and a task behind it that gives what it was given."""
    with DAG("tested", schedule=None, params={"wanted": 1}) as dag:
        inputs = EventGroup("inputs", events, **arguments)

        @task
        def after(payload: Any) -> Any:
            return payload

        inputs >> after(inputs[next(iter(events))].output)
    return dag


def run(dag: DAG, *messages: Any, **arguments: Any) -> RunResult:
    return run_dag(dag, messages, **{"run_after": RUN_AFTER, **arguments})


def test_messages_reach_their_events_and_the_tasks_behind() -> None:
    dag = group_dag(
        {
            "orders": Event(
                KafkaTopic("t"), match={"date": ["{{ ds }}"], "n": ["{{ var.value.n }}"], "c": ["{{ dag_run.conf.c }}"]}
            ),
            "stock": Event(SqsQueue("q"), match="tests.unit.test_run_dag.is_large", count=2),
            "shift": Event(MqttTopic("plant/+/end")),
            "own": Event(MemoryQueue("channel")),
        },
        timeout=HOUR,
    )
    orders = {"date": "2026-11-22", "n": "7", "c": "x"}
    sent = [
        {"topic": "t", "body": {**orders, "n": "8"}},
        Sent(body=orders, stream="t", key="k", headers={"h": "v"}),
        Sent(body={"n": 3}, source="sqs"),
        Sent(body={"n": 11}, source="sqs"),
        Sent(body={"n": 12}, event="stock", after=60),
        Sent(body="over", stream="plant/4/end", after=timedelta(minutes=2)),
        Sent(body=b"\xff", stream="channel", source="memory-queue"),
    ]
    result = run(dag, *sent, variables={"n": 7}, conf={"c": "x"})
    assert result.state == "success", result
    assert set(result.states.values()) == {"success"}
    assert result.outputs["after"] == result.outputs["inputs.orders"] == orders
    assert result.outputs["inputs.stock"] == [{"n": 11}, {"n": 12}]
    assert result.outputs["inputs.shift"] == "over"
    assert result.outputs["inputs.wait"]["shift"]["stream"] == "plant/4/end"
    assert result.notes["inputs.stock"].startswith("sqs q line 5 (2 of 2)")
    group = result.groups["inputs"]
    assert group.messages == {"orders": [sent[1]], "stock": sent[3:5], "shift": [sent[5]], "own": [sent[6]]}
    assert group.ended == START + timedelta(minutes=2)
    assert (group.complete, group.missing) == (True, [])
    assert "message 1, t, 2026-11-22T06:00:00+00:00\n  orders: does not count: " in str(result)


def test_timeout_fails_with_the_sensors_own_error() -> None:
    dag = group_dag({"a": Event(KafkaTopic("t")), "b": Event(KafkaTopic("u"))}, timeout=6 * HOUR)
    result = run(dag, Sent(body=1, stream="t"), Sent(body=2, stream="u", after=7 * HOUR))
    assert result.state == "failed"
    assert type(result.errors["inputs.wait"]).__name__ == "AirflowSensorTimeout"
    assert str(result.errors["inputs.wait"]) == "after 21600 s these events have not come: b"
    assert result.states == {
        "inputs.wait": "failed",
        "inputs.a": "success",
        "inputs.b": "upstream_failed",
        "after": "upstream_failed",
    }
    group = result.groups["inputs"]
    assert (group.events, group.missing, group.ended) == ({"a": "success", "b": None}, ["b"], START + 6 * HOUR)
    assert "AirflowSensorTimeout: after 21600 s" in str(result)
    assert "NOT COMPLETE, the time was up; these have not come: b" in str(result)


def test_condition_skips_the_others_and_goes_on_behind_the_join() -> None:
    events = {name: Event(KafkaTopic(name)) for name in ("a", "b", "c")}
    result = run(
        group_dag(events, condition=at_least(2), timeout=HOUR), Sent(body=1, event="a"), Sent(body=2, event="c")
    )
    assert result.state == "success", result
    assert result.states["inputs.b"] == "skipped"
    assert result.states["inputs.join"] == result.states["inputs.wait"] == "success"
    assert result.states["after"] == "success"


def test_events_own_time_and_an_optional_event() -> None:
    events = {
        "a": Event(KafkaTopic("a")),
        "b": Event(KafkaTopic("b"), timeout=60, required=False),
    }
    result = run(group_dag(events, timeout=HOUR), Sent(body=1, event="a", after=120), Sent(body=2, event="b", after=90))
    assert result.groups["inputs"].events["a"] == "success"
    assert result.groups["inputs"].messages["b"] == []
    assert result.states["inputs.b"] == "failed"
    assert result.states["inputs.wait"] == "success"


def test_arrivals_are_handed_over_and_somebody_is_told() -> None:
    handled.clear()
    told.clear()
    dag = group_dag(
        {"a": Event(KafkaTopic("a"), count=2), "b": Event(SqsQueue("b"))},
        timeout=3 * HOUR,
        on_event=lambda messages: handled.extend((one.event, one.payload) for one in messages),
        warn_after=HOUR,
        notifier=lambda context: told.append(context["event_group"]["missing"]),
    )
    result = run(dag, *(Sent(body=n, event=name, after=n * HOUR) for n, name in ((0.5, "a"), (0.75, "b"), (2, "a"))))
    assert result.state == "success", result
    assert handled == [("a", 0.5), ("b", 0.75), ("a", 2)]
    assert told == [["a (1 of 2)"]]
    assert result.groups["inputs"].warned == (START + HOUR, ["a (1 of 2)"])
    assert result.outputs["inputs.a"] == [0.5, 2]


def test_failing_handler_is_tried_again_without_delay() -> None:
    calls: list[int] = []

    def flaky(messages: Sequence[Any]) -> None:
        calls.append(len(messages))
        if len(calls) == 1:
            raise RuntimeError("the first time")

    dag = group_dag({"a": Event(KafkaTopic("a"))}, timeout=HOUR, on_event=flaky, sensor_args={"retries": 1})
    result = run(dag, Sent(body=1, event="a"))
    assert result.state == "success", result
    assert calls == [1, 1]
    assert result.errors == {}
    assert dag.get_task("inputs.wait").retry_delay == timedelta(minutes=5)


def test_groups_side_by_side_and_one_behind_the_other() -> None:
    with DAG("several", schedule=None) as dag:
        log, session = Event(KafkaTopic("t")), Event(MqttTopic("m"))
        queue = Event(SqsQueue("q"))
        first = EventGroup("first", {"log": log, "queue": queue, "session": session}, timeout=HOUR)
        beside = EventGroup("beside", {"queue": queue}, timeout=HOUR)
        second = EventGroup("second", {"log": log, "queue": queue, "session": session}, timeout=HOUR)
        first >> second
        beside >> EventMarker(task_id="end")
    sent = [
        Sent(body={"n": 1}, stream="q"),
        Sent(body={"n": 2}, stream="q"),
        Sent(body=3, stream="t"),
        Sent(body=4, stream="m", after=HOUR / 2),
        Sent(body=5, stream="m", after=timedelta(minutes=80)),
    ]
    result = run(dag, *sent)
    assert result.state == "success", result
    assert result.groups["first"].messages == {"log": [sent[2]], "queue": [sent[0]], "session": [sent[3]]}
    assert result.groups["beside"].messages == {"queue": [sent[0]]}
    # The log has it still, the queue what nobody has taken, and the session begins with the group.
    assert result.groups["second"].messages == {"log": [sent[2]], "queue": [sent[1]], "session": [sent[4]]}
    assert result.groups["second"].ended == START + timedelta(minutes=80)


def test_mapped_group_has_a_wait_for_each_index() -> None:
    with DAG("mapped", schedule=None) as dag:

        @task_group
        def site(name: str) -> None:
            shift = Event(KafkaTopic("shifts"), match={"site": ["{{ ti.map_index }}"]})
            inputs = EventGroup("inputs", {"shift": shift}, timeout=HOUR)

            @task
            def after(payload: Any, of: str) -> Any:
                return [of, payload["n"]]

            inputs >> after(inputs["shift"].output, name)

        site.expand(name=["north", "south", "west"])
    sent = [Sent(body={"site": str(index), "n": 10 * index}, stream="shifts") for index in (1, 0, 3)]
    result = run(dag, *sent)
    assert result.state == "failed"
    assert [result.groups[f"site.inputs[{index}]"].complete for index in range(3)] == [True, True, False]
    assert [result.states[f"site.inputs.shift[{index}]"] for index in range(3)] == [
        "success",
        "success",
        "upstream_failed",
    ]
    assert result.outputs["site.inputs.shift[1]"] == {"site": "1", "n": 10}
    assert result.outputs["site.after[1]"] == ["south", 10]
    assert result.outputs["site.after[0]"] == ["north", 0]
    assert result.states["site.after[2]"] == "upstream_failed"
    assert set(result.errors) == {"site.inputs.wait[2]"}


def test_sensor_by_hand_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "by_hand.py"
    path.write_text((Path(__file__).parents[2] / "dags" / "by_hand.py").read_text())
    result = run_dag(path)
    assert set(result.groups) == {"wait"}
    assert result.states["wait"] == "failed"


def test_example_dag_needs_no_broker() -> None:
    path = Path(__file__).parents[2] / "dags" / "daily_close.py"
    result = run_dag(path, [{"any": "thing"}], run_after=RUN_AFTER)
    assert result.groups["inputs"].replayed.steps[0].messages


def test_wrong_value_of_a_template_is_the_tasks_error() -> None:
    dag = group_dag({"a": Event(KafkaTopic("a"), since="{{ params.wanted }} o'clock")}, timeout=HOUR)
    result = run(dag)
    assert result.state == "failed"
    error = str(result.errors["inputs.wait"])
    assert error.startswith("the group could not wait: InvalidEventError: ")
    assert "1 o'clock" in error
    assert f"inputs.wait: failed, AirflowException: {error}" in str(result)


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda dag: run(dag, Sent(body=object())), "message 1 cannot be written as JSON"),
        (lambda dag: run(dag, Sent(body=1, after=1, timestamp=RUN_AFTER)), "both a timestamp and after="),
        (lambda dag: run(dag, Sent(body=1, timestamp="noon")), "message 1: its timestamp 'noon' is no moment"),
        (lambda dag: run(dag, run_after="noon"), "'noon' is no moment"),
        (lambda dag: run_group(dag, "elsewhere"), "DAG 'tested' has no group 'elsewhere'; it has tested: inputs"),
        (lambda dag: run_dag(Path("no_such_file.py")), "there is no file no_such_file.py"),
    ],
)
def test_what_is_given_wrongly_is_told(call: Callable[[DAG], Any], error: str) -> None:
    with pytest.raises(OfflineError, match=error):
        call(group_dag({"a": Event(KafkaTopic("a"))}))


@pytest.mark.parametrize(
    "step",
    ["airflow.sdk.definitions.dag._run_inline_trigger", "airflow.sdk.execution_time.supervisor.run_task_in_process"],
)
def test_airflow_without_the_steps_that_are_taken_over_is_refused(step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(step)
    with pytest.raises(EventTriggersError, match=rf"it has no {re.escape(step)}\. Supported are Airflow 3\.1 to 3\.3"):
        run(group_dag({"a": Event(KafkaTopic("a"))}))


async def test_coroutine_is_told_that_it_cannot_run_a_dag() -> None:
    with pytest.raises(OfflineError, match=r"call it from a test that is no coroutine"):
        run_dag(group_dag({"a": Event(KafkaTopic("a"))}))


def test_one_group_needs_no_run() -> None:
    dag = group_dag({"a": Event(KafkaTopic("a")), "b": Event(SqsQueue("b"), match={"d": ["{{ ds }}"]})}, timeout=HOUR)
    sent = [Sent(body=1, event="a"), Sent(body={"d": "2026-11-22"}, event="b", after=60)]
    group = run_group(dag, "inputs", sent, run_after=RUN_AFTER)
    assert group.complete, group
    assert group.messages == {"a": [sent[0]], "b": [sent[1]]}
    assert group.events == {"a": "success", "b": "success"}
    waiting = run_group(dag, "inputs.wait", sent[:1], run_after=RUN_AFTER)
    assert (waiting.complete, waiting.missing) == (False, ["b"])
    assert "NOT COMPLETE, waits for: b" in str(waiting)


def test_sensor_by_hand_in_a_group_of_its_own() -> None:
    with DAG("by_hand", schedule=None) as dag:
        wait = EventGroupSensor(task_id="wait", events={"m": Event(KafkaTopic("t"))}, timeout=HOUR)
        wait >> EventMarker(task_id="m")
    result = run(dag, Sent(body={"x": 1}))
    assert result.outputs["m"] == {"x": 1}
    assert result.groups["wait"].complete


def test_tests_of_a_dag_pass_as_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process, where Airflow's in-process API is made already: that takes longer than all these tests."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for name, text in blocks("testing-dags.md").items():
        (tmp_path / name).write_text(text)
    home = os.environ["AIRFLOW_HOME"]
    runpy.run_path(str(tmp_path / "conftest.py"))
    assert os.environ["AIRFLOW_HOME"] == home  # one that is set is kept
    try:
        tests = vars(import_module("test_daily_close"))
        found = [name for name in tests if name.startswith("test_")]
        for name in found:
            tests[name]()
    finally:
        for name in ("daily_close", "test_daily_close"):
            sys.modules.pop(name, None)
    assert len(found) == 3
