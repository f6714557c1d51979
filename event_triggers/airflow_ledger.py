"""The ledger in a real Airflow, through its public REST API.

Flow: see :mod:`event_triggers.ledger`. One :class:`AirflowLedger` per event loop serves all groups: one API client, one
line of marks, and one look now and then at which markers have changed, for all groups together. What it does for one
group is in :mod:`event_triggers.airflow_book`.

Invariants: the background tasks run exactly while a group's book is open; they belong to the ledger and to no group,
and no answer of Airflow ends them. A state that the API reports is handed to each book once per change.

Nothing is kept over a restart.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import datetime, timedelta

import anyio

from event_triggers.airflow_api import AirflowApi, path_of
from event_triggers.airflow_book import AirflowBook
from event_triggers.airflow_desk import END_STATES, PAGE, Desk, TooManyError
from event_triggers.clock import Clock, SystemClock
from event_triggers.errors import AirflowApiError, ConfigurationError
from event_triggers.ledger import Book, GroupRef, Ledger
from event_triggers.marker_reader import MarkerReader
from event_triggers.marking import WORKERS, MarkingLine
from event_triggers.marking_route import WORKERS as ROUTE_WORKERS
from event_triggers.marking_route import MarkingRoute
from event_triggers.patience import ASK_AGAIN
from event_triggers.text import plain_logger
from event_triggers.xcoms import XComs

__all__ = ["LOOK_EVERY", "AirflowLedger"]

log = plain_logger(__name__)

LOOK_EVERY = 10.0
"""Seconds between two looks at what people have marked by hand."""
_OVERLAP = timedelta(seconds=60)
"""How far each look goes back behind the last one: clocks differ, and transactions take time to become visible."""
_SHORT_OVERLAP = timedelta(seconds=10)
"""The same for a minute after a look that has found many: our own marks, as a rule, which would be found each time."""
_MANY = 1000
_PUT_OFF = timedelta(seconds=60)
"""For how long marks that wait for their turn keep us from looking: both take the API server's time."""

Tell = Callable[[int, str], None]


class AirflowLedger(Ledger):
    """Keeps what arrived in XComs, notes and states of marker tasks.

    :param api: makes the API client; called when the first group comes.
    :param clock: the time to go by.
    """

    def __init__(self, api: Callable[[], Awaitable[AirflowApi]], *, clock: Clock | None = None) -> None:
        self._make_api = api
        self._clock = clock or SystemClock()
        self._books: dict[AirflowBook, None] = {}
        self._starting = asyncio.Lock()
        self._outside: dict[Tell, None] = {}
        """The logs of the groups that have no book yet."""
        self._session: _Session | None = None
        self._error: AirflowApiError | None = None
        self._not_before = float("-inf")

    @property
    def trouble(self) -> str | None:
        if self._session is not None:
            return None
        return str(self._error) if self._error else "Airflow's API could not be reached"

    @asynccontextmanager
    async def open(self, group: GroupRef, markers: Mapping[str, str], tell: Tell) -> AsyncIterator[Book]:
        # Whoever notices that Airflow is away, it is this group's task log that is written to.
        tell = _in_context(tell)
        self._outside[tell] = None
        try:
            session = await self._started(tell)
        finally:
            del self._outside[tell]
        book = AirflowBook(session.desk, group, markers, tell)
        self._books[book] = None
        tell(logging.INFO, session.desk.route.way)
        stop_listening = session.desk.api.listen(tell)
        try:
            yield book
        finally:
            stop_listening()
            del self._books[book]
            if not self._books and self._session is session:
                self._session = None
                with anyio.CancelScope(shield=True):
                    await session.close()

    async def _started(self, tell: Tell) -> _Session:
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
                tell(logging.ERROR, f"{error}. Tried again every {ASK_AGAIN:.0f} s.")
                said = error
            await self._clock.sleep(pause)

    async def _start_once(self) -> None:
        try:
            api = await self._make_api()
        except AirflowApiError as error:
            self._failed(error)
            return
        stop_listening = api.listen(self._tell_outside)
        try:
            self._session = await _Session.start(api, self._books, self._clock)
        except BaseException as error:
            with anyio.CancelScope(shield=True):
                await api.aclose()
            if not isinstance(error, AirflowApiError):
                raise
            self._failed(error)
        else:
            self._error = None
        finally:
            stop_listening()

    def _failed(self, error: AirflowApiError) -> None:
        self._error = error
        self._not_before = self._clock.monotonic() + ASK_AGAIN

    def _tell_outside(self, level: int, text: str) -> None:
        for tell in list(self._outside):
            tell(level, text)


