"""The rows that the marks of one run write, and writing them: XComs, states, notes and audit log.

On PostgreSQL all of them travel as JSON in one statement, which reads them with the tables' own types: what a
transaction takes is mostly what each statement takes, in SQLAlchemy and on the way. Other databases get a statement
for each table.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from itertools import groupby
from typing import Any

from airflow.models import Log
from airflow.models.taskinstance import TaskInstance, TaskInstanceNote
from airflow.models.xcom import XComModel
from sqlalchemy import TextClause, insert, text, update
from sqlalchemy.engine import Dialect
from sqlalchemy.orm import Session

__all__ = ["Rows"]

_TI, _NOTE, _XCOM, _LOG = (model.__table__ for model in (TaskInstance, TaskInstanceNote, XComModel, Log))
_DATED = ("start_date", "end_date", "duration")
_XCOM_DEFAULTS: dict[str, Any] = {
    column.name: column.default.arg for column in _XCOM.c if getattr(column.default, "is_scalar", False)
}
"""Airflow 3.3 has a column that 3.1 does not have."""
_XCOM_COLUMNS = ("dag_run_id", "dag_id", "run_id", "task_id", "map_index", "key", "timestamp", *_XCOM_DEFAULTS)
_LOG_COLUMNS = ("dttm", "event", "dag_id", "run_id", "task_id", "owner", "owner_display_name", "extra")
_NOTE_COLUMNS = ("ti_id", "user_id", "content", "created_at", "updated_at")


@dataclass
class Rows:
    """What is to be written; each row by its columns' names."""

    now: datetime
    xcoms: list[dict[str, Any]] = field(default_factory=list)
    """New ones: a row that is there is deleted before."""
    states: list[dict[str, Any]] = field(default_factory=list)
    """Task instances by ``id``, with ``state`` and what goes with it."""
    notes: list[dict[str, Any]] = field(default_factory=list)
    """New ones."""
    log: list[dict[str, Any]] = field(default_factory=list)

    def write(self, session: Session) -> None:
        """Write them in the transaction of this session."""
        if not (self.xcoms or self.states or self.notes or self.log):
            return
        dialect = session.get_bind().dialect
        if dialect.name == "postgresql":
            self._write_together(session, dialect)
        else:
            self._write_by_table(session)

    def _write_together(self, session: Session, dialect: Dialect) -> None:
        given = {
            "xcoms": [{**_XCOM_DEFAULTS, **row} for row in self.xcoms],
            "states": self.states,
            "notes": self.notes,
            "log": self.log,
        }
        documents = {name: json.dumps(rows, default=str) for name, rows in given.items()}
        session.execute(_together(dialect), {**documents, "now": self.now})

    def _write_by_table(self, session: Session) -> None:
        for table, rows in ((_XCOM, self.xcoms), (_NOTE, self.notes), (_LOG, self.log)):
            if rows:
                session.execute(insert(table), rows)
        for values, alike in groupby(self.states, key=lambda row: (row["state"], *(row[name] for name in _DATED))):
            ids = [row["id"] for row in alike]
            changed = dict(zip(("state", *_DATED), values, strict=True))
            session.execute(update(_TI).where(_TI.c.id.in_(ids)).values(**changed, updated_at=self.now))


@lru_cache(maxsize=4)
def _together(dialect: Dialect) -> TextClause:
    """One statement for all tables. A ``null`` in JSON is read as a missing value, which no XCom has."""
    names = {
        name: dialect.identifier_preparer.format_table(table)
        for name, table in (("ti", _TI), ("note", _NOTE), ("xcom", _XCOM), ("log", _LOG))
    }

    def given(table: str, rows: str) -> str:
        return f"json_populate_recordset(CAST(NULL AS {names[table]}), CAST(:{rows} AS json)) AS given"

    def insert_given(table: str, columns: Mapping[str, str], rows: str) -> str:
        into, values = ", ".join(columns), ", ".join(columns.values())
        return f"INSERT INTO {names[table]} ({into}) SELECT {values} FROM {given(table, rows)}"  # noqa: S608

    xcom_columns = {**_as_they_are(_XCOM_COLUMNS), "value": "coalesce(value, 'null')"}
    dated = ", ".join(f"{name} = given.{name}" for name in ("state", *_DATED))
    return text(
        f"WITH states AS (UPDATE {names['ti']} AS ti SET {dated}, updated_at = :now"  # noqa: S608 - names of tables
        f" FROM {given('ti', 'states')} WHERE ti.id = given.id),"
        f" notes AS ({insert_given('note', _as_they_are(_NOTE_COLUMNS), 'notes')}),"
        f" xcoms AS ({insert_given('xcom', xcom_columns, 'xcoms')})"
        f" {insert_given('log', _as_they_are(_LOG_COLUMNS), 'log')}"
    )


def _as_they_are(columns: Sequence[str]) -> dict[str, str]:
    return {name: name for name in columns}
