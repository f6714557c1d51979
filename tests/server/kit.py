"""Airflow's real API server inside this process, on a database of the test's own, and a DAG with a group in it.

No scheduler runs beside it: what a test finds in the database is what requests have written.
"""

from __future__ import annotations

import importlib
import json
import os
import warnings
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

import httpx
from airflow import __version__, settings
from airflow.models import DagRun, Log
from airflow.models.taskinstance import TaskInstance, TaskInstanceNote
from airflow.models.xcom import XComModel
from airflow.sdk import DAG
from airflow.utils.session import create_session
from sqlalchemy import select, update

from event_triggers.api_settings import ApiSettings
from event_triggers.marker import EventMarker

__all__ = ["AFTER_3_1", "DAG_ID", "MARKERS", "Database", "Server", "TaskState", "running_server"]

DAG_ID = "groups"
MARKERS = ("orders", "shifts", "stock")
AFTER_3_1 = tuple(int(part) for part in __version__.split(".")[:2]) > (3, 1)
USERS = {"marker": "user", "looker": "viewer"}


@dataclass(frozen=True)
class TaskState:
    """What the database says of a task instance."""

    id: str
    state: str | None
    note: str | None
    noted_by: str | None
    started: datetime | None
    ended: datetime | None
    duration: float | None
    xcoms: Mapping[str, Any]


class Database:
    """Airflow's database, read and written past its API."""

    def __init__(self) -> None:
        self._runs = 0

    def new_run(self, *, map_indexes: int = 0) -> str:
        """A run in which the group's sensor is deferred; its markers have as many map indexes as is said."""
        from airflow.utils.types import DagRunTriggeredByType, DagRunType

        self._runs += 1
        run_id = f"manual__{self._runs}+00:00"
        now = datetime.now(timezone.utc)
        with create_session() as session:
            _stored_dag(session).create_dagrun(
                run_id=run_id,
                run_after=now,
                run_type=DagRunType.MANUAL,
                triggered_by=DagRunTriggeredByType.TEST,
                state="running",
                session=session,
            )
            session.flush()
            if map_indexes:
                self._expand(session, run_id, map_indexes)
        self.set(run_id, "wait", "deferred")
        return run_id

    def _expand(self, session: Any, run_id: str, count: int) -> None:
        dag = _stored_dag(session)
        query = select(TaskInstance).where(TaskInstance.run_id == run_id, TaskInstance.task_id.in_(MARKERS))
        for one in list(session.scalars(query)):
            for index in range(1, count):
                more = TaskInstance(dag.get_task(one.task_id), dag_version_id=one.dag_version_id, run_id=run_id)
                more.map_index = index
                session.add(more)
            one.map_index = 0

    def set(self, run_id: str, task_id: str, state: str | None, **columns: Any) -> None:
        """Put a task instance into a state."""
        with create_session() as session:
            session.execute(
                update(TaskInstance)
                .where(TaskInstance.run_id == run_id, TaskInstance.task_id == task_id)
                .values(state=state, **columns)
            )

    def task(self, run_id: str, task_id: str, map_index: int = -1) -> TaskState:
        """What there is of a task instance."""
        with create_session() as session:
            place = {"run_id": run_id, "task_id": task_id, "map_index": map_index}
            one = session.scalars(select(TaskInstance).filter_by(**place)).one()
            note = session.get(TaskInstanceNote, one.id)
            xcoms = session.scalars(select(XComModel).filter_by(**place)).unique()
            return TaskState(
                str(one.id),
                one.state,
                note and note.content,
                note and note.user_id,
                one.start_date,
                one.end_date,
                one.duration,
                {xcom.key: xcom.value for xcom in xcoms},
            )

    def audit(self, run_id: str) -> list[Log]:
        """The audit log of a run, oldest first."""
        with create_session() as session:
            rows = list(session.scalars(select(Log).where(Log.run_id == run_id).order_by(Log.id)))
            session.expunge_all()
            return rows

    def run_state(self, run_id: str) -> str:
        """The state of a run."""
        with create_session() as session:
            return str(session.scalar(select(DagRun.state).where(DagRun.run_id == run_id)))


