"""The same waits with Airflow's own sensors, and its own idle trigger in a DAG of the same shape."""

from __future__ import annotations

from typing import Any

from airflow.providers.amazon.aws.sensors.sqs import SqsSensor
from airflow.providers.apache.kafka.sensors.kafka import AwaitMessageSensor
from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.providers.standard.sensors.date_time import DateTimeSensorAsync
from airflow.sdk import DAG, Param, task

from benchmarks.plan import EVENTS, IDLE, PEERS

SQS: dict[str, Any] = {"sqs_queue": "{{ params.queue }}", "aws_conn_id": "bench_aws"}
SENSORS: dict[str, Any] = {
    "sqs_default": lambda: SqsSensor(task_id="wait", deferrable=True, **SQS),
    # The trigger's waiter_delay is what the operator calls poke_interval.
    "sqs_best": lambda: SqsSensor(task_id="wait", deferrable=True, poke_interval=1, **SQS),
    "reschedule": lambda: SqsSensor(task_id="wait", mode="reschedule", poke_interval=5, **SQS),
}

with DAG(IDLE, schedule=None, max_active_runs=10_000) as idle:
    wait = DateTimeSensorAsync(task_id="wait", target_time="2099-01-01T00:00:00+00:00", start_from_trigger=True)

    @task
    def after() -> None:
        """The last task of the DAG."""

    wait >> [EmptyOperator(task_id=name) for name in EVENTS] >> after()

for kind, make in SENSORS.items():
    with DAG(PEERS[kind], schedule=None, max_active_runs=100, params={"queue": Param("")}) as dag:
        make()
    globals()[dag.dag_id] = dag

# Nothing is slept between two messages, and nothing is committed, which would be one more request for each.
BEST: dict[str, Any] = {"poll_timeout": 0.1, "poll_interval": 0, "commit_offset": False}
for kind, settings in (("await_default", {}), ("await_best", BEST)):
    with DAG(PEERS[kind], schedule=None, max_active_runs=100, params={"topic": Param(""), "conn": Param("")}) as dag:
        AwaitMessageSensor(
            task_id="wait",
            topics=["{{ params.topic }}"],
            kafka_config_id="{{ params.conn }}",
            apply_function="benchmarks.plan.matches",
            apply_function_kwargs={"run_id": "{{ run_id }}"},
            **settings,
        )
    globals()[dag.dag_id] = dag
