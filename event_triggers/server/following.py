"""What follows a mark in Airflow besides the state itself: what failed behind it is cleared, and listeners are told."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from airflow.listeners.listener import get_listener_manager
from airflow.models.dagbag import DBDagBag
from airflow.models.taskinstance import TaskInstance
from sqlalchemy import select
from sqlalchemy.orm import Session

from event_triggers.text import plain_logger

__all__ = ["clear_failed_behind", "tell_listeners"]

log = plain_logger(__name__)

_HOOKS = {
    "success": "on_task_instance_success",
    "failed": "on_task_instance_failed",
    "skipped": "on_task_instance_skipped",
}


def clear_failed_behind(session: Session, dag_id: str, run_id: str, task_ids: Collection[str]) -> None:
    """Let the tasks behind these run that have failed, or could not run, as the public route does after each mark."""
    dag = DBDagBag(load_op_links=False).get_latest_version_of_dag(dag_id, session=session)
    known = {task_id for task_id in task_ids if dag is not None and dag.has_task(task_id)}
    if dag is None or not known:
        return
    behind = dag.partial_subset(task_ids=known, include_downstream=True, include_upstream=False)
    behind.clear(run_id=run_id, only_failed=True, exclude_task_ids=frozenset(task_ids), session=session)


def tell_listeners(session: Session, states: Mapping[Any, str]) -> None:
    """Call the hooks of Airflow's listeners for task instances by id; what a listener raises is logged."""
    manager = get_listener_manager()
    if not states or not manager.has_listeners:
        return
    for instance in session.scalars(select(TaskInstance).where(TaskInstance.id.in_(states))):
        state = states[instance.id]
        hook = getattr(manager.hook, _HOOKS[state], None)
        if hook is None:
            continue  # Airflow 3.1 has none for what is skipped
        error = {"error": f"TaskInstance's state was manually set to `{state}`."} if state == "failed" else {}
        try:
            hook(previous_state=None, task_instance=instance, **error)
        except Exception:
            log.exception("a listener failed over %s of %s/%s", instance.task_id, instance.dag_id, instance.run_id)
