"""Marking markers through the public REST API, those that are due together in one request.

Flow: ``mark`` puts a mark into the line and waits; a few workers take from the line whatever is there, up to
:data:`MOST_PER_REQUEST`, send it, and answer everybody who waits. A lone mark is sent at once by itself, so an idle line adds
no delay, and a busy one fills its requests by itself.

Airflow's bulk route stops at the first mark it refuses, saying which only in prose, so a request with any refusal is repeated
mark by mark. "Already in that state" is success. A mark still in the line at a restart is made again by its group.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from event_triggers.airflow_api import AirflowApi, path_of
from event_triggers.errors import AirflowApiError

__all__ = ["MOST_PER_REQUEST", "WORKERS", "Mark", "MarkingLine"]

MOST_PER_REQUEST = 20
"""More marks a request gain nothing, and hold the API server's worker for seconds."""
WORKERS = 2


@dataclass(frozen=True)
class Mark:
    """Make this task instance ``success``, with a note."""

    dag_id: str
    run_id: str
    task_id: str
    map_index: int
    note: str

    @property
    def path(self) -> str:
        """The task instance's path."""
        parts = ["dags", self.dag_id, "dagRuns", self.run_id, "taskInstances", self.task_id]
        return path_of(*parts, *([str(self.map_index)] if self.map_index >= 0 else []))


@dataclass(eq=False)
class _Waiting:
    mark: Mark
    answer: asyncio.Future[None]


class MarkingLine:
    """The marks that are due, of all groups of this triggerer.

    :param across_runs: whether the API takes marks of several runs in one request (Airflow 3.3 does).
    """

    def __init__(self, api: AirflowApi, *, across_runs: bool) -> None:
        self._api = api
        self._across_runs = across_runs
        self._line: deque[_Waiting] = deque()
        self._something = asyncio.Event()

    async def mark(self, mark: Mark) -> None:
        """Return when the task instance is ``success``.

        :raises AirflowApiError: when Airflow refuses it.
        """
        waiting = _Waiting(mark, asyncio.get_running_loop().create_future())
        self._line.append(waiting)
        self._something.set()
        await waiting.answer

    async def work(self) -> None:
        """Take from the line and send, for ever."""
        while True:
            while not self._line:
                self._something.clear()
                await self._something.wait()
            taken = self._take()
            try:
                await self._send(taken)
            except AirflowApiError as error:
                for waiting in taken:
                    _refuse(waiting, error)
            except BaseException:
                self._line.extendleft(reversed([waiting for waiting in taken if not waiting.answer.done()]))
                raise

    def _take(self) -> list[_Waiting]:
        taken: list[_Waiting] = []
        left: deque[_Waiting] = deque()
        while self._line and len(taken) < MOST_PER_REQUEST:
            waiting = self._line.popleft()
            if waiting.answer.done():
                continue  # whoever asked has gone
            if taken and not self._together(taken[0].mark, waiting.mark):
                left.append(waiting)
            else:
                taken.append(waiting)
        self._line.extendleft(reversed(left))
        return taken

    def _together(self, first: Mark, other: Mark) -> bool:
        return self._across_runs or (first.dag_id, first.run_id) == (other.dag_id, other.run_id)

    async def _send(self, taken: Sequence[_Waiting]) -> None:
        if len(taken) > 1 and await self._send_together([waiting.mark for waiting in taken]):
            for waiting in taken:
                _done(waiting)
            return
        for waiting in taken:
            try:
                await self._send_one(waiting.mark)
            except AirflowApiError as error:
                _refuse(waiting, error)
            else:
                _done(waiting)

    async def _send_one(self, mark: Mark) -> None:
        try:
            await self._api.call("PATCH", mark.path, json={"new_state": "success", "note": mark.note})
        except AirflowApiError as error:
            if error.status != 409:
                raise

    async def _send_together(self, marks: Sequence[Mark]) -> bool:
        entities: list[dict[str, Any]] = []
        for mark in marks:
            entity: dict[str, Any] = {"task_id": mark.task_id, "map_index": mark.map_index}
            entity |= {"new_state": "success", "note": mark.note}
            if self._across_runs:
                entity |= {"dag_id": mark.dag_id, "dag_run_id": mark.run_id}
            entities.append(entity)
        dag_id, run_id = ("~", "~") if self._across_runs else (marks[0].dag_id, marks[0].run_id)
        body = {"actions": [{"action": "update", "entities": entities, "action_on_non_existence": "fail"}]}
        try:
            answer = await self._api.call(
                "PATCH", path_of("dags", dag_id, "dagRuns", run_id, "taskInstances"), json=body
            )
        except AirflowApiError:
            return False
        update = answer.json().get("update") or {}
        return not update.get("errors") and len(update.get("success", ())) >= len(marks)


def _done(waiting: _Waiting) -> None:
    if not waiting.answer.done():
        waiting.answer.set_result(None)


def _refuse(waiting: _Waiting, error: AirflowApiError) -> None:
    if not waiting.answer.done():
        waiting.answer.set_exception(error)
