"""Airflow's ``dag.test()`` with groups: what is put in the place of two of its steps, and what is read afterwards."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from inspect import signature
from types import ModuleType
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from event_triggers.errors import EventTriggersError
from event_triggers.group import EventGroup
from event_triggers.offline.lines import Line, OfflineError
from event_triggers.testing.results import GroupResult, RunResult
from event_triggers.testing.world import GroupPlayback, World
from event_triggers.trigger import EventGroupTrigger

if TYPE_CHECKING:
    from airflow.sdk import DAG

__all__ = ["run_in_process"]

_AIRFLOWS_OWN = ("Multiple rows returned with uselist=False", "Using `httpx` with `starlette")


def run_in_process(
    dag: DAG,
    lines: Sequence[Line],
    given: Sequence[Any],
    run_after: datetime,
    logical_date: datetime,
    conf: dict[str, Any],
) -> RunResult:
    """Run a DAG to its end."""
    _refuse_a_running_loop()
    errors: dict[str, BaseException] = {}
    world = World(dag, lines, run_after, _keep)
    try:
        with _airflows_own_warnings_ignored(), _session_left_clean(), _steps_replaced(world, errors):
            _set_up_database()
            _register(dag)
            run = dag.test(run_after=run_after, logical_date=logical_date, run_conf=conf)
            groups = {
                _name_of(_group_id(dag, task_id), index): playback.result(lines, given)
                for (task_id, index), playback in world.playbacks.items()
            }
            return _result(run, errors, groups)
    finally:
        world.close()


@contextmanager
def _airflows_own_warnings_ignored() -> Iterator[None]:
    """What Airflow's in-process API imports, and its look at a DAG that changed between two tests, warn of."""
    with warnings.catch_warnings():
        for text in _AIRFLOWS_OWN:
            warnings.filterwarnings("ignore", message=text)
        yield


@contextmanager
def _session_left_clean() -> Iterator[None]:
    """The next run in this process begins with a session of its own, however this one ends."""
    from airflow import settings

    try:
        yield
    finally:
        if settings.Session is not None:
            settings.Session.remove()


def _refuse_a_running_loop() -> None:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise OfflineError(
        "run_dag runs an event loop of its own; call it from a test that is no coroutine (def, not async)"
    )


@contextmanager
def _steps_replaced(world: World, errors: dict[str, BaseException]) -> Iterator[None]:
    """Let groups wait in the world, and keep what tasks raise."""
    from airflow.sdk.definitions import dag as testing
    from airflow.sdk.execution_time import supervisor

    run_trigger, run_task = _step(testing, "_run_inline_trigger"), _step(supervisor, "run_task_in_process")

    def inline(trigger: Any, task_sdk_ti: Any) -> Any:
        if isinstance(trigger, EventGroupTrigger):
            try:
                return world.run_trigger(trigger, task_sdk_ti)
            except Exception as error:
                errors[_name_of(task_sdk_ti.task_id, task_sdk_ti.map_index)] = error
                raise
        return run_trigger(trigger, task_sdk_ti)

    def task_in_process(*, ti: Any, **kwargs: Any) -> Any:
        name = _name_of(ti.task_id, ti.map_index)
        try:
            result = run_task(ti=ti, **kwargs)
        except Exception as error:
            errors[name] = error
            raise
        errors.pop(name, None)
        if result.error is not None:
            errors[name] = result.error
        return result

    with (
        patch.object(testing, "_run_inline_trigger", inline),
        patch.object(supervisor, "run_task_in_process", task_in_process),
    ):
        yield


def _step(module: ModuleType, name: str) -> Callable[..., Any]:
    """A step of ``dag.test()`` that is no part of Airflow's public interface."""
    step = getattr(module, name, None)
    if not callable(step):
        from airflow import __version__

        raise EventTriggersError(
            f"run_dag cannot run DAGs with Airflow {__version__}: it has no {module.__name__}.{name}. Supported are "
            "Airflow 3.1 to 3.3; with another one, use run_group, which needs nothing of it"
        )
    found: Callable[..., Any] = step
    return found


def _set_up_database() -> None:
    """Make the tables of an empty SQLite database; another one is its owner's to set up."""
    from airflow import settings
    from airflow.utils import db
    from sqlalchemy import inspect

    if settings.engine is None:
        settings.configure_orm()  # type: ignore[no-untyped-call]
    engine: Any = settings.engine
    if inspect(engine).has_table("dag_run"):
        return
    if engine.dialect.name != "sqlite":
        raise OfflineError(f"the Airflow database {engine.url!r} has no tables; run: airflow db migrate")
    db.initdb()


