"""A group of a DAG file: found as Airflow finds DAGs, and rendered as Airflow renders templates, without a database."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from inspect import signature
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import jinja2

from event_triggers.event import Event
from event_triggers.offline.lines import OfflineError
from event_triggers.terms import Terms

if TYPE_CHECKING:
    from airflow.sdk import DAG

    from event_triggers.sensor import EventGroupSensor

__all__ = ["Group", "Run", "find_sensor", "read_dags", "render", "sensor_of"]


@dataclass(frozen=True)
class Run:
    """The DAG run in which the group is imagined.

    :param variables: Airflow variables, for ``var.value`` and ``var.json``.
    """

    run_after: datetime
    logical_date: datetime
    run_id: str = "offline"
    conf: Mapping[str, Any] = field(default_factory=dict)
    variables: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Group:
    """A group as its wait sees it."""

    dag_id: str
    task_id: str
    run: Run
    events: Mapping[str, Event]
    markers: Mapping[str, str]
    terms: Terms
    timeout: float


def find_sensor(path: Path, group: str, dag_id: str | None = None) -> EventGroupSensor:
    """The sensor of a group of a DAG file.

    :param group: the ``group_id`` of an :class:`~event_triggers.EventGroup`, or the task id of its sensor.
    :param dag_id: needed when several DAGs of the file have such a group.
    :raises OfflineError: when the file has a mistake, or no such group; tells what there is.
    """
    return sensor_of(read_dags(path), group, dag_id, str(path))


def sensor_of(dags: Iterable[DAG], group: str, dag_id: str | None, where: str) -> EventGroupSensor:
    """The sensor of a group of one of these DAGs.

    :param where: how errors call the place where they are from.
    :raises OfflineError: when there is no such group, or several; tells what there is.
    """
    from event_triggers.group import EventGroup
    from event_triggers.sensor import EventGroupSensor

    found: list[EventGroupSensor] = []
    known: list[str] = []
    for dag in dags:
        if dag_id is not None and dag.dag_id != dag_id:
            continue
        for task in dag.tasks:
            if not isinstance(task, EventGroupSensor):
                continue
            own = task.task_group if isinstance(task.task_group, EventGroup) else None
            names = {task.task_id} | ({str(own.group_id)} if own is not None else set())
            known.append(f"{dag.dag_id}: {str(own.group_id) if own is not None else task.task_id}")
            if group in names:
                found.append(task)
    if not found:
        there = "; ".join(known) or "none"
        raise OfflineError(f"{where} has no group {group!r}{f' in DAG {dag_id!r}' if dag_id else ''}; it has {there}")
    if len(found) > 1:
        owners = ", ".join(str(one.dag.dag_id) for one in found)
        raise OfflineError(f"several DAGs of {where} have a group {group!r} ({owners}); choose one with --dag")
    return found[0]


def read_dags(path: Path) -> list[DAG]:
    """The DAGs of a file.

    :raises OfflineError: when it cannot be imported.
    """
    if not path.is_file():
        raise OfflineError(f"there is no file {path}")
    try:
        from airflow.dag_processing.dagbag import DagBag
    except ImportError:  # before Airflow 3.2
        from airflow.models.dagbag import DagBag  # type: ignore[no-redef]

    # Before Airflow 3.2 its example DAGs come along.
    own_only: dict[str, Any] = {"include_examples": False} if "include_examples" in signature(DagBag).parameters else {}
    bag = DagBag(dag_folder=str(path.resolve()), **own_only)
    if bag.import_errors:
        raise OfflineError(f"{path} cannot be imported:\n{next(iter(bag.import_errors.values())).strip()}")
    return sorted(bag.dags.values(), key=lambda dag: str(dag.dag_id))


def render(sensor: EventGroupSensor, run: Run) -> Group:
    """Render the templates of a group.

    :raises OfflineError: naming what cannot be rendered here.
    :raises InvalidEventError: when a rendered value is not what the declaration needs.
    """
    from airflow.sdk import XComArg

    if any(XComArg.iter_xcom_references([sensor.events, sensor.terms])):
        raise OfflineError(
            f"group {sensor.task_id!r} takes the output of another task, which runs in Airflow only; put a value in "
            f"its place to try the group"
        )
    environment = sensor.get_template_env(sensor.dag)
    environment.undefined = jinja2.StrictUndefined
    context: Any = _context(sensor, run)
    try:
        events = sensor.render_template(sensor.events, context, environment)
        terms = sensor.render_template(sensor.terms, context, environment)
    except jinja2.UndefinedError as error:
        raise OfflineError(
            f"a template of group {sensor.task_id!r} cannot be rendered here: {error}; give it by --run-after, "
            f"--logical-date, --run-id, --conf or --var, or put a value in its place"
        ) from error
    except Exception as error:
        raise OfflineError(
            f"a template of group {sensor.task_id!r} cannot be rendered: {type(error).__name__}: {error}"
        ) from error
    return Group(
        dag_id=str(sensor.dag.dag_id),
        task_id=sensor.task_id,
        run=run,
        events={name: Event.deserialize(data) for name, data in events.items()},
        markers=sensor.markers,
        terms=Terms.deserialize(terms),
        timeout=float(sensor.timeout),
    )


def _context(sensor: EventGroupSensor, run: Run) -> dict[str, Any]:
    from airflow.sdk import timezone

    logical_date, run_after = timezone.coerce_datetime(run.logical_date), timezone.coerce_datetime(run.run_after)
    day, stamp = logical_date.strftime("%Y-%m-%d"), logical_date.isoformat()
    interval = {"data_interval_start": logical_date, "data_interval_end": max(run_after, logical_date)}
    dag_run = SimpleNamespace(
        dag_id=sensor.dag.dag_id,
        run_id=run.run_id,
        conf=dict(run.conf),
        logical_date=logical_date,
        run_after=run_after,
        start_date=run_after,
        run_type="manual",
        **interval,
    )
    return {
        "dag": sensor.dag,
        "dag_run": dag_run,
        "task": sensor,
        "run_id": run.run_id,
        "params": {**{name: sensor.dag.params[name] for name in sensor.dag.params}, **run.conf},
        "macros": _macros(),
        "var": _Variables(run.variables),
        "logical_date": logical_date,
        "ds": day,
        "ds_nodash": day.replace("-", ""),
        "ts": stamp,
        "ts_nodash": logical_date.strftime("%Y%m%dT%H%M%S"),
        "ts_nodash_with_tz": stamp.replace("-", "").replace(":", ""),
        **interval,
    }


def _macros() -> Any:
    try:
        from airflow.sdk.execution_time import macros
    except ImportError:
        return SimpleNamespace(timedelta=timedelta, datetime=datetime)
    return macros


class _Variables(Mapping[str, Any]):
    """``var.value.name`` and ``var.json.name``; one that was not given is undefined."""

    def __init__(self, variables: Mapping[str, str]) -> None:
        self._kinds = {
            "value": dict(variables),
            "json": {name: _json(value) for name, value in variables.items()},
        }

    def __getitem__(self, kind: str) -> Any:
        return self._kinds[kind]

    def __iter__(self) -> Iterator[str]:
        return iter(self._kinds)

    def __len__(self) -> int:
        return len(self._kinds)


def _json(value: str) -> Any:
    try:
        return json.loads(value)
    except ValueError:
        return value
