"""The ledger in a real Airflow, through its public REST API.

Flow: see :mod:`event_triggers.ledger`. One :class:`AirflowLedger` per event loop serves all groups: one API client, one line of
marks, and one look now and then at which markers have changed, for all groups together.

Invariants: the background tasks run exactly while a group's book is open; they belong to the ledger and to no group. A state
that the API reports is handed to each book once per change.

Nothing is kept over a restart.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import Any

import anyio
import msgspec

from event_triggers.airflow_api import AirflowApi, path_of
from event_triggers.clock import Clock, SystemClock
from event_triggers.errors import AirflowApiError, EventTriggersError
from event_triggers.ledger import Arrival, Book, GroupRef, Ledger, Received
from event_triggers.marking import WORKERS, Mark, MarkingLine

__all__ = ["LOOK_EVERY", "AirflowLedger"]

log = logging.getLogger(__name__)

LOOK_EVERY = 10.0
"""Seconds between two looks at what people have marked by hand."""
_OVERLAP = timedelta(seconds=60)
"""How far each look goes back behind the last one: clocks differ, and transactions take time to become visible."""
_ASK_AGAIN = 30.0
"""Seconds until something that Airflow refused is tried again."""
_PAGE = 100
END_STATES = ("success", "failed", "skipped")
FACTS_KEY = "event"
PAYLOAD_KEY = "return_value"
_MARKER_OPERATOR = "EventMarker"


class AirflowLedger(Ledger):
    """Keeps what arrived in XComs, notes and states of marker tasks.

    :param api: makes the API client; called when the first group comes.
    :param clock: the time to go by.
    """

    def __init__(self, api: Callable[[], Awaitable[AirflowApi]], *, clock: Clock | None = None) -> None:
        self._make_api = api
        self._clock = clock or SystemClock()
        self._books: dict[_AirflowBook, None] = {}
        self._starting = asyncio.Lock()
        self._session: _Session | None = None
        self._error: AirflowApiError | None = None
        self._not_before = float("-inf")

    @asynccontextmanager
    async def open(
        self, group: GroupRef, markers: Mapping[str, str], tell: Callable[[int, str], None]
    ) -> AsyncIterator[Book]:
        session = await self._started(tell)
        book = _AirflowBook(session, group, markers, tell, self._clock)
        self._books[book] = None
        stop_listening = session.api.listen(tell)
        try:
            yield book
        finally:
            stop_listening()
            del self._books[book]
            if not self._books and self._session is session:
                self._session = None
                with anyio.CancelScope(shield=True):
                    await session.close()

    async def _started(self, tell: Callable[[int, str], None]) -> _Session:
        """The session; waits until Airflow lets us in, since credentials may be created or corrected meanwhile.

        However many groups wait, Airflow is asked once in a while; each group's log says what is wrong.
        """
        said: str | None = None
        while True:
            async with self._starting:
                if self._session is None and self._clock.monotonic() >= self._not_before:
                    await self._start_once()
                if self._session is not None:
                    return self._session
                error, pause = str(self._error), self._not_before - self._clock.monotonic()
            if error != said:
                tell(logging.ERROR, f"{error}. Tried again every {_ASK_AGAIN:.0f} s.")
                said = error
            await self._clock.sleep(pause)

    async def _start_once(self) -> None:
        api = await self._make_api()
        try:
            self._session = await _Session.start(api, self._books, self._clock)
        except BaseException as error:
            with anyio.CancelScope(shield=True):
                await api.__aexit__(None, None, None)
            if not isinstance(error, AirflowApiError):
                raise
            self._error = error
            self._not_before = self._clock.monotonic() + _ASK_AGAIN


class _Session:
    """The client and the background tasks, from the first group to the last."""

    def __init__(self, api: AirflowApi, books: Mapping[_AirflowBook, None], clock: Clock, *, across_runs: bool) -> None:
        self.api = api
        self.marks = MarkingLine(api, across_runs=across_runs)
        self._books = books
        self._clock = clock
        self._together = True
        self._task: asyncio.Task[None] | None = None

    @classmethod
    async def start(cls, api: AirflowApi, books: Mapping[_AirflowBook, None], clock: Clock) -> _Session:
        version = (await api.call("GET", path_of("version"))).json().get("version", "")
        session = cls(api, books, clock, across_runs=_at_least(version, (3, 3)))
        # An empty context: the session outlives the group that happens to start it, and must not log in its name.
        create = asyncio.get_running_loop().create_task
        session._task = contextvars.Context().run(create, session._run(), name="event_triggers: ledger")
        return session

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})
        await self.api.__aexit__(None, None, None)

    async def _run(self) -> None:
        async with anyio.create_task_group() as group:
            for number in range(WORKERS):
                group.start_soon(self.marks.work, name=f"event_triggers: marks {number}")
            group.start_soon(self._look, name="event_triggers: marks made by hand")

    async def _look(self) -> None:
        last = self._clock.now()
        while True:
            await self._clock.sleep(LOOK_EVERY)
            began = self._clock.now()
            try:
                await self._look_once(last - _OVERLAP)
                last = began
            except AirflowApiError as error:
                if not self._together:
                    log.warning("the states of markers cannot be read: %s", error)
                # This user may not look over all DAGs at once; each run is asked for then.
                self._together = False

    async def _look_once(self, since: datetime) -> None:
        if self._together:
            changed = {"updated_at_gte": since.isoformat(), "state": list(END_STATES)}
            rows = await self.task_instances("~", "~", **changed)
            states = {(r["dag_id"], r["dag_run_id"], r["task_id"], r["map_index"]): r["state"] for r in rows}
            for book in list(self._books):
                book.changed({event: states[key] for event, key in book.keys.items() if key in states})
        else:
            for book in list(self._books):
                await book.look()

    async def task_instances(self, dag_id: str, run_id: str, **filters: Any) -> list[dict[str, Any]]:
        """The marker task instances of a run, page by page; ``~`` stands for all."""
        path = path_of("dags", dag_id, "dagRuns", run_id, "taskInstances")
        rows: list[dict[str, Any]] = []
        while True:
            params = {"operator": _MARKER_OPERATOR, "limit": _PAGE, "offset": len(rows), "order_by": "id", **filters}
            answer = (await self.api.call("GET", path, params=params)).json()
            page = answer["task_instances"]
            rows += page
            if not page or len(rows) >= answer["total_entries"]:
                return rows


class _AirflowBook(Book):
    def __init__(
        self,
        session: _Session,
        group: GroupRef,
        markers: Mapping[str, str],
        tell: Callable[[int, str], None],
        clock: Clock,
    ) -> None:
        self._session = session
        self._group = group
        self._tell = tell
        self._clock = clock
        self._markers = markers
        self.keys = {e: (group.dag_id, group.run_id, task, group.map_index) for e, task in markers.items()}
        self._states: dict[str, str] = {}
        self._news: dict[str, str] = {}
        self._changed = asyncio.Event()
        self._said: set[str] = set()
        self._trouble: str | None = None

    @property
    def trouble(self) -> str | None:
        return self._trouble

    # ------------------------------------------------------------------ reading

    async def load(self) -> dict[str, str | None]:
        rows = await self._patiently(lambda: self._session.task_instances(self._group.dag_id, self._group.run_id))
        found = {row["task_id"]: row["state"] for row in rows if row["map_index"] == self._group.map_index}
        states = {event: found.get(task) for event, task in self._markers.items()}
        self._states = {event: state for event, state in states.items() if state in END_STATES}
        return states

    async def look(self) -> None:
        """Ask for this run's markers alone."""
        rows = await self._session.task_instances(self._group.dag_id, self._group.run_id)
        found = {row["task_id"]: row["state"] for row in rows if row["map_index"] == self._group.map_index}
        self.changed({e: found[task] for e, task in self._markers.items() if found.get(task) in END_STATES})

    def changed(self, states: Mapping[str, str]) -> None:
        """Take in what a look has shown."""
        news = {event: state for event, state in states.items() if self._states.get(event) != state}
        if news:
            self._states.update(news)
            self._news.update(news)
            self._changed.set()

    async def marked(self) -> dict[str, str]:
        while not self._news:
            self._changed.clear()
            await self._changed.wait()
        news, self._news = self._news, {}
        return news

    async def received(self, event: str, *, payloads: bool = True) -> tuple[Received, ...]:
        facts = await self._patiently(lambda: self._xcom(event, FACTS_KEY))
        messages = facts.get("messages") if isinstance(facts, dict) else None
        if not messages:
            return ()
        payload = await self._patiently(lambda: self._xcom(event, PAYLOAD_KEY)) if payloads else None
        several = payload if facts.get("wanted", 1) > 1 and isinstance(payload, list) else [payload]
        padded = [*several, *([None] * len(messages))]
        return tuple(Received.from_facts(one, padded[place]) for place, one in enumerate(messages))

    async def sensor_state(self) -> str | None:
        parts = ["dags", self._group.dag_id, "dagRuns", self._group.run_id, "taskInstances", self._group.task_id]
        if self._group.map_index >= 0:
            parts.append(str(self._group.map_index))
        try:
            state = (await self._session.api.call("GET", path_of(*parts))).json()["state"]
        except AirflowApiError as error:
            if error.status != 404:
                raise
            return "removed"
        return None if state is None else str(state)

    async def _xcom(self, event: str, key: str) -> Any:
        try:
            answer = await self._session.api.call(
                "GET", self._xcom_path(event, key), params={"map_index": self._group.map_index}
            )
        except AirflowApiError as error:
            if error.status != 404:
                raise
            return None
        value = answer.json()["value"]
        if isinstance(value, str):
            # Airflow 3.1 gives what it stores, which is JSON text.
            try:
                return msgspec.json.decode(value)
            except msgspec.DecodeError:
                return value
        return value

    # ------------------------------------------------------------------ writing

    async def record(self, arrivals: Sequence[Arrival]) -> None:
        async with anyio.create_task_group() as group:
            for arrival in arrivals:
                group.start_soon(self._record_one, arrival, name=f"event_triggers: record {arrival.event}")

    async def _record_one(self, arrival: Arrival) -> None:
        await self._patiently(lambda: self._store(arrival))
        note = arrival.received[-1].note
        if arrival.complete:
            mark = Mark(*self.keys[arrival.event], note=note)
            await self._patiently(lambda: self._session.marks.mark(mark))
            self._states[arrival.event] = "success"
        else:
            path = Mark(*self.keys[arrival.event], note=note).path
            await self._patiently(lambda: self._session.api.call("PATCH", path, json={"note": note}))

    async def _store(self, arrival: Arrival) -> None:
        facts = {"wanted": arrival.wanted, "messages": [one.facts() for one in arrival.received]}
        try:
            await self._put_xcom(arrival.event, PAYLOAD_KEY, arrival.payload)
        except AirflowApiError as error:
            if error.status not in (400, 413, 422):
                raise
            # Airflow reserves some keys, and a proxy may limit sizes: the event has come all the same.
            self._say(logging.WARNING, f"event {arrival.event}: the payload is stored as text only, because {error}")
            await self._put_xcom(arrival.event, PAYLOAD_KEY, _as_text(arrival, str(error)))
        await self._put_xcom(arrival.event, FACTS_KEY, facts)

    async def _put_xcom(self, event: str, key: str, value: Any) -> None:
        body = {"value": value, "map_index": self._group.map_index}
        try:
            await self._session.api.call("POST", self._xcom_path(event), json={"key": key, **body})
        except AirflowApiError as error:
            if error.status != 409:
                raise
            await self._session.api.call("PATCH", self._xcom_path(event, key), json=body)

    def _xcom_path(self, event: str, *key: str) -> str:
        dag_id, run_id, task_id, _ = self.keys[event]
        return path_of("dags", dag_id, "dagRuns", run_id, "taskInstances", task_id, "xcomEntries", *key)

    async def _patiently(self, call: Callable[[], Awaitable[Any]]) -> Any:
        """Call until Airflow does not refuse: a right may be granted, a marker may still be expanded."""
        while True:
            try:
                result = await call()
            except AirflowApiError as error:
                self._trouble = str(error)
                self._say(
                    logging.ERROR, f"{error}. Tried again every {_ASK_AGAIN:.0f} s; nothing is acknowledged meanwhile."
                )
                await self._clock.sleep(_ASK_AGAIN)
            else:
                self._trouble = None
                return result

    def _say(self, level: int, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            self._tell(level, text)


def _as_text(arrival: Arrival, reason: str) -> dict[str, Any]:
    text = msgspec.json.encode(arrival.payload).decode()
    return {"refused": reason[:500], "payload_as_text": "json:" + text}


def _at_least(version: str, least: tuple[int, int]) -> bool:
    numbers = [int(part) for part in version.split(".")[:2] if part.isdigit()]
    if len(numbers) < 2:
        raise EventTriggersError(f"Airflow's API server names no version: {version!r}")
    return (numbers[0], numbers[1]) >= least
