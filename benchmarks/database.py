"""Airflow's database, read and written beside Airflow.

Read: when something became visible to others (the time of its commit, by PostgreSQL), and how often a worker ran.
Written: copies of a run that Airflow has made and started itself, since it takes some 100 ms for each, and a thousand
are wanted. What happens to the copies is Airflow's and the package's doing alone.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import psycopg2  # type: ignore[import-untyped]

from servers.airflow_client import wait_for

if TYPE_CHECKING:
    from servers.postgres import Postgres

__all__ = ["Database", "keep_commit_times"]

_COPY = (
    """CREATE TEMPORARY TABLE made ON COMMIT DROP AS
    SELECT %(prefix)s || n AS run_id, nextval(pg_get_serial_sequence('trigger', 'id'))::int AS trigger_id
    FROM generate_series(%(first)s, %(last)s) n""",
    """INSERT INTO dag_run SELECT copied.* FROM dag_run old, made, LATERAL jsonb_populate_record(old,
    jsonb_build_object('id', nextval(pg_get_serial_sequence('dag_run', 'id')), 'run_id', made.run_id,
    'run_after', now(), 'queued_at', now(), 'start_date', now())) copied
    WHERE old.dag_id = %(dag_id)s AND old.run_id = %(run_id)s""",
    """INSERT INTO trigger SELECT copied.* FROM trigger old, made, LATERAL jsonb_populate_record(old,
    jsonb_build_object('id', made.trigger_id, 'created_date', clock_timestamp(), 'triggerer_id', NULL)) copied
    WHERE %(waiting)s AND old.id = (SELECT trigger_id FROM task_instance
    WHERE dag_id = %(dag_id)s AND run_id = %(run_id)s AND trigger_id IS NOT NULL)""",
    """INSERT INTO task_instance SELECT copied.* FROM task_instance old, made, LATERAL jsonb_populate_record(old,
    jsonb_build_object('id', gen_random_uuid(), 'run_id', made.run_id,
    'trigger_id', CASE WHEN %(waiting)s AND old.trigger_id IS NOT NULL THEN made.trigger_id END)) copied
    WHERE old.dag_id = %(dag_id)s AND old.run_id = %(run_id)s""",
)
_REMOVE = (
    "DELETE FROM task_instance WHERE dag_id = %(dag_id)s AND run_id <> ALL (%(but)s)",
    "DELETE FROM trigger WHERE id NOT IN (SELECT trigger_id FROM task_instance WHERE trigger_id IS NOT NULL)",
    "DELETE FROM dag_run WHERE dag_id = %(dag_id)s AND run_id <> ALL (%(but)s)",
)


def keep_commit_times(postgres: Postgres) -> None:
    """Let this PostgreSQL remember when each transaction was committed. It is started again for that."""
    postgres.run_sql("ALTER SYSTEM SET track_commit_timestamp = on")
    postgres.restart()


class Database:
    """One connection.

    :param url: as SQLAlchemy writes it.
    """

    def __init__(self, url: str) -> None:
        self._connection = psycopg2.connect(url.replace("+psycopg2", ""))
        self._connection.autocommit = True

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def rows(self, statement: str, **parameters: object) -> list[tuple[Any, ...]]:
        """The rows of a query; parameters are written ``%(name)s``."""
        with self._connection.cursor() as cursor:
            cursor.execute(statement, parameters or None)
            return cursor.fetchall() if cursor.description else []

    def index_changes(self) -> None:
        """Make the changes of state quick to find."""
        self.rows("CREATE INDEX IF NOT EXISTS bench_change ON harness_state_change (dag_id, run_id, task_id)")

    # ------------------------------------------------------------------ what happened

    def committed(self, dag_id: str, run_id: str, state: str) -> dict[str, float]:
        """When each task of a run was first seen in this state by others, as seconds since the epoch."""
        rows = self.rows(
            "SELECT task_id, min(extract(epoch FROM pg_xact_commit_timestamp(xmin)))::float FROM harness_state_change"
            " WHERE dag_id = %(dag_id)s AND run_id = %(run_id)s AND state = %(state)s GROUP BY task_id",
            dag_id=dag_id,
            run_id=run_id,
            state=state,
        )
        return dict(rows)

    def wait_for_state(self, dag_id: str, run_id: str, task_id: str, state: str, *, timeout: float = 60) -> None:
        """Return when the task is, or has been, in this state.

        :raises TimedOut: when it is not in time.
        """

        def there() -> bool:
            statement = (
                "SELECT 1 FROM harness_state_change WHERE dag_id = %(dag_id)s AND run_id = %(run_id)s"
                " AND task_id = %(task_id)s AND state = %(state)s"
            )
            return bool(self.rows(statement, dag_id=dag_id, run_id=run_id, task_id=task_id, state=state))

        wait_for(there, timeout=timeout, what=f"{task_id} of {run_id} was {state}", pause=0.01)

    def wait_for_end(self, dag_id: str, run_id: str, task_id: str, *, timeout: float = 60) -> str:
        """Return whether the task became ``success`` or ``failed``, when it has become either.

        :raises TimedOut: when it has not in time.
        """
        statement = (
            "SELECT state FROM harness_state_change WHERE dag_id = %(dag_id)s AND run_id = %(run_id)s"
            " AND task_id = %(task_id)s AND state IN ('success', 'failed')"
        )
        found: list[str] = []

        def there() -> bool:
            found.extend(row[0] for row in self.rows(statement, dag_id=dag_id, run_id=run_id, task_id=task_id))
            return bool(found)

        wait_for(there, timeout=timeout, what=f"{task_id} of {run_id} has ended", pause=0.01)
        return found[0]

    def worker_starts(self, dag_id: str, run_id: str, task_id: str) -> int:
        """How many worker processes ran for this task of this run."""
        statement = (
            "SELECT count(*) FROM harness_state_change WHERE dag_id = %(dag_id)s AND run_id = %(run_id)s"
            " AND task_id = %(task_id)s AND state = 'running'"
        )
        return int(self.rows(statement, dag_id=dag_id, run_id=run_id, task_id=task_id)[0][0])

    # ------------------------------------------------------------------ copies

    def copy_run(self, dag_id: str, run_id: str, prefix: str, first: int, last: int, *, waiting: bool = True) -> float:
        """Copy a run whose sensor waits, as ``<prefix><first>`` to ``<prefix><last>``.

        :param waiting: whether each copy gets a trigger, so that a triggerer takes it.

        :return: when the copies could be seen, as seconds since the epoch.
        """
        names: dict[str, object] = {"dag_id": dag_id, "run_id": run_id, "prefix": prefix, "first": first, "last": last}
        names["waiting"] = waiting
        return self._all(_COPY, names)

    def remove_runs(self, dag_id: str, *, but: Sequence[str] = ()) -> None:
        """Remove the runs of a DAG, but these; Airflow's triggerer ends their triggers."""
        self._all(_REMOVE, {"dag_id": dag_id, "but": list(but)})

    def _all(self, statements: Sequence[str], parameters: dict[str, object]) -> float:
        """Do all of this, or nothing, and give the time of the commit."""
        with self._connection.cursor() as cursor:
            cursor.execute("BEGIN")
            try:
                for statement in statements:
                    cursor.execute(statement, parameters)
            except BaseException:
                cursor.execute("ROLLBACK")
                raise
            cursor.execute("COMMIT")
            committed = time.time()
            # So much has changed that the plans made before are no good.
            cursor.execute("ANALYZE task_instance; ANALYZE dag_run; ANALYZE trigger")
        return committed
