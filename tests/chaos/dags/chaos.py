"""One group over three brokers, with events that await one message and events that await several."""

from __future__ import annotations

from datetime import timedelta

from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.sdk import DAG

from event_triggers import Event, EventGroup, KafkaTopic, MqttTopic, SqsQueue
from tests.chaos.plan import DAG_ID, EVENTS, QUEUE_PREFIX, TOPIC

SOURCES = {
    "k": KafkaTopic(TOPIC, conn_id="chaos_kafka"),
    # Short, so that what a killed triggerer held comes back soon.
    "s": SqsQueue(QUEUE_PREFIX + "{{ run_id.partition('-')[0] }}", conn_id="chaos_aws", visibility_timeout=20),
    "m": MqttTopic("chaos/{{ run_id }}/+", conn_id="chaos_mqtt"),
}

with DAG(DAG_ID, schedule=None, max_active_runs=1000) as dag:
    events = {
        name: Event(SOURCES[name[0]], match={"run": ["{{ run_id }}"], "event": [name]}, count=count)
        for name, count in EVENTS.items()
    }
    EventGroup("inputs", events=events, timeout=timedelta(hours=1)) >> EmptyOperator(task_id="done")
