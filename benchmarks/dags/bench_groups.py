"""Groups of events, as the package has them."""

from __future__ import annotations

from datetime import timedelta

from airflow.sdk import DAG, task

from benchmarks.plan import CROWD, EVENTS, GROUPS, ONE, QUEUE, TOPICS
from event_triggers import Event, EventGroup, KafkaTopic, MqttTopic, Source, SqsQueue


def source(broker: str, number: int) -> Source:
    """Where an event of a group comes from."""
    if broker == "kafka":
        return KafkaTopic(TOPICS[number % len(TOPICS)], conn_id="bench_kafka")
    if broker == "sqs":
        return SqsQueue(QUEUE, conn_id="bench_aws")
    return MqttTopic("bench/{{ run_id }}", conn_id="bench_mqtt")


def group_dag(dag_id: str, broker: str, names: list[str]) -> DAG:
    """One group, and a task behind it."""
    with DAG(dag_id, schedule=None, max_active_runs=10_000, max_active_tasks=64) as dag:
        events = {
            name: Event(source(broker, number), match={"run": ["{{ run_id }}"], "event": [name]})
            for number, name in enumerate(names)
        }

        @task
        def after() -> None:
            """What the group is waited for with."""

        EventGroup("inputs", events=events, timeout=timedelta(hours=6)) >> after()
    return dag


dags = [group_dag(dag_id, broker, EVENTS) for broker, dag_id in GROUPS.items()]
dags.append(group_dag(CROWD, "kafka", EVENTS))
dags.append(group_dag(ONE, "kafka", EVENTS[:1]))
globals().update({dag.dag_id: dag for dag in dags})
