"""Writing the marks of a run into Airflow's database, in one short transaction.

Flow: lock the run, lock its task instances in the order of their ids, read their XComs, work out what changes
(:mod:`event_triggers.server.settling`), write XComs, states, notes and audit log of all marks together
(:mod:`event_triggers.server.rows`), clear what failed behind them, commit; then tell Airflow's listeners.

Invariants:

* The row of the run is locked first, as the scheduler does before it changes task instances of a run. So neither can
  hold what the other waits for, no two requests can deadlock, and the scheduler never decides on states that are being
  changed. Its own lock lets the scheduler pass on to other runs (``SKIP LOCKED``). SQLite, which has no such locks,
  is made to lock the whole database by a write that changes nothing.
* Runs that a busy scheduler holds are waited for in the database's own queue, all together: it holds some twenty in one
  transaction and takes them again within milliseconds, so looking now and then would hardly ever find one free.
* All of a run's marks are written, or none.
* What is written is what the public API writes: the same columns, the same note, an audit log entry of the same event
  and owner for each mark, the same hooks of listeners, and what has failed downstream is cleared.

Nothing is kept over a restart.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import lru_cache
from typing import Any, NamedTuple

from airflow._shared.secrets_masker.secrets_masker import redact
from airflow.models import DagRun
from airflow.models.taskinstance import TaskInstance, TaskInstanceNote
from airflow.models.xcom import XComModel
from airflow.utils.session import create_session
from airflow.utils.sqlalchemy import with_row_locks
from sqlalchemy import bindparam, delete, exists, or_, select, text, tuple_, update
from sqlalchemy.engine import Dialect
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from event_triggers.marks import FACTS_KEY, PAYLOAD_KEY, Answer, Mark, RunMarks
from event_triggers.server.conflicts import waited_too_long
from event_triggers.server.following import clear_failed_behind, tell_listeners
from event_triggers.server.rows import Rows
from event_triggers.server.settling import Change, Marker, settle

__all__ = ["Author", "Busy", "can_wait", "write_run", "write_runs_when_free"]

_TI, _NOTE, _XCOM, _RUN = (model.__table__ for model in (TaskInstance, TaskInstanceNote, XComModel, DagRun))
_EVENT = "patch_task_instance"
"""What the public route is called in the audit log."""
_FAILED = exists().where(
    _TI.c.dag_id == _RUN.c.dag_id, _TI.c.run_id == _RUN.c.run_id, _TI.c.state.in_(["failed", "upstream_failed"])
)
_LOCKS_WAIT = text("SELECT set_config('lock_timeout', :limit, true)")
_LOCKS_WAIT_AS_USUAL = text("SET LOCAL lock_timeout TO DEFAULT")
_LOCK_SQLITE = text("UPDATE dag_run SET id = id WHERE dag_id = :dag_id AND run_id = :run_id")


def _of(table: Any) -> tuple[Any, Any]:
    """Which rows are about the task instances that are to be marked."""
    task_ids: Any = bindparam("task_ids", expanding=True)
    map_indexes: Any = bindparam("map_indexes", expanding=True)
    return table.c.task_id.in_(task_ids), table.c.map_index.in_(map_indexes)


# Made once: putting a statement together takes as long as the database takes for it.
_FIND_RUN = select(_RUN.c.id, _FAILED).where(_RUN.c.dag_id == bindparam("dag_id"), _RUN.c.run_id == bindparam("run_id"))
_FIND_TASK_INSTANCES = (
    select(
        _TI.c.id,
        _TI.c.task_id,
        _TI.c.map_index,
        _TI.c.state,
        _TI.c.start_date,
        _TI.c.end_date,
        _NOTE.c.ti_id.label("noted"),
    )
    .select_from(_TI.outerjoin(_NOTE, _NOTE.c.ti_id == _TI.c.id))
    .where(_TI.c.dag_id == bindparam("dag_id"), _TI.c.run_id == bindparam("run_id"), *_of(_TI))
    .order_by(_TI.c.id)
)
_OF_MARKERS = select(_XCOM.c.task_id, _XCOM.c.map_index, _XCOM.c.key, _XCOM.c.value).where(
    _XCOM.c.dag_run_id == bindparam("dag_run_id"), *_of(_XCOM)
)
_XCOMS = _OF_MARKERS.where(_XCOM.c.key.in_([FACTS_KEY, PAYLOAD_KEY]))
_XCOMS_AND_SERIES = _OF_MARKERS.where(
    or_(_XCOM.c.key.in_([FACTS_KEY, PAYLOAD_KEY]), _XCOM.c.key.startswith(f"{FACTS_KEY}_", autoescape=True))
)


class _Queries(NamedTuple):
    """What reads and locks, as a database does it."""

    lock_run: Any
    lock_task_instances: Any


@lru_cache(maxsize=4)
def _queries(dialect: Dialect) -> _Queries:
    with create_session(scoped=False) as session:
        return _Queries(
            with_row_locks(_FIND_RUN, session, of=_RUN, skip_locked=True),
            with_row_locks(_FIND_TASK_INSTANCES, session, of=_TI),
        )


class Busy(Exception):
    """Somebody else holds the lock of this run."""


@dataclass(frozen=True)
class Author:
    """As whom the marks are made: as notes and as the audit log name users."""

    id: str
    name: str


@dataclass
class _Found:
    """One task instance that is to be marked."""

    row: Any
    marker: Marker
    there: set[str] = field(default_factory=set)
    """The keys of its XComs in the database."""
    changes: list[tuple[Mark, Change]] = field(default_factory=list)

    @property
    def state(self) -> str | None:
        """The state that it is brought into."""
        return next((change.state for _, change in reversed(self.changes) if change.state), None)

    @property
    def note(self) -> str | None:
        """The note that it is given."""
        return next((change.note for _, change in reversed(self.changes) if change.note), None)

    @property
    def xcoms(self) -> dict[str, Any]:
        """The XComs that it is given."""
        return {key: value for _, change in self.changes for key, value in change.xcoms.items()}


def write_run(run: RunMarks, author: Author) -> list[Answer]:
    """Make the marks of a run.

    :raises Busy: when somebody holds the run's lock, the scheduler most likely.
    """
    with create_session(scoped=False) as session:
        return _write(session, [run], author)[0]


def can_wait() -> bool:
    """Whether this database lets :func:`write_runs_when_free` wait for locks, and not for too long."""
    with create_session(scoped=False) as session:
        return str(session.get_bind().dialect.name) == "postgresql"


def write_runs_when_free(runs: Sequence[RunMarks], author: Author, *, within: float) -> list[list[Answer]]:
    """Make the marks of some runs that somebody holds, together, as soon as all of them are free.

    :param within: how many seconds to wait for each lock; see :func:`can_wait`.
    :raises Busy: when somebody holds one longer.
    """
    wanted = sorted({(run.dag_id, run.run_id) for run in runs})
    # In the order of their ids: so do all who wait here, and none of them holds what another waits for.
    lock = select(_RUN.c.id).where(tuple_(_RUN.c.dag_id, _RUN.c.run_id).in_(wanted)).order_by(_RUN.c.id)
    with create_session(scoped=False) as session:
        session.execute(_LOCKS_WAIT, {"limit": f"{within * 1000:.0f}ms"})
        try:
            session.execute(lock.with_for_update()).all()
        except DBAPIError as error:
            if waited_too_long(error):
                raise Busy from error
            raise
        session.execute(_LOCKS_WAIT_AS_USUAL)
        return _write(session, runs, author)


def _write(session: Session, runs: Sequence[RunMarks], author: Author) -> list[list[Answer]]:
    writers = [_Writer(session, run, author) for run in runs]
    answers = [writer.write() for writer in writers]
    session.commit()
    for writer in writers:
        writer.tell()
    return answers


class _Writer:
    def __init__(self, session: Session, run: RunMarks, author: Author) -> None:
        self._session = session
        self._run = run
        self._author = author
        self._now: datetime = datetime.now(timezone.utc)
        self._queries = _queries(session.get_bind().dialect)
        self._of_run = {"dag_id": run.dag_id, "run_id": run.run_id}
        self._of_marks = {
            "task_ids": sorted({mark.task_id for mark in run.marks}),
            "map_indexes": sorted({mark.map_index for mark in run.marks}),
        }
        self._found: dict[tuple[str, int], _Found] = {}
        self._marked: dict[Any, str] = {}
        self._run_id = 0

    def write(self) -> list[Answer]:
        """Write it all, but do not commit."""
        failed_behind = self._lock_run()
        if failed_behind is None:
            return [self._missing(mark) for mark in self._run.marks]
        self._lock_task_instances()
        self._read_xcoms()
        answers = [self._settle(mark) for mark in self._run.marks]
        self._write()
        marked = [found for found in self._found.values() if found.state]
        if failed_behind and marked:
            task_ids = {found.row.task_id for found in marked}
            clear_failed_behind(self._session, self._run.dag_id, self._run.run_id, task_ids)
        self._marked = {found.row.id: str(found.state) for found in marked}
        return answers

    def tell(self) -> None:
        """Tell Airflow's listeners what is committed now."""
        tell_listeners(self._session, self._marked)

    # ------------------------------------------------------------------ reading

    def _lock_run(self) -> bool | None:
        """Whether anything in the run has failed; ``None`` when there is no such run."""
        if self._session.get_bind().dialect.name == "sqlite":
            self._session.execute(_LOCK_SQLITE, self._of_run)
        row = self._session.execute(self._queries.lock_run, self._of_run).one_or_none()
        if row is None:
            if self._session.execute(_FIND_RUN, self._of_run).one_or_none() is not None:
                raise Busy
            return None
        self._run_id = row[0]
        return bool(row[1])

    def _lock_task_instances(self) -> None:
        for row in self._session.execute(self._queries.lock_task_instances, {**self._of_run, **self._of_marks}):
            self._found[row.task_id, row.map_index] = _Found(row, Marker(str(row.id), row.state))

    def _read_xcoms(self) -> None:
        recorded = [mark for mark in self._run.marks if mark.messages is not None]
        if not recorded:
            return
        query = _XCOMS_AND_SERIES if any(mark.wanted > 1 for mark in recorded) else _XCOMS
        asked = {"dag_run_id": self._run_id, **self._of_marks}
        for task_id, map_index, key, value in self._session.execute(query, asked):
            found = self._found.get((task_id, map_index))
            if found is not None:
                found.marker.xcoms[key] = value
                found.there.add(key)

    # ------------------------------------------------------------------ working out

    def _settle(self, mark: Mark) -> Answer:
        found = self._found.get((mark.task_id, mark.map_index))
        if found is None:
            return self._missing(mark)
        change = settle(mark, found.marker)
        found.changes.append((mark, change))
        # The same task instance may be asked for twice in one request.
        found.marker = Marker(
            found.marker.id, change.state or found.marker.state, {**found.marker.xcoms, **change.xcoms}
        )
        return change.answer

    def _missing(self, mark: Mark) -> Answer:
        where = f"{mark.task_id!r} (map index {mark.map_index}) in {self._run.dag_id}/{self._run.run_id}"
        return Answer(status=404, detail=f"there is no task instance {where}")

    # ------------------------------------------------------------------ writing

    def _write(self) -> None:
        rows = Rows(self._now, self._xcom_rows(), self._state_rows(), self._note_rows(), self._log_rows())
        self._make_way()
        rows.write(self._session)

    def _make_way(self) -> None:
        """Delete the XComs that are replaced, and change the notes that are there."""
        there = [
            (task_id, map_index, key)
            for (task_id, map_index), found in self._found.items()
            for key in sorted(found.there & found.xcoms.keys())
        ]
        if there:
            # As Airflow does: a row that somebody else has replaced meanwhile makes this a conflict, not a loss.
            key = tuple_(_XCOM.c.task_id, _XCOM.c.map_index, _XCOM.c.key)
            self._session.execute(delete(_XCOM).where(_XCOM.c.dag_run_id == self._run_id, key.in_(there)))
        for found in self._found.values():
            if found.note and found.row.noted is not None:
                values = {"content": found.note, "user_id": self._author.id, "updated_at": self._now}
                self._session.execute(update(_NOTE).where(_NOTE.c.ti_id == found.row.id).values(**values))

    def _xcom_rows(self) -> list[dict[str, Any]]:
        same = {"dag_run_id": self._run_id, "dag_id": self._run.dag_id, "run_id": self._run.run_id}
        return [
            {**same, "task_id": task_id, "map_index": map_index, "timestamp": self._now, "key": key, "value": value}
            for (task_id, map_index), found in self._found.items()
            for key, value in found.xcoms.items()
        ]

    def _state_rows(self) -> list[dict[str, Any]]:
        rows = []
        for found in self._found.values():
            if found.state:
                start, end = found.row.start_date or self._now, found.row.end_date or self._now
                duration = (end - start).total_seconds()
                dates = {"start_date": start, "end_date": end, "duration": duration}
                rows.append({"id": found.row.id, "state": found.state, **dates})
        return rows

    def _note_rows(self) -> list[dict[str, Any]]:
        same = {"user_id": self._author.id, "created_at": self._now, "updated_at": self._now}
        new = [found for found in self._found.values() if found.note and found.row.noted is None]
        return [{**same, "ti_id": found.row.id, "content": found.note} for found in new]

    def _log_rows(self) -> list[dict[str, Any]]:
        return [
            self._log_row(mark, change)
            for found in self._found.values()
            for mark, change in found.changes
            if change.state or change.note
        ]

    def _log_row(self, mark: Mark, change: Change) -> dict[str, Any]:
        extra: dict[str, Any] = {} if mark.map_index < 0 else {"map_index": str(mark.map_index)}
        if change.state:
            extra["new_state"] = change.state
        if change.note:
            extra["note"] = redact(change.note, "note")
        return {
            "dttm": self._now,
            "event": _EVENT,
            "dag_id": self._run.dag_id,
            "run_id": self._run.run_id,
            "task_id": mark.task_id,
            "owner": self._author.name,
            "owner_display_name": self._author.name,
            "extra": json.dumps({**extra, "method": "POST", "by": "event_triggers"}),
        }
