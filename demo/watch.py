"""Looks at the run: what its tasks are now, for the view, and what they went through, for the checks and timings."""

from __future__ import annotations

from typing import Any

from demo.story import EVENTS
from demo.view import Row, short
from servers.airflow import Airflow
from servers.airflow_client import AirflowClient

__all__ = ["CLOSE", "DAG_ID", "GROUP", "SENSOR", "Watch", "marker"]

DAG_ID = "daily_close"
GROUP = "inputs"
SENSOR = f"{GROUP}.wait"
CLOSE = "close_books"


def marker(event: str) -> str:
    """The task id of an event's marker."""
    return f"{GROUP}.{event}"


_ORDER = (SENSOR, *(marker(event) for event in EVENTS), CLOSE)
_WITH_PAYLOAD = (*(marker(event) for event in EVENTS), CLOSE)


class Watch:
    """One run.

    :param airflow: where it runs.
    :param run_id: which.
    """

    def __init__(self, airflow: Airflow, run_id: str) -> None:
        self.airflow = airflow
        self.client: AirflowClient = airflow.client()
        self.run_id = run_id
        self._seen: dict[str, tuple[str | None, str | None]] = {}
        self._came: dict[str, str] = {}

    def states(self) -> dict[str, str | None]:
        """The state of each task now."""
        return self.client.states(DAG_ID, self.run_id)

    def rows(self) -> list[Row]:
        """The tasks as they are now, in the order of the graph."""
        tasks = {task["task_id"]: task for task in self.client.tasks(DAG_ID, self.run_id)}
        since = {change.task_id: change.at for change in self.airflow.history.changes(DAG_ID, self.run_id)}
        rows = []
        for task_id in _ORDER:
            task = tasks.get(task_id, {})
            now = (task.get("state"), task.get("note"))
            if now != self._seen.get(task_id):
                self._seen[task_id] = now
                self._came[task_id] = self._describe(task_id, *now)
            rows.append(Row(task_id, now[0], since.get(task_id), self._came[task_id]))
        if rows[0].state == "deferred":
            open_ones = [event for event, row in zip(EVENTS, rows[1:], strict=False) if row.state is None]
            rows[0] = rows[0]._replace(came=f"waits for {', '.join(open_ones)}" if open_ones else "has everything")
        return rows

    def _describe(self, task_id: str, state: str | None, note: str | None) -> str:
        if task_id not in _WITH_PAYLOAD or (state != "success" and not note):
            return ""
        payload = short(self.xcom(task_id))
        return payload if state == "success" else f"{payload} so far"

    def xcom(self, task_id: str, key: str = "return_value") -> Any:
        """A task's XCom; ``None`` when there is none."""
        try:
            return self.client.xcom(DAG_ID, self.run_id, task_id, key)
        except LookupError:
            return None

    def note(self, task_id: str) -> str:
        """A task's note."""
        return self.client.note(DAG_ID, self.run_id, task_id) or ""

    def log(self, task_id: str) -> str:
        """What a task logged."""
        return self.client.log(DAG_ID, self.run_id, task_id)

    def changes(self, task_id: str) -> list[tuple[str | None, float]]:
        """The states that a task passed through, with the moment of each, from Airflow's database."""
        return [(one.state, one.at) for one in self.airflow.history.changes(DAG_ID, self.run_id, task_id)]

    def turned(self, task_id: str, state: str = "success") -> float | None:
        """When a task came into this state first, in seconds since the epoch."""
        return next((at for now, at in self.changes(task_id) if now == state), None)