def _register(dag: DAG) -> None:
    """Tell the database of this DAG: its tasks run by a version of it."""
    from airflow.dag_processing.bundles.manager import DagBundlesManager

    try:
        from airflow.dag_processing.dagbag import DagBag, sync_bag_to_db
    except ImportError:  # before Airflow 3.2
        from airflow.models.dagbag import DagBag, sync_bag_to_db  # type: ignore[no-redef]

    manager = DagBundlesManager()  # type: ignore[no-untyped-call]
    manager.sync_bundles_to_db()
    bundle = next(iter(manager.get_all_dag_bundles()))
    # Before Airflow 3.2 its example DAGs come along.
    own_only: dict[str, Any] = {"include_examples": False} if "include_examples" in signature(DagBag).parameters else {}
    bag = DagBag(collect_dags=False, **own_only)
    bag.dags = {dag.dag_id: dag}
    dag.validate()  # type: ignore[no-untyped-call]
    for task in dag.tasks:
        task.resolve_template_files()
    sync_bag_to_db(bag, bundle.name, None)


def _keep(playback: GroupPlayback, markers: Mapping[str, str]) -> None:
    """What the ledger in memory holds of a group becomes the markers' XComs, notes and states."""
    from airflow.utils.session import create_session

    join = playback.group.terms.join
    with create_session() as session:
        for event, task_id in {**markers, **({join: join} if join is not None else {})}.items():
            _keep_marker(playback, event, task_id, session)


def _keep_marker(playback: GroupPlayback, event: str, task_id: str, session: Any) -> None:
    from airflow.models.taskinstance import TaskInstance
    from sqlalchemy import select

    ref, ledger = playback.ref, playback.ledger
    place: dict[str, Any] = {"dag_id": ref.dag_id, "run_id": ref.run_id, "task_id": task_id, "map_index": ref.map_index}
    ti = session.scalar(select(TaskInstance).filter_by(**place))
    facts = ledger.facts(ref, event)
    if ti is None:
        return
    if facts is not None:
        for key, value in (("return_value", ledger.payload(ref, event)), ("event", facts)):
            _set_xcom(session, ti.dag_run.id, place, key, value)
    state, note = ledger.state(ref, event), ledger.note(ref, event)
    if note is not None and ti.note != note:
        ti.note = note
    if state is not None:
        ti.set_state(state, session=session)


def _set_xcom(session: Any, dag_run_id: int, place: Mapping[str, Any], key: str, value: Any) -> None:
    """As the marking route stores it: ``XComModel.set`` would put JSON into JSON on Airflow 3.1."""
    from airflow.models.xcom import XComModel
    from sqlalchemy import delete

    session.execute(delete(XComModel).filter_by(**place, key=key))
    session.add(XComModel(**place, dag_run_id=dag_run_id, key=key, value=value))


def _result(run: Any, errors: Mapping[str, BaseException], groups: Mapping[str, GroupResult]) -> RunResult:
    from airflow.models.taskinstance import TaskInstance
    from airflow.models.xcom import XComModel
    from airflow.sdk.bases.xcom import BaseXCom
    from airflow.utils.session import create_session
    from sqlalchemy import select

    xcoms: dict[str, dict[str, Any]] = {}
    with create_session() as session:
        where = {"dag_id": run.dag_id, "run_id": run.run_id}
        tis = sorted(
            session.scalars(select(TaskInstance).filter_by(**where)), key=lambda ti: (ti.task_id, ti.map_index)
        )
        for row in session.scalars(select(XComModel).filter_by(**where)):
            name = _name_of(row.task_id, row.map_index)
            xcoms.setdefault(name, {})[row.key] = BaseXCom.deserialize_value(row)
        states = {_name_of(ti.task_id, ti.map_index): None if ti.state is None else str(ti.state) for ti in tis}
        notes = {_name_of(ti.task_id, ti.map_index): ti.note for ti in tis if ti.note}
    return RunResult(
        dag_id=run.dag_id,
        run_id=run.run_id,
        state=str(run.state),
        states=states,
        errors=dict(errors),
        outputs={name: found["return_value"] for name, found in xcoms.items() if "return_value" in found},
        xcoms=xcoms,
        notes=notes,
        groups=dict(groups),
    )


def _group_id(dag: DAG, task_id: str) -> str:
    group = dag.get_task(task_id).task_group
    return str(group.group_id) if isinstance(group, EventGroup) else task_id


def _name_of(task_id: str, map_index: int | None) -> str:
    return task_id if map_index is None or map_index < 0 else f"{task_id}[{map_index}]"