class Server:
    """The API server; requests go to it without a socket."""

    def __init__(self, app: Any, passwords: Mapping[str, str]) -> None:
        self.app = app
        self.transport = httpx.ASGITransport(app=app)
        self._passwords = passwords
        self.database = Database()

    def settings(self, user: str = "marker") -> ApiSettings:
        """How the package's own client gets in."""
        return ApiSettings("http://airflow", login=user, password=self._passwords[user], origin="the test")

    @asynccontextmanager
    async def client(self, user: str | None = "marker") -> AsyncIterator[httpx.AsyncClient]:
        """A client of a user, or of nobody."""
        async with httpx.AsyncClient(base_url="http://airflow", transport=self.transport) as client:
            if user is not None:
                login = {"username": user, "password": self._passwords[user]}
                answer = await client.post("/auth/token", json=login)
                client.headers["authorization"] = f"Bearer {answer.json()['access_token']}"
            yield client


@contextmanager
def running_server(url: str, home: Any) -> Iterator[Server]:
    """Airflow's API server on this empty database, while the context lasts."""
    passwords = {user: f"{user}-password" for user in USERS}
    with _environment(_settings_of(url, home, passwords)), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _connect()
        try:
            _create_tables()
            from airflow.api_fastapi.app import create_app, purge_cached_app

            purge_cached_app()
            server = Server(create_app(), passwords)
            _write_dag()
            yield server
        finally:
            settings.dispose_orm(do_log=False)


def _settings_of(url: str, home: Any, passwords: Mapping[str, str]) -> dict[str, str]:
    file = home / "passwords.json"
    file.write_text(json.dumps(passwords))
    return {
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": url,
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": ",".join(f"{user}:{role}" for user, role in USERS.items()),
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(file),
        "AIRFLOW__CORE__UNIT_TEST_MODE": "False",
        "AIRFLOW__API_AUTH__JWT_SECRET": "a secret for tests " * 4,
        "AIRFLOW__API_AUTH__JWT_ISSUER": "tests",
        "AIRFLOW__API__SECRET_KEY": "another secret",
    }


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
        _connect()


def _connect() -> None:
    untyped: Any = settings
    untyped.dispose_orm(do_log=False)
    untyped.configure_vars()
    untyped.configure_orm()


def _create_tables() -> None:
    from airflow.models import import_all_models
    from airflow.models.base import Base
    from airflow.utils.db import synchronize_log_template

    import_all: Any = import_all_models
    import_all()
    Base.metadata.create_all(settings.engine)
    synchronize_log_template()


def _write_dag() -> None:
    from airflow.models.dagbundle import DagBundleModel
    from airflow.models.serialized_dag import SerializedDagModel
    from airflow.providers.standard.operators.empty import EmptyOperator
    from airflow.serialization.serialized_objects import LazyDeserializedDAG

    stored_dags = importlib.import_module(
        "airflow.serialization.definitions.dag" if AFTER_3_1 else "airflow.serialization.serialized_objects"
    )
    with DAG(DAG_ID, schedule=None, start_date=datetime(2030, 1, 1, tzinfo=timezone.utc)) as dag:
        markers = [EventMarker(task_id=name) for name in MARKERS]
        EmptyOperator(task_id="wait") >> markers >> EmptyOperator(task_id="close_books")
        markers >> EmptyOperator(task_id="join")
    with create_session() as session:
        session.add(DagBundleModel(name="bundle"))
        session.flush()
        lazy = LazyDeserializedDAG.from_dag(dag)
        stored_dags.SerializedDAG.bulk_write_to_db("bundle", None, [lazy], session=session)
        SerializedDagModel.write_dag(lazy, bundle_name="bundle", session=session)


def _stored_dag(session: Any) -> Any:
    from airflow.models.dagbag import DBDagBag

    return DBDagBag().get_latest_version_of_dag(DAG_ID, session=session)
