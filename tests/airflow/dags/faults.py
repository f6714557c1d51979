"""Groups for what servers do to them. The first is waited for by a test itself: paused, so Airflow starts nothing."""

from __future__ import annotations

from datetime import timedelta

from airflow.sdk import DAG, task

from event_triggers import Event, EventGroup, KafkaTopic, MqttTopic, SqsQueue

MINE = {"run": ["{{ run_id }}"]}

with DAG("fault_api", schedule=None, is_paused_upon_creation=True):
    nobody = Event(SqsQueue("nobody-sends-here", conn_id="tests_aws"))
    EventGroup("inputs", events={f"event_{number}": nobody for number in range(12)}, timeout=timedelta(hours=1))

with DAG("fault_all", schedule=None):
    kafka = Event(KafkaTopic("airflow-tests", conn_id="tests_kafka"), match={**MINE, "what": ["orders"]}, count=2)
    sqs = Event(SqsQueue("faults", conn_id="tests_aws", visibility_timeout=10), match={**MINE, "what": ["stock"]})
    mqtt = Event(MqttTopic("airflow-tests/+/faults", conn_id="tests_mqtt"), match=MINE, count=2)
    last = Event(SqsQueue("faults", conn_id="tests_aws", visibility_timeout=10), match={**MINE, "what": ["last"]})
    events = {"orders": kafka, "stock": sqs, "shifts": mqtt, "last": last}
    group = EventGroup("inputs", events=events, timeout=timedelta(minutes=10))

    @task
    def after() -> str:
        return "done"

    group >> after()
