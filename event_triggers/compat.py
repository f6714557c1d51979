"""The few things that differ between the Airflow versions this package supports."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, TypeVar

from airflow import __version__ as airflow_version
from airflow.triggers.base import BaseTrigger

from event_triggers.errors import AirflowApiError

if TYPE_CHECKING:
    from airflow.sdk.exceptions import (
        AirflowException,
        AirflowFailException,
        AirflowNotFoundException,
        AirflowSensorTimeout,
    )
else:
    try:
        from airflow.sdk.exceptions import (
            AirflowException,
            AirflowFailException,
            AirflowNotFoundException,
            AirflowSensorTimeout,
        )
    except ImportError:  # before Airflow 3.2
        from airflow.exceptions import (
            AirflowException,
            AirflowFailException,
            AirflowNotFoundException,
            AirflowSensorTimeout,
        )

if TYPE_CHECKING:
    from airflow.triggers.shared_stream import SharedStreamProducer
else:
    try:
        from airflow.triggers.shared_stream import SharedStreamProducer
    except ImportError:  # before Airflow 3.3
        SharedStreamProducer = object

__all__ = [
    "SHARES_STREAMS",
    "STARTS_FROM_TRIGGER",
    "TELLS_WHO_STOPS",
    "AirflowException",
    "AirflowFailException",
    "AirflowNotFoundException",
    "AirflowSensorTimeout",
    "SharedStreamProducer",
    "ask_supervisor",
    "asset_stores",
    "set_xcom_through_supervisor",
]

T = TypeVar("T")

STARTS_FROM_TRIGGER = tuple(int(part) for part in airflow_version.split(".")[:2]) >= (3, 3)
"""Whether this Airflow can start a task in the triggerer. Older ones ignore the request: there the worker defers."""

TELLS_WHO_STOPS = hasattr(BaseTrigger, "on_kill")
"""Whether this Airflow tells a trigger that a person has ended its wait; older ones cancel it as at a shutdown."""

SHARES_STREAMS = SharedStreamProducer is not object
"""Whether this Airflow tells a trigger that starts DAGs when an event of it is stored."""


def asset_stores(trigger: Any) -> list[Any]:
    """Where a trigger can keep something over a restart: the state stores of the assets that it is a watcher of.

    None before Airflow 3.3.
    """
    stores = getattr(trigger, "asset_state_store", None)
    by_name = getattr(stores, "_by_name", {})
    return [by_name[name] for name in sorted(by_name)]


async def ask_supervisor(question: Coroutine[Any, Any, T]) -> T:
    """Await something that asks the triggerer's supervisor, and see it through even when the caller is cancelled.

    Airflow 3.1 reads answers in the order of questions: one that nobody reads any more would be taken for the answer to
    the next question, of whichever trigger.
    """
    asking = asyncio.get_running_loop().create_task(question, name="event_triggers: ask supervisor")
    _asking.add(asking)
    asking.add_done_callback(_answered)
    return await asyncio.shield(asking)


_asking: set[asyncio.Task[Any]] = set()


def _answered(task: asyncio.Task[Any]) -> None:
    _asking.discard(task)
    if not task.cancelled():
        task.exception()  # whoever asked may have gone, and that is no reason for a warning


async def set_xcom_through_supervisor(
    dag_id: str, run_id: str, task_id: str, map_index: int, name: str, value: Any
) -> None:
    """Write an XCom the way tasks do.

    :raises AirflowApiError: when Airflow refuses, or this is no triggerer.
    """
    from airflow.sdk.exceptions import AirflowRuntimeError
    from airflow.sdk.execution_time import task_runner
    from airflow.sdk.execution_time.comms import SetXCom

    comms = getattr(task_runner, "SUPERVISOR_COMMS", None)
    if comms is None:
        raise AirflowApiError("XComs of this Airflow can be written in a triggerer only")
    request = SetXCom(key=name, value=value, dag_id=dag_id, run_id=run_id, task_id=task_id, map_index=map_index)
    try:
        await ask_supervisor(comms.asend(request))
    except AirflowRuntimeError as error:
        status = (error.error.detail or {}).get("status_code")
        raise AirflowApiError(
            f"Airflow did not take XCom {name!r} of {task_id!r} in {dag_id}/{run_id}: {error}",
            # Anything else may be an outage; there is nothing here to tell it by.
            status=status if isinstance(status, int) and 400 <= status < 500 else None,
        ) from error
