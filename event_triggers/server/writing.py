"""Writing the marks of one run into Airflow's database, in one short transaction.

Flow: lock the run, lock its task instances in the order of their ids, read their XComs, work out what changes
(:mod:`event_triggers.server.settling`), write XComs, states, notes and audit log with a statement each for all marks
together, clear what failed behind them, commit; then tell Airflow's listeners.

Invariants:

* The row of the run is locked first, as the scheduler does before it changes task instances of a run. So neither can
  hold what the other waits for, no two requests can deadlock, and the scheduler never decides on states that are being
  changed. Its own lock lets the scheduler pass on to other runs (``SKIP LOCKED``). SQLite, which has no such locks,
  is made to lock the whole database by a write that changes nothing.
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
from typing import Any

from airflow._shared.secrets_masker.secrets_masker import redact
from airflow.models import DagRun, Log
from airflow.models.taskinstance import TaskInstance, TaskInstanceNote
from airflow.models.xcom import XComModel
from airflow.utils.session import create_session
from airflow.utils.sqlalchemy import with_row_locks
from sqlalchemy import delete, exists, insert, or_, select, text, tuple_, update
from sqlalchemy.orm import Session

from event_triggers.marks import FACTS_KEY, PAYLOAD_KEY, Answer, Mark, RunMarks
from event_triggers.server.following import clear_failed_behind, tell_listeners
from event_triggers.server.settling import Change, Marker, settle

__all__ = ["Author", "Busy", "write_run"]

_TI, _NOTE, _XCOM, _LOG, _RUN = (model.__table__ for model in (TaskInstance, TaskInstanceNote, XComModel, Log, DagRun))
_EVENT = "patch_task_instance"
"""What the public route is called in the audit log."""
_FAILED = exists().where(
    _TI.c.dag_id == _RUN.c.dag_id, _TI.c.run_id == _RUN.c.run_id, _TI.c.state.in_(["failed", "upstream_failed"])
)
_LOCK_SQLITE = text("UPDATE dag_run SET id = id WHERE dag_id = :dag_id AND run_id = :run_id")


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


def write_run(run: RunMarks, author: Author) -> list[Answer]:
    """Make the marks of a run.

    :raises Busy: when somebody holds the run's lock, the scheduler most likely.
    """
    with create_session(scoped=False) as session:
        return _Writer(session, run, author).write()


class _Writer:
    def __init__(self, session: Session, run: RunMarks, author: Author) -> None:
        self._session = session
        self._run = run
        self._author = author
        self._now: datetime = datetime.now(timezone.utc)
        self._found: dict[tuple[str, int], _Found] = {}
        self._run_id = 0

    def write(self) -> list[Answer]:
        failed_behind = self._lock_run()
        if failed_behind is None:
            return [self._missing(mark) for mark in self._run.marks]
        self._lock_task_instances()
        self._read_xcoms()
        answers = [self._settle(mark) for mark in self._run.marks]
        self._write_xcoms()
        self._write_states()
        self._write_notes()
        self._write_log()
        marked = [found for found in self._found.values() if found.state]
        if failed_behind and marked:
            task_ids = {found.row.task_id for found in marked}
            clear_failed_behind(self._session, self._run.dag_id, self._run.run_id, task_ids)
        self._session.commit()
        tell_listeners(self._session, {found.row.id: str(found.state) for found in marked})
        return answers

    # ------------------------------------------------------------------ reading

    def _lock_run(self) -> bool | None:
        """Whether anything in the run has failed; ``None`` when there is no such run."""
        dag_id, run_id = self._run.dag_id, self._run.run_id
        if self._session.get_bind().dialect.name == "sqlite":
            self._session.execute(_LOCK_SQLITE, {"dag_id": dag_id, "run_id": run_id})
        query = select(_RUN.c.id, _FAILED).where(_RUN.c.dag_id == dag_id, _RUN.c.run_id == run_id)
        locking = with_row_locks(query, self._session, of=_RUN, skip_locked=True)
        row = self._session.execute(locking).one_or_none()
        if row is None:
            if self._session.execute(query).one_or_none() is not None:
                raise Busy
            return None
        self._run_id = row[0]
        return bool(row[1])

    def _lock_task_instances(self) -> None:
        query = (
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
            .where(_TI.c.dag_id == self._run.dag_id, _TI.c.run_id == self._run.run_id, *self._those(_TI))
            .order_by(_TI.c.id)
        )
        for row in self._session.execute(with_row_locks(query, self._session, of=_TI)):
            self._found[row.task_id, row.map_index] = _Found(row, Marker(str(row.id), row.state))

    def _those(self, table: Any) -> list[Any]:
        marks = self._run.marks
        task_ids = sorted({mark.task_id for mark in marks})
        map_indexes = sorted({mark.map_index for mark in marks})
        return [table.c.task_id.in_(task_ids), table.c.map_index.in_(map_indexes)]

    def _read_xcoms(self) -> None:
        recorded = [mark for mark in self._run.marks if mark.messages is not None]
        if not recorded:
            return
        keys = _XCOM.c.key.in_([FACTS_KEY, PAYLOAD_KEY])
        if any(mark.wanted > 1 for mark in recorded):
            keys = or_(keys, _XCOM.c.key.startswith(f"{FACTS_KEY}_", autoescape=True))
        query = select(_XCOM.c.task_id, _XCOM.c.map_index, _XCOM.c.key, _XCOM.c.value).where(
            _XCOM.c.dag_run_id == self._run_id, *self._those(_XCOM), keys
        )
        for task_id, map_index, key, value in self._session.execute(query):
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

    def _write_xcoms(self) -> None:
        same = {"dag_run_id": self._run_id, "dag_id": self._run.dag_id, "run_id": self._run.run_id}
        rows: list[dict[str, Any]] = []
        there: list[tuple[str, int, str]] = []
        for (task_id, map_index), found in self._found.items():
            xcoms = {key: value for _, change in found.changes for key, value in change.xcoms.items()}
            place = {"task_id": task_id, "map_index": map_index, "timestamp": self._now}
            rows += [{**same, **place, "key": key, "value": value} for key, value in xcoms.items()]
            there += [(task_id, map_index, key) for key in sorted(found.there & xcoms.keys())]
        if there:
            # As Airflow does: a row that somebody else has replaced meanwhile makes this a conflict, not a loss.
            key = tuple_(_XCOM.c.task_id, _XCOM.c.map_index, _XCOM.c.key)
            self._session.execute(delete(_XCOM).where(_XCOM.c.dag_run_id == self._run_id, key.in_(there)))
        if rows:
            self._session.execute(insert(_XCOM), rows)

    def _write_states(self) -> None:
        by_state: dict[str, list[Any]] = {}
        for found in self._found.values():
            if found.state:
                by_state.setdefault(found.state, []).append(found.row)
        for state, rows in by_state.items():
            fresh = [row.id for row in rows if row.start_date is None and row.end_date is None]
            if fresh:
                values = {"start_date": self._now, "end_date": self._now, "duration": 0.0}
                self._update_states(fresh, state, values)
            for row in rows:
                if row.start_date is not None or row.end_date is not None:
                    start, end = row.start_date or self._now, row.end_date or self._now
                    duration = (end - start).total_seconds()
                    values = {"start_date": start, "end_date": end, "duration": duration}
                    self._update_states([row.id], state, values)

    def _update_states(self, ids: Sequence[Any], state: str, values: dict[str, Any]) -> None:
        self._session.execute(update(_TI).where(_TI.c.id.in_(ids)).values(state=state, updated_at=self._now, **values))

    def _write_notes(self) -> None:
        noted = [(found.row, found.note) for found in self._found.values() if found.note]
        new = [(row, note) for row, note in noted if row.noted is None]
        if new:
            same = {"user_id": self._author.id, "created_at": self._now, "updated_at": self._now}
            self._session.execute(insert(_NOTE), [{**same, "ti_id": row.id, "content": note} for row, note in new])
        for row, note in noted:
            if row.noted is not None:
                values = {"content": note, "user_id": self._author.id, "updated_at": self._now}
                self._session.execute(update(_NOTE).where(_NOTE.c.ti_id == row.id).values(**values))

    def _write_log(self) -> None:
        rows = [
            self._log_row(mark, change)
            for found in self._found.values()
            for mark, change in found.changes
            if change.state or change.note
        ]
        if rows:
            self._session.execute(insert(_LOG), rows)

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
