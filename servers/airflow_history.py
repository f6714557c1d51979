"""What Airflow did, read from its database: the states each task instance passed through, and the components that run.

Airflow keeps only the last state of a task, and only some versions write an audit row when a worker starts. So the
harness puts a database trigger behind ``task_instance``, which writes each change of state into a table of its own. A
worker process makes itself known by taking its task to ``running``, and nothing else does that, so these rows count the
starts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

import sqlalchemy
from sqlalchemy.pool import NullPool

__all__ = ["Change", "History"]

_SQLITE = (
    """CREATE TABLE IF NOT EXISTS harness_state_change (
        id INTEGER PRIMARY KEY AUTOINCREMENT, dag_id TEXT, run_id TEXT, task_id TEXT, map_index INTEGER,
        try_number INTEGER, state TEXT, at REAL DEFAULT ((julianday('now') - 2440587.5) * 86400))""",
    """CREATE TRIGGER IF NOT EXISTS harness_state_change AFTER UPDATE OF state ON task_instance
        WHEN NEW.state IS NOT OLD.state BEGIN
        INSERT INTO harness_state_change (dag_id, run_id, task_id, map_index, try_number, state)
        VALUES (NEW.dag_id, NEW.run_id, NEW.task_id, NEW.map_index, NEW.try_number, NEW.state); END""",
)
_POSTGRES = (
    """CREATE TABLE IF NOT EXISTS harness_state_change (
        id BIGSERIAL PRIMARY KEY, dag_id TEXT, run_id TEXT, task_id TEXT, map_index INTEGER, try_number INTEGER,
        state TEXT, at DOUBLE PRECISION DEFAULT extract(epoch FROM clock_timestamp()))""",
    """CREATE OR REPLACE FUNCTION harness_state_change() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        INSERT INTO harness_state_change (dag_id, run_id, task_id, map_index, try_number, state)
        VALUES (NEW.dag_id, NEW.run_id, NEW.task_id, NEW.map_index, NEW.try_number, NEW.state);
        RETURN NULL; END $$""",
    """CREATE OR REPLACE TRIGGER harness_state_change AFTER UPDATE OF state ON task_instance FOR EACH ROW
        WHEN (NEW.state IS DISTINCT FROM OLD.state) EXECUTE FUNCTION harness_state_change()""",
)


class Change(NamedTuple):
    """One change of one task instance's state."""

    task_id: str
    map_index: int
    try_number: int
    state: str | None
    at: float
    """Seconds since the epoch, by the database's clock."""


class History:
    """Reads an Airflow database beside Airflow.

    :param url: the database's SQLAlchemy address.
    """

    def __init__(self, url: str) -> None:
        self._engine = sqlalchemy.create_engine(url, poolclass=NullPool)

    def install(self) -> None:
        """Begin to keep the changes of state. Call behind ``airflow db migrate``; twice is the same as once."""
        statements = _SQLITE if self._engine.dialect.name == "sqlite" else _POSTGRES
        with self._engine.begin() as connection:
            for statement in statements:
                connection.execute(sqlalchemy.text(statement))

    def changes(self, dag_id: str, run_id: str, task_id: str | None = None) -> list[Change]:
        """The changes of state in a run, oldest first; of one task only, if named."""
        rows = self.rows(
            "SELECT task_id, map_index, try_number, state, at FROM harness_state_change"
            " WHERE dag_id = :dag_id AND run_id = :run_id ORDER BY id",
            dag_id=dag_id,
            run_id=run_id,
        )
        return [change for change in (Change(*row) for row in rows) if task_id in (None, change.task_id)]

    def worker_starts(self, dag_id: str, run_id: str) -> Mapping[str, int]:
        """How many worker processes ran for each task of a run, over all its tries; 0 for a task not in it."""
        return Counter(change.task_id for change in self.changes(dag_id, run_id) if change.state == "running")

    def running_jobs(self, job_type: str) -> list[int]:
        """The ids of the components of a kind (``TriggererJob``) that say they run, oldest first."""
        statement = "SELECT id FROM job WHERE job_type = :job_type AND state = 'running' ORDER BY id"
        return [row[0] for row in self.rows(statement, job_type=job_type)]

    def rows(self, statement: str, **parameters: object) -> list[tuple[Any, ...]]:
        """The rows of any query; parameters are written ``:name``."""
        with self._engine.connect() as connection:
            return [tuple(row) for row in connection.execute(sqlalchemy.text(statement), parameters)]
