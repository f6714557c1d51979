"""Groups for what users do to them: let them time out, retry, clear, mark by hand."""

from __future__ import annotations

from typing import Any

from airflow.sdk import DAG, get_current_context, task

from event_triggers import ArrivedMessage, Event, EventGroup, EventGroupSensor, EventMarker, SqsQueue

MINE = {"run": ["{{ run_id }}"]}


def sqs(what: str, count: int = 1) -> Event:
    source = SqsQueue("stories", conn_id="tests_aws", visibility_timeout=10)
    return Event(source, match={**MINE, "what": [what]}, count=count)


def story(dag_id: str, timeout: float, **arguments: Any) -> DAG:
    with DAG(dag_id, schedule=None) as dag:
        events = {"one": sqs("one"), "two": sqs("two"), "three": sqs("three")}
        group = EventGroup("inputs", events=events, timeout=timeout, **arguments)

        @task
        def after() -> str:
            return "done"

        group >> after()
    return dag


def fail_once(messages: list[ArrivedMessage]) -> None:
    """Fails the first try, whatever has come; prints what it is given."""
    context = get_current_context()
    print("HANDED OVER", [(message.event, message.payload["what"]) for message in messages])
    if context["ti"].try_number == 1:
        raise RuntimeError("the first try fails")


def remember(messages: list[ArrivedMessage], context: Any) -> None:
    """Prints what it is given."""
    for message in messages:
        print("HANDED OVER", message.event, message.payload["number"], message.facts["position"], context["run_id"])


short = story("story_timeout", 40)
soft = story("story_soft_fail", 3, sensor_args={"soft_fail": True})
patient = story("story_users", 300, sensor_args={"retries": 0})
retried = story("story_retries", 300, on_event=fail_once, sensor_args={"retries": 1, "retry_delay": 1})

with DAG("story_on_event", schedule=None) as on_event:
    some = {"any": sqs("any", count=6), "last": sqs("last")}
    handled = EventGroup("inputs", events=some, on_event=remember, timeout=300)

with DAG("story_by_hand", schedule=None) as by_hand:
    wait = EventGroupSensor(task_id="wait", events={"msg_1": sqs("one"), "msg_2": sqs("two")}, timeout=300)

    @task
    def task_a() -> None: ...

    wait >> [EventMarker(task_id="msg_1"), EventMarker(task_id="msg_2")] >> task_a()

with DAG("story_xcom_arg", schedule=None) as with_xcom_arg:

    @task
    def order() -> str:
        return "order-4711"

    event = Event(SqsQueue("stories", conn_id="tests_aws", visibility_timeout=10), match={**MINE, "order": [order()]})
    EventGroup("inputs", events={"paid": event}, timeout=300)
