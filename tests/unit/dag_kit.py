"""What the tests of sensors and groups share: DAGs as the DAG processor, the scheduler and the triggerer treat them."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from typing import Any

from airflow.executors.workloads.task import TaskInstanceDTO
from airflow.jobs.triggerer_job_runner import TriggerRunner
from airflow.models.trigger import Trigger
from airflow.sdk import DAG
from airflow.serialization.decoders import smart_decode_trigger_kwargs
from airflow.serialization.serialized_objects import DagSerialization

from event_triggers.trigger import EventGroupTrigger

__all__ = ["RUN_AFTER", "in_the_database", "parsed", "started_in_the_triggerer"]

RUN_AFTER = datetime(2030, 1, 2, tzinfo=timezone.utc)


@contextmanager
def parsed(**options: Any) -> Iterator[DAG]:
    """A DAG that is checked, when the context ends, as the DAG processor does."""
    with DAG("daily", schedule="@daily", start_date=datetime(2030, 1, 1, tzinfo=timezone.utc), **options) as dag:
        yield dag
    check: Any = dag
    check.check_cycle()
    check.resolve_template_files()


def in_the_database(dag: DAG) -> dict[str, Any]:
    """The DAG, as it is stored."""
    encoded: dict[str, Any] = DagSerialization.to_dict(dag)
    DagSerialization.validate_schema(encoded)
    return encoded


def started_in_the_triggerer(
    dag: DAG, task_id: str, *, logical_date: datetime | None = datetime(2030, 1, 1, tzinfo=timezone.utc)
) -> EventGroupTrigger:
    """The trigger of a task that starts without a worker, its templates rendered, as Airflow's triggerer makes it."""
    encoded = in_the_database(dag)
    task = DagSerialization.from_dict(encoded).get_task(task_id)
    assert task.start_from_trigger
    arguments = task.start_trigger_args
    assert arguments is not None
    assert arguments.trigger_cls == "event_triggers.trigger.EventGroupTrigger"
    stored = Trigger._decrypt_kwargs(Trigger(arguments.trigger_cls, arguments.trigger_kwargs or {}).encrypted_kwargs)
    decode: Any = smart_decode_trigger_kwargs
    trigger = EventGroupTrigger(**{name: decode(value) for name, value in stored.items()})
    instance = TaskInstanceDTO(
        id=uuid.uuid4(),
        dag_version_id=uuid.uuid4(),
        task_id=task_id,
        dag_id=dag.dag_id,
        run_id="scheduled__1",
        try_number=1,
        map_index=-1,
        pool_slots=1,
        queue="default",
        priority_weight=1,
    )
    runtime_ti = TriggerRunner.create_runtime_ti(instance, encoded, _run_data(dag, logical_date))
    trigger.task_instance = runtime_ti  # type: ignore[assignment]
    trigger.render_template_fields(context=runtime_ti.get_template_context())
    return trigger


def _run_data(dag: DAG, logical_date: datetime | None) -> dict[str, Any]:
    return {
        "dag_id": dag.dag_id,
        "run_id": "scheduled__1",
        "logical_date": logical_date,
        "data_interval_start": logical_date,
        "data_interval_end": RUN_AFTER if logical_date else None,
        "run_after": RUN_AFTER,
        "start_date": RUN_AFTER,
        "end_date": None,
        "run_type": "scheduled",
        "state": "running",
        "conf": {"region": "eu"},
        "consumed_asset_events": [],
        "partition_key": None,
    }
