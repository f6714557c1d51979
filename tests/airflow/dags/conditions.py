"""Groups that can be complete before all their events have come, and groups whose time is up; many in one run."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.sdk import DAG, BaseNotifier

from event_triggers import Event, EventGroup, KafkaTopic, MqttTopic, at_least

MINE = {"run": ["{{ run_id }}"]}


def kafka(group: str, what: str, **options: Any) -> Event:
    return Event(
        KafkaTopic("airflow-tests", conn_id="tests_kafka"), match={**MINE, "group": [group], "what": [what]}, **options
    )


def mqtt(group: str, what: str) -> Event:
    return Event(MqttTopic(f"airflow-tests/{group}/{what}", conn_id="tests_mqtt"), match=MINE)


def three(group: str) -> dict[str, Event]:
    return {what: kafka(group, what) for what in "abc"}


def grouped(group_id: str, events: dict[str, Event], *, timeout: Any = 240, **options: Any) -> EventGroup:
    """The group, and a task behind it that knows nothing of conditions."""
    group = EventGroup(group_id, events, timeout=timeout, **options)
    group >> EmptyOperator(task_id=f"after_{group_id}")
    return group


class ToFile(BaseNotifier):
    """Adds what it is told to the file that the run names."""

    def notify(self, context: Any) -> None:
        with Path(context["dag_run"].conf["file"]).open("a") as file:
            file.write(json.dumps(context["event_group"]) + "\n")


with DAG("conditions", schedule=None) as complete:
    grouped("any_of", three("any_of"), condition="any")
    grouped("two_of", three("two_of"), condition=at_least(2))
    grouped("either", three("either"), condition="(a and b) or c")
    grouped("optional", {"a": kafka("optional", "a"), "b": kafka("optional", "b", required=False)})
    grouped(
        "tolerant", {"a": kafka("tolerant", "a", timeout=2), "b": kafka("tolerant", "b")}, condition="any", timeout=200
    )
    grouped("marked", three("marked"), condition="any")
    grouped("warned", {"a": kafka("warned", "a")}, warn_after=2, notifier=ToFile())
    grouped("sequence", {"a": kafka("sequence", "a"), "b": kafka("sequence", "b")}, sequence=True)
    grouped("agree", {"a": kafka("agree", "a"), "b": kafka("agree", "b")}, correlate="order")
    grouped("agree_mqtt", {"a": mqtt("agree", "a"), "b": mqtt("agree", "b")}, correlate="order")
    fresh = Event(KafkaTopic("airflow-tests", conn_id="tests_kafka"), match={"fresh": ["{{ dag_run.conf.fresh }}"]})
    grouped("fresh", {"a": fresh}, valid_for=timedelta(hours=1))

with DAG("conditions_over", schedule=None) as over:
    grouped("timeout", three("timeout"), condition="any", timeout=2)
    grouped("soft", three("soft"), condition="any", timeout=2, sensor_args={"soft_fail": True})
    grouped("cron", three("cron"), condition=at_least(2), timeout="* * * * * */5")
    grouped("until", three("until"), deadline="{{ (dag_run.run_after + macros.timedelta(seconds=4)).isoformat() }}")
    grouped(
        "essential",
        {**three("essential"), "c": kafka("essential", "c", timeout=2)},
        condition="(a or b) and c",
    )