class _Session:
    """The client and the background tasks, from the first group to the last."""

    def __init__(self, desk: Desk, books: Mapping[AirflowBook, None]) -> None:
        self.desk = desk
        self._books = books
        self._together = True
        self._task: asyncio.Task[None] | None = None

    @classmethod
    async def start(cls, api: AirflowApi, books: Mapping[AirflowBook, None], clock: Clock) -> _Session:
        version = _version((await api.call("GET", path_of("version"))).get("version", ""))
        marks = MarkingLine(api, across_runs=version >= (3, 3))
        xcoms = XComs(api, over_rest=version >= (3, 2))
        route = MarkingRoute(api, clock)
        await route.find()
        session = cls(Desk(api, marks, route, MarkerReader(api, route), xcoms, clock), books)
        # An empty context: the session outlives the group that happens to start it, and must not log in its name.
        create = asyncio.get_running_loop().create_task
        session._task = contextvars.Context().run(create, session._run(), name="event_triggers: ledger")
        return session

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})
        await self.desk.api.aclose()

    async def _run(self) -> None:
        async with anyio.create_task_group() as group:
            for number in range(WORKERS):
                group.start_soon(self.desk.marks.work, name=f"event_triggers: marks {number}")
            for number in range(ROUTE_WORKERS):
                group.start_soon(self.desk.route.work, name=f"event_triggers: marking route {number}")
            group.start_soon(self.desk.reader.work, name="event_triggers: markers")
            group.start_soon(self._look, name="event_triggers: marks made by hand")

    # ------------------------------------------------------------------ marks made by hand

    async def _look(self) -> None:
        last = self.desk.clock.now()
        crowded: datetime | None = None
        while True:
            await self.desk.clock.sleep(LOOK_EVERY)
            began = self.desk.clock.now()
            if self.desk.busy and began - last < _PUT_OFF:
                continue
            try:
                if not self._together or (crowded is not None and began >= crowded):
                    # Also after a crowd, once: going back less far may have missed something, where clocks differ.
                    crowded = None
                    await self._look_apart()
                elif await self._look_together(last - (_SHORT_OVERLAP if crowded else _OVERLAP)) >= _MANY:
                    crowded = began + _OVERLAP
            except Exception:
                log.exception("the states of markers could not be read; marks made by hand are seen later")
            else:
                last = began

    async def _look_together(self, since: datetime) -> int:
        """Read what has changed; how much that was."""
        # Reading all that has changed is worth it as long as it takes fewer requests than asking for each run.
        most = max(_MANY, len(self._books) * PAGE)
        try:
            rows = await self.desk.markers(
                "~", "~", most=most, updated_at_gte=since.isoformat(), state=list(END_STATES)
            )
        except TooManyError as error:
            await self._look_apart()
            return error.found
        except AirflowApiError as error:
            if error.status not in (403, 404, 500):
                raise
            if error.status != 500:
                log.info("this user may not look at all DAGs at once (%s); each run is asked for", error)
                self._together = False
            await self._look_apart()
            return 0
        if rows:  # nearly always there are none: no need to go through thousands of books
            states = {(r["dag_id"], r["dag_run_id"], r["task_id"], r["map_index"]): r["state"] for r in rows}
            for book in list(self._books):
                book.changed({event: states[key] for event, key in book.keys.items() if key in states})
        return len(rows)

    async def _look_apart(self) -> None:
        for book in list(self._books):
            try:
                await book.look()
            except AirflowApiError as error:
                book.cannot_look(error)


def _in_context(tell: Tell) -> Tell:
    context = contextvars.copy_context()
    return lambda level, text: context.run(tell, level, text)


def _version(text: str) -> tuple[int, int]:
    numbers = [int(part) for part in text.split(".")[:2] if part.isdecimal()]
    if len(numbers) < 2:
        raise ConfigurationError(f"Airflow's API server says that its version is {text!r}, which is none")
    return numbers[0], numbers[1]
