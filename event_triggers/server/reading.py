"""Reading the states of many groups' markers in one query.

Who asks must be allowed to read the task instances of a DAG, as with the public route; what they may not read is
refused, and the others are answered. Nothing is locked, nothing is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from airflow.api_fastapi.app import get_auth_manager
from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity, DagDetails
from airflow.models.dag import DagModel
from airflow.models.taskinstance import TaskInstance
from airflow.utils.session import create_session
from sqlalchemy import select, tuple_
from sqlalchemy.exc import OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from event_triggers.marks import MARKER_OPERATOR, FoundMarkers, GroupMarkers, MarkerState
from event_triggers.server.batches import DatabaseAway
from event_triggers.text import text_of

__all__ = ["read_markers"]

_TI: Any = TaskInstance.__table__


def read_markers(groups: Sequence[GroupMarkers], user: Any) -> list[FoundMarkers]:
    """What there is of these markers, as far as this user of Airflow's may see it.

    :raises DatabaseAway: when the database cannot be reached.
    """
    try:
        allowed = {dag_id: _may_read(dag_id, user) for dag_id in {group.dag_id for group in groups}}
        states = _states([group for group in groups if allowed[group.dag_id]])
    except (OperationalError, PoolTimeout) as error:
        raise DatabaseAway(text_of(error)) from error
    return [
        _found(group, states)
        if allowed[group.dag_id]
        else FoundMarkers(status=403, detail=f"Forbidden: read task instances of DAG {group.dag_id!r}")
        for group in groups
    ]


def _may_read(dag_id: str, user: Any) -> bool:
    details = DagDetails(id=dag_id, team_name=DagModel.get_team_name(dag_id))
    entity = DagAccessEntity.TASK_INSTANCE
    return get_auth_manager().is_authorized_dag(method="GET", access_entity=entity, details=details, user=user)


def _states(groups: Sequence[GroupMarkers]) -> dict[tuple[str, str, str, int], MarkerState]:
    if not groups:
        return {}
    runs = sorted({(group.dag_id, group.run_id) for group in groups})
    task_ids = sorted({task_id for group in groups for task_id in group.task_ids})
    query = select(_TI.c.dag_id, _TI.c.run_id, _TI.c.task_id, _TI.c.map_index, _TI.c.id, _TI.c.state).where(
        tuple_(_TI.c.dag_id, _TI.c.run_id).in_(runs), _TI.c.task_id.in_(task_ids), _TI.c.operator == MARKER_OPERATOR
    )
    with create_session(scoped=False) as session:
        return {
            (dag_id, run_id, task_id, map_index): MarkerState(task_id, str(identity), state)
            for dag_id, run_id, task_id, map_index, identity, state in session.execute(query)
        }


def _found(group: GroupMarkers, states: dict[tuple[str, str, str, int], MarkerState]) -> FoundMarkers:
    keys = ((group.dag_id, group.run_id, task_id, group.map_index) for task_id in group.task_ids)
    return FoundMarkers([states[key] for key in keys if key in states])
