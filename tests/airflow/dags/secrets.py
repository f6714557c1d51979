"""A group whose connections hold secrets that the test has made up, and one whose broker is not there."""

from __future__ import annotations

from airflow.sdk import DAG, task

from event_triggers import Event, EventGroup, KafkaTopic, MqttTopic, SqsQueue

MINE = {"run": ["{{ run_id }}"]}

with DAG("secrets", schedule=None):
    queue = SqsQueue("secrets", conn_id="secret_aws", visibility_timeout=10)
    events = {
        "orders": Event(KafkaTopic("airflow-tests", conn_id="secret_kafka"), match={**MINE, "what": ["secrets"]}),
        "stock": Event(queue, match=MINE),
        "shift": Event(MqttTopic("airflow-tests/+/secrets", conn_id="secret_mqtt"), match=MINE),
        "never": Event(KafkaTopic("airflow-tests", conn_id="secret_nowhere")),
    }
    group = EventGroup("inputs", events=events, timeout=600)

    @task
    def after() -> None: ...

    group >> after()
