"""Marking markers through the public REST API, those that are due together in one request.

Flow: ``mark`` puts a mark into the line (:mod:`event_triggers.line`) and waits; :data:`WORKERS` workers send what is
there, up to :data:`MOST_PER_REQUEST` marks at a time.

Airflow's bulk route stops at the first mark it refuses, saying which only in prose, so a request with any refusal is
repeated mark by mark. A conflict (409) with a marker that is in that state already is success. A mark still in the line
at a restart is made again by its group.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

from event_triggers.airflow_api import AirflowApi, path_of
from event_triggers.errors import AirflowApiError
from event_triggers.line import Line, Waiting
from event_triggers.xcoms import MarkerKey

__all__ = ["MOST_PER_REQUEST", "WORKERS", "Mark", "MarkingLine"]

MOST_PER_REQUEST = 20
"""More marks a request gain nothing, and hold the API server's worker for seconds."""
WORKERS = 2


class Mark(NamedTuple):
    """Bring this task instance into a state, with a note."""

    key: MarkerKey
    note: str | None = None
    state: str = "success"

    @property
    def change(self) -> dict[str, str]:
        """What is asked of Airflow."""
        return {"new_state": self.state, **({"note": self.note} if self.note else {})}


_Due = Waiting[Mark, None]


class MarkingLine:
    """The marks that are due, of all groups of this triggerer.

    :param across_runs: whether the API takes marks of several runs in one request (Airflow 3.3 does).
    """

    def __init__(self, api: AirflowApi, *, across_runs: bool) -> None:
        self._api = api
        self._across_runs = across_runs
        self._line: Line[Mark, None] = Line("marks", take=self._take, send=self._send, failed=AirflowApiError)

    @property
    def busy(self) -> bool:
        """Whether marks are waiting for their turn."""
        return bool(self._line)

    async def mark(self, mark: Mark) -> None:
        """Return when the task instance is in that state.

        :raises AirflowApiError: when Airflow refuses it.
        """
        await self._line.ask(mark)

    async def work(self) -> None:
        """Take from the line and send, for ever."""
        await self._line.work()

    def _take(self, due: deque[_Due]) -> list[_Due]:
        taken: list[_Due] = []
        left: deque[_Due] = deque()
        while due and len(taken) < MOST_PER_REQUEST:
            waiting = due.popleft()
            if waiting.over:
                continue  # whoever asked has gone
            if taken and not self._together(taken[0].question, waiting.question):
                left.append(waiting)
            else:
                taken.append(waiting)
        due.extendleft(reversed(left))
        return taken

    def _together(self, first: Mark, other: Mark) -> bool:
        return self._across_runs or first.key[:2] == other.key[:2]

    async def _send(self, taken: Sequence[_Due]) -> None:
        # Two waits of one group may ask for the same mark.
        marks = {waiting.question.key: waiting.question for waiting in taken}
        if len(marks) > 1 and await self._send_together(list(marks.values())):
            for waiting in taken:
                waiting.give(None)
            return
        for waiting in taken:
            if waiting.over:
                continue  # whoever asked has gone meanwhile
            try:
                await self._send_one(waiting.question)
            except AirflowApiError as error:
                waiting.refuse(error)
            else:
                waiting.give(None)

    async def _send_one(self, mark: Mark) -> None:
        try:
            await self._api.call("PATCH", mark.key.instance, json=mark.change)
        except AirflowApiError as error:
            # Airflow says 409, too, when somebody else writes a note at the same time, and then undoes our mark.
            if error.status != 409 or (await self._api.call("GET", mark.key.instance))["state"] != mark.state:
                raise

    async def _send_together(self, marks: Sequence[Mark]) -> bool:
        entities: list[dict[str, Any]] = []
        for mark in marks:
            entity = {"task_id": mark.key.task_id, "map_index": mark.key.map_index, **mark.change}
            if self._across_runs:
                entity |= {"dag_id": mark.key.dag_id, "dag_run_id": mark.key.run_id}
            entities.append(entity)
        dag_id, run_id = ("~", "~") if self._across_runs else marks[0].key[:2]
        body = {"actions": [{"action": "update", "entities": entities, "action_on_non_existence": "fail"}]}
        try:
            answer = await self._api.call(
                "PATCH", path_of("dags", dag_id, "dagRuns", run_id, "taskInstances"), json=body
            )
        except AirflowApiError:
            return False
        update = (answer or {}).get("update") or {}
        return not update.get("errors") and len(update.get("success", ())) >= len(marks)
