"""A small Airflow behind the edge of its API: task instances and XComs in memory, answered as Airflow 3.3 answers.

Only what the ledger uses is here; the status codes are those of the real one.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from urllib.parse import unquote

import httpx
import msgspec

from event_triggers.airflow_api import AirflowApi, ApiSettings
from event_triggers.airflow_ledger import AirflowLedger
from event_triggers.ledger import Book, GroupRef
from event_triggers.marks import (
    MARKER_OPERATOR,
    PROTOCOL,
    Answer,
    Answers,
    FoundMarkers,
    GroupMarkers,
    Mark,
    MarkersAnswer,
    MarkersRequest,
    MarkerState,
    MarkRequest,
)
from event_triggers.server.settling import Marker, settle
from tests.unit.api_kit import Edge, answer, body_of
from tests.unit.hub_kit import soon

__all__ = ["GROUP", "MARKERS", "FakeAirflow", "Refused", "TaskInstance", "World"]

GROUP = GroupRef("dag", "manual__2030-01-01T00:00:00+00:00", "inputs.wait")
MARKERS = {name: f"inputs.{name}" for name in ("orders", "shifts", "stock")}

_RESERVED = {"__classname__", "__data__", "__var", "__type"}
_LONGEST_PAGE = 100


class Refused(Exception):
    """Airflow says no."""

    def __init__(self, status: int, detail: Any = "") -> None:
        super().__init__(status, detail)
        self.status = status
        self.detail = detail


@dataclass
class TaskInstance:
    """One task instance, with its XComs."""

    dag_id: str
    run_id: str
    task_id: str
    map_index: int = -1
    operator: str = "EventMarker"
    state: str | None = None
    note: str | None = None
    id: str = ""
    updated_at: datetime | None = None
    xcoms: dict[str, Any] = field(default_factory=dict)

    @property
    def row(self) -> dict[str, Any]:
        """As a list of task instances shows it."""
        names = ("id", "dag_id", "task_id", "map_index", "operator", "state", "note")
        return {"dag_run_id": self.run_id, **{name: getattr(self, name) for name in names}}


class FakeAirflow(Edge):
    """Answers for the task instances that a test has put in."""

    def __init__(self, version: str = "3.3.2", *, route: bool = False) -> None:
        super().__init__(self._handle)
        self.version = version
        self.route = route
        """Whether the plugin is loaded, so that there is a marking route."""
        self.instances: list[TaskInstance] = []
        self.refusals: list[tuple[str, str, Refused]] = []
        """Method, part of the path, and the answer, for what is refused."""
        self.answered: list[tuple[str, str]] = []
        """Method and path (without ``/api/v2/``) of everything asked, in order."""
        self._ids = itertools.count(1)

    def add(self, dag_id: str, run_id: str, *task_ids: str, **fields: Any) -> None:
        """Put in task instances."""
        for task_id in task_ids:
            self.instances.append(TaskInstance(dag_id, run_id, task_id, id=f"ti-{next(self._ids)}", **fields))

    def find(self, dag_id: str, run_id: str, task_id: str, map_index: int | None = -1) -> TaskInstance:
        """One of them."""
        for one in self.instances:
            if (one.dag_id, one.run_id, one.task_id) == (dag_id, run_id, task_id) and map_index in (
                None,
                one.map_index,
            ):
                return one
        raise Refused(404, f"The Task Instance with task_id: `{task_id}` and map_index: `{map_index}` was not found")

    def mark(self, one: TaskInstance, state: str | None) -> None:
        """A person puts it into a state."""
        one.state, one.updated_at = state, self.clock.now()

    def clear(self, one: TaskInstance) -> None:
        """A person clears it: Airflow gives it a new id, and leaves its XComs."""
        self.mark(one, None)
        one.id = f"ti-{next(self._ids)}"

    def refuse(self, method: str, part: str, status: int, detail: Any = "refused") -> None:
        """From now on, requests whose path has this part are refused."""
        self.refusals.append((method, part, Refused(status, detail)))

    def ledger(self) -> AirflowLedger:
        """A ledger in this Airflow."""

        async def make_api() -> AirflowApi:
            settings = ApiSettings("http://airflow", login="marker", password="s3cret", origin="the test")
            return AirflowApi(settings, clock=self.clock, transport=httpx.MockTransport(self.take))

        return AirflowLedger(make_api, clock=self.clock)

    def asked(self, method: str, part: str = "") -> int:
        """How many requests of a kind there were."""
        return sum(one == method and part in path for one, path in self.answered)

    # ------------------------------------------------------------------ answering

    def _handle(self, request: httpx.Request) -> httpx.Response:
        path = request.url.raw_path.decode().partition("?")[0].removeprefix("/api/v2/")
        self.answered.append((request.method, path))
        try:
            for method, part, refused in self.refusals:
                if method == request.method and part in path:
                    raise refused
            return self._answer(request, [unquote(part) for part in path.split("/")])
        except Refused as refused:
            return answer(refused.status, {"detail": refused.detail})

    def _answer(self, request: httpx.Request, parts: list[str]) -> httpx.Response:
        if parts == ["", "event-triggers", "marks"]:
            return self._marks(request)
        if parts == ["", "event-triggers", "markers"]:
            return self._markers(request)
        if parts == ["version"]:
            return answer(document={"version": self.version})
        _, dag_id, _, run_id, _, *rest = parts
        if not rest:
            return self._all(request, dag_id, run_id)
        task_id, *more = rest
        if more[:1] == ["xcomEntries"]:
            return self._xcoms(request, dag_id, run_id, task_id, more[1:])
        map_index = int(more[0]) if more else None
        one = self.find(dag_id, run_id, task_id, map_index)
        if request.method == "PATCH":
            self._patch(one, body_of(request))
            return answer(document={"task_instances": [one.row], "total_entries": 1})
        return answer(document=one.row)

    def _all(self, request: httpx.Request, dag_id: str, run_id: str) -> httpx.Response:
        if request.method == "PATCH":
            return self._bulk(dag_id, run_id, body_of(request))
        asked = request.url.params
        since = datetime.fromisoformat(asked["updated_at_gte"]) if "updated_at_gte" in asked else None
        found = [
            one.row
            for one in self.instances
            if dag_id in ("~", one.dag_id)
            and run_id in ("~", one.run_id)
            and asked.get("operator", one.operator) == one.operator
            and ("state" not in asked or one.state in asked.get_list("state"))
            and (since is None or (one.updated_at is not None and one.updated_at >= since))
        ]
        offset, limit = int(asked.get("offset", 0)), min(int(asked.get("limit", 50)), _LONGEST_PAGE)
        return answer(document={"task_instances": found[offset : offset + limit], "total_entries": len(found)})

    def _patch(self, one: TaskInstance, body: dict[str, Any]) -> None:
        if one.state == "removed":
            raise Refused(404, f"Task '{one.task_id}' not found in Dag '{one.dag_id}'")
        if len(body.get("note") or "") > 1000:
            raise Refused(422, "note is too long")
        if body.get("note") is not None:
            one.note = body["note"] or None
        if "new_state" in body:
            if one.state == body["new_state"]:
                raise Refused(409, f"Task id {one.task_id} is already in {one.state} state")
            self.mark(one, body["new_state"])

    def _bulk(self, dag_id: str, run_id: str, body: dict[str, Any]) -> httpx.Response:
        (action,) = body["actions"]
        assert (action["action"], action["action_on_non_existence"]) == ("update", "fail")
        done: list[str] = []
        errors: list[dict[str, Any]] = []
        try:
            keys = [self._entity_key(entity, dag_id, run_id) for entity in action["entities"]]
            found = [self.find(*key) for key in keys]
            for one, entity in zip(found, action["entities"], strict=True):
                self._patch(one, entity)
                done.append(f"{one.dag_id}.{one.run_id}.{one.task_id}[{one.map_index}]")
        except Refused as refused:  # the first refusal ends it
            errors.append({"error": refused.detail, "status_code": refused.status})
        return answer(document={"create": None, "update": {"success": done, "errors": errors}, "delete": None})

    def _entity_key(self, entity: dict[str, Any], dag_id: str, run_id: str) -> tuple[str, str, str, int]:
        across = "dag_id" in entity
        if across and self.version < "3.3":
            raise Refused(422, "Extra inputs are not permitted")
        assert across == (dag_id == "~")
        place = (entity["dag_id"], entity["dag_run_id"]) if across else (dag_id, run_id)
        return (*place, entity["task_id"], entity["map_index"])

    def _marks(self, request: httpx.Request) -> httpx.Response:
        if not self.route:
            raise Refused(404, "Not Found")
        if request.method == "GET":
            return answer(document={"protocol": PROTOCOL, "reads": True})
        asked = msgspec.json.decode(request.content, type=MarkRequest)
        runs = [[self._mark_one(run.dag_id, run.run_id, mark) for mark in run.marks] for run in asked.runs]
        return httpx.Response(200, content=msgspec.json.encode(Answers(PROTOCOL, runs)))

    def _markers(self, request: httpx.Request) -> httpx.Response:
        if not self.route:
            raise Refused(404, "Not Found")
        asked = msgspec.json.decode(request.content, type=MarkersRequest)
        groups = [FoundMarkers(self._of_group(group)) for group in asked.groups]
        return httpx.Response(200, content=msgspec.json.encode(MarkersAnswer(PROTOCOL, groups)))

    def _of_group(self, group: GroupMarkers) -> list[MarkerState]:
        place = (group.dag_id, group.run_id, group.map_index)
        rows = [one for one in self.instances if (one.dag_id, one.run_id, one.map_index) == place]
        rows = [one for one in rows if one.operator == MARKER_OPERATOR and one.task_id in group.task_ids]
        return [MarkerState(one.task_id, one.id, one.state) for one in rows]

    def _mark_one(self, dag_id: str, run_id: str, mark: Mark) -> Answer:
        for number, message in enumerate(mark.messages or ()):
            try:
                _check_value(message.payload)
            except Refused as refused:
                return Answer(status=refused.status, detail=str(refused.detail), payload=number)
        try:
            one = self.find(dag_id, run_id, mark.task_id, mark.map_index)
        except Refused as refused:
            return Answer(status=refused.status, detail=str(refused.detail))
        change = settle(mark, Marker(one.id, one.state, one.xcoms))
        one.xcoms = {**one.xcoms, **change.xcoms}
        if change.note is not None:
            one.note = change.note
        if change.state is not None:
            self.mark(one, change.state)
        return change.answer

    def _xcoms(self, request: httpx.Request, dag_id: str, run_id: str, task_id: str, keys: list[str]) -> httpx.Response:
        body = body_of(request) or {}
        map_index = int(body.get("map_index", request.url.params.get("map_index", -1)))
        _check_value(body.get("value"))
        one = self.find(dag_id, run_id, task_id, map_index)
        key = keys[0] if keys else body["key"]
        if request.method == "POST":
            if key in one.xcoms:
                raise Refused(409, f"The XCom with key: `{key}` with mentioned task instance already exists.")
            one.xcoms[key] = body["value"]
            return answer(201, {"key": key, "value": body["value"]})
        if key not in one.xcoms:
            raise Refused(404, f"XCom entry with key: `{key}` not found")
        if request.method == "PATCH":
            one.xcoms[key] = body["value"]
        return answer(document={"key": key, "value": one.xcoms[key]})


def _check_value(value: Any) -> None:
    if isinstance(value, str):
        try:
            decoded = json.loads(value)
        except ValueError:
            return
        if isinstance(decoded, (dict, list)):
            _check_value(decoded)
    elif isinstance(value, dict):
        if _RESERVED & value.keys():
            raise Refused(422, [{"msg": f"contains reserved serialization keys: {sorted(_RESERVED & value.keys())}"}])
        for inner in value.values():
            _check_value(inner)
    elif isinstance(value, list):
        for inner in value:
            _check_value(inner)


class World:
    """An Airflow with one group, and what its task log says."""

    def __init__(self, *, route: bool = False) -> None:
        self.airflow = FakeAirflow(route=route)
        self.log: list[tuple[int, str]] = []
        self.airflow.add(GROUP.dag_id, GROUP.run_id, GROUP.task_id, operator="EventGroupSensor", state="deferred")
        self.airflow.add(GROUP.dag_id, GROUP.run_id, *MARKERS.values())
        self.airflow.add(GROUP.dag_id, GROUP.run_id, "close_books", operator="@task")
        self.shared = self.airflow.ledger()

    @asynccontextmanager
    async def book(self, group: GroupRef = GROUP, ledger: AirflowLedger | None = None) -> AsyncIterator[Book]:
        """A book of the group, its states loaded."""

        def tell(level: int, text: str) -> None:
            self.log.append((level, text))

        async with (ledger or self.shared).open(group, MARKERS, tell) as book:
            await soon(book.load())
            yield book

    def marker(self, event: str) -> TaskInstance:
        """The marker of an event."""
        return self.airflow.find(GROUP.dag_id, GROUP.run_id, MARKERS[event])

    def said(self, level: int) -> list[str]:
        """What the log says at a level."""
        return [text for one, text in self.log if one == level]
