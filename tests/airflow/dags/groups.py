"""Groups over real brokers. Every message names the run that it is for, so runs keep out of each other's way."""

from __future__ import annotations

from datetime import timedelta

from airflow.sdk import DAG, task

from event_triggers import Event, EventGroup, KafkaTopic, MqttTopic, SqsQueue

MINE = {"run": ["{{ run_id }}"]}


def kafka(**match: object) -> Event:
    return Event(KafkaTopic("airflow-tests", conn_id="tests_kafka"), match={**MINE, **match})


def sqs(queue: str, **match: object) -> Event:
    return Event(SqsQueue(queue, conn_id="tests_aws", visibility_timeout=10), match={**MINE, **match})


def mqtt(what: str, count: int = 1) -> Event:
    return Event(MqttTopic(f"airflow-tests/+/{what}", conn_id="tests_mqtt"), match=MINE, count=count)


def group_dag(dag_id: str, **events: Event) -> DAG:
    """A group, and a task that is given the payload of each of its events."""
    with DAG(dag_id, schedule=None, max_active_runs=64) as dag:
        group = EventGroup("inputs", events=events, timeout=timedelta(minutes=5))

        @task
        def collect(payloads: dict[str, object]) -> dict[str, object]:
            return payloads

        group >> collect({name: group[name].output for name in events})
    return dag


over_kafka = group_dag("over_kafka", one=kafka(what=["one"]), two=kafka(what=["two"]), three=kafka(what=["three"]))
over_sqs = group_dag("over_sqs", one=sqs("one"), two=sqs("two"), three=sqs("three.fifo"))
over_mqtt = group_dag("over_mqtt", one=mqtt("one"), two=mqtt("two"), three=mqtt("three", count=2))
over_all = group_dag("over_all", orders=kafka(table=["orders"]), stock=sqs("stock"), shifts=mqtt("shift", count=3))
many = group_dag("many", **{f"event_{number}": kafka(number=[number]) for number in range(20)})
