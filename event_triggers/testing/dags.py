"""Runs a DAG with event groups in this process: no broker, no triggerer, no scheduler, and no waiting.

Flow: :func:`run_dag` lets Airflow's own ``dag.test()`` run the DAG, with a database as ever, and takes two of its steps
over while it does: the triggers of groups run in a :class:`~event_triggers.testing.world.World`, which gives them the
test's messages; and what a task raised is kept. Tasks, trigger rules, skips, templates and XComs are Airflow's.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from event_triggers.clock import parse_datetime
from event_triggers.offline.dagfile import Run, read_dags, render, sensor_of
from event_triggers.offline.lines import OfflineError
from event_triggers.testing.results import GroupResult, RunResult
from event_triggers.testing.sent import lines_of

if TYPE_CHECKING:
    from airflow.sdk import DAG

__all__ = ["run_dag", "run_group"]


def run_dag(
    dag: DAG | Path | str,
    messages: Iterable[Any] = (),
    *,
    dag_id: str | None = None,
    run_after: datetime | str | None = None,
    logical_date: datetime | str | None = None,
    conf: Mapping[str, Any] | None = None,
    variables: Mapping[str, Any] | None = None,
) -> RunResult:
    """Run a DAG to its end, with these messages.

    Every task really runs, in this process. A group waits as it does in a triggerer, only that the messages come from
    the list instead of its brokers: whether one counts, and when the group is complete or out of time, is decided by
    the same code. What time it is for a group is what the messages say; when they are used up its time passes at once.
    Retries follow without their delay. Triggers of other operators run as they are.

    It needs a database as ``dag.test()`` does; an empty SQLite one is set up first. Set ``AIRFLOW_HOME`` to a temporary
    folder before Airflow is imported, to leave your own alone.

    :param dag: a DAG, or the path of a DAG file.
    :param messages: in the order in which they come: each a :class:`~event_triggers.testing.Sent`, or an object as in
        the files of ``test-group``.
    :param dag_id: which DAG of the file, where it has several.
    :param run_after: when the run begins, also for its groups: an aware datetime, or ISO 8601; the default is now.
    :param logical_date: for templates; the default is ``run_after``.
    :param conf: the run's configuration.
    :param variables: Airflow variables, for the time of the run; what is no string is given as JSON.
    :raises OfflineError: when something given is not as it must be. What a *task* raises is in the result.
    :raises EventTriggersError: with an Airflow whose ``dag.test()`` has not the steps that are taken over.
    """
    begin = _moment(run_after) or datetime.now(timezone.utc)
    given = list(messages)
    lines = lines_of(given, begin)
    chosen = _dag_of(dag, dag_id)
    from event_triggers.testing.inprocess import run_in_process

    with _variables(variables or {}), _impatient(chosen):
        return run_in_process(chosen, lines, given, begin, _moment(logical_date) or begin, dict(conf or {}))


def run_group(
    dag: DAG | Path | str,
    group: str,
    messages: Iterable[Any] = (),
    *,
    dag_id: str | None = None,
    run_after: datetime | str | None = None,
    logical_date: datetime | str | None = None,
    conf: Mapping[str, Any] | None = None,
    variables: Mapping[str, Any] | None = None,
) -> GroupResult:
    """Let one group of a DAG wait for these messages, and run no task: quick, and without a database.

    The wait is looked at after the last message: a group that is not complete waits on. A message with a later
    timestamp turns the clock on, so ``Sent(body=None, event="", after=...)``, which comes to nobody, lets time pass.

    :param group: the id of the group, or the task id of its sensor.
    :param dag: this and the others as in :func:`run_dag`.
    :raises OfflineError: when something given is not as it must be, or there is no such group.
    """
    import asyncio

    from event_triggers.offline.replaying import replay

    begin = _moment(run_after) or datetime.now(timezone.utc)
    given = list(messages)
    lines = lines_of(given, begin)
    texts = {name: _text(value) for name, value in (variables or {}).items()}
    run = Run(begin, _moment(logical_date) or begin, conf=dict(conf or {}), variables=texts)
    from_file = isinstance(dag, (str, Path))
    where = str(dag) if from_file else f"DAG {dag.dag_id!r}"  # type: ignore[union-attr]
    dags = read_dags(Path(dag)) if isinstance(dag, (str, Path)) else [dag]
    replayed = asyncio.run(replay(render(sensor_of(dags, group, dag_id, where), run), lines))
    ended = replayed.steps[-1].at if replayed.steps else begin
    return GroupResult.of(replayed, given, ended)


def _dag_of(dag: DAG | Path | str, dag_id: str | None) -> DAG:
    if not isinstance(dag, (str, Path)):
        return dag
    dags = read_dags(Path(dag))
    found = [one for one in dags if dag_id in (None, one.dag_id)]
    if len(found) != 1:
        there = ", ".join(str(one.dag_id) for one in dags) or "none"
        raise OfflineError(f"{dag} has these DAGs: {there}; choose one of them with dag_id=")
    return found[0]


def _moment(given: datetime | str | None) -> datetime | None:
    try:
        return None if given is None else parse_datetime(given)
    except ValueError as error:
        raise OfflineError(f"{given!r} is no moment: {error}") from error


@contextmanager
def _variables(variables: Mapping[str, Any]) -> Iterator[None]:
    with patch.dict(os.environ, {f"AIRFLOW_VAR_{name.upper()}": _text(value) for name, value in variables.items()}):
        yield


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


@contextmanager
def _impatient(dag: DAG) -> Iterator[None]:
    """Retry without delay: nobody turns the clock of ``dag.test()``."""
    before = [(task, task.retry_delay) for task in dag.tasks]
    for task, _ in before:
        task.retry_delay = timedelta()
    try:
        yield
    finally:
        for task, delay in before:
            task.retry_delay = delay
