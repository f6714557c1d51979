"""The sensor and its markers wired by hand, for a graph of one's own: each marker leads to a task of its own.

A marker's task id is its event's name, and every marker stands directly behind the sensor.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from airflow.sdk import DAG, chain, task

from event_triggers import Event, EventGroupSensor, EventMarker, KafkaTopic, MqttTopic, SqsQueue

with DAG("by_hand", schedule=None, start_date=datetime(2026, 1, 1), catchup=False, tags=["example"]):
    wait = EventGroupSensor(
        task_id="wait",
        events={
            "msg_1": Event(KafkaTopic("etl-finish"), match={"table": ["customers"]}),
            "msg_2": Event(SqsQueue("customer-events")),
            "msg_3": Event(MqttTopic("plant/+/started")),
        },
        timeout=timedelta(minutes=10),
    )
    msg_1, msg_2, msg_3 = (EventMarker(task_id=name) for name in ("msg_1", "msg_2", "msg_3"))

    @task
    def load_customers(message: dict[str, object]) -> None:
        """Runs as soon as the first message is there, while the sensor still waits for the others."""
        print(message)

    @task
    def report() -> None:
        """Runs when everything is there."""

    chain(wait, [msg_1, msg_2, msg_3], report())
    load_customers(msg_1.output)
