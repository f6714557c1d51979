"""Marking through the plugin's route in the API server: whatever is due, of all groups, travels together.

Flow: the API server is asked once whether it has the route and speaks our protocol. Then ``mark`` puts a mark into the
line (:mod:`event_triggers.line`) and waits; :data:`WORKERS` workers send what is there, up to
:data:`MOST_PER_REQUEST` marks at a time.

Invariants:

* A request that is refused as a whole is sent again mark by mark, so that one mark cannot hold up others; what is
  refused alone is :exc:`RouteRefused`, and its caller goes the public way.
* When the route is not there any more, whoever waits is told (:exc:`RouteRefused`), and nobody asks for it before
  :data:`LOOK_FOR_IT_EVERY` seconds are over. Then the next mark finds out anew.
* No answer, 429 and 5xx are repeated as for every request (:mod:`event_triggers.airflow_api`).

A mark still in the line at a restart is made again by its group.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from event_triggers.airflow_api import AirflowApi
from event_triggers.clock import Clock
from event_triggers.errors import AirflowApiError, EventTriggersError
from event_triggers.line import Line, Waiting
from event_triggers.marks import MARKS_PATH, PROTOCOL, About, Answer, Answers, Mark
from event_triggers.xcoms import MarkerKey

__all__ = ["LOOK_FOR_IT_EVERY", "MOST_PER_REQUEST", "WORKERS", "MarkingRoute", "RouteRefused"]

MOST_PER_REQUEST = 300
MOST_BYTES_PER_REQUEST = 512 * 1024
"""What a proxy before Airflow may let pass is not known; many stop at a megabyte."""
WORKERS = 2
LOOK_FOR_IT_EVERY = 300.0
"""Seconds between two questions whether the route is there."""
_GONE = (404, 405, 409, None)
"""How an API server without the route answers, or one of another protocol, or what is no API server of Airflow's."""


class RouteRefused(EventTriggersError):
    """The route is not there, or does not take this mark; the public API may."""


class _Encoded(NamedTuple):
    key: MarkerKey
    mark: bytes


_Due = Waiting[_Encoded, Answer]


class MarkingRoute:
    """The route of one API server, and the marks that are due there."""

    def __init__(self, api: AirflowApi, clock: Clock) -> None:
        self._api = api
        self._clock = clock
        self._line: Line[_Encoded, Answer] = Line(
            "marks for the marking route", take=_take, send=self._send, failed=RouteRefused
        )
        self._looking = asyncio.Lock()
        self._look_at = float("-inf")
        self.there = False
        """Whether marks are to go this way."""
        self.reads = False
        """Whether markers can be read this way, too."""
        self.why_not = ""

    async def find(self) -> bool:
        """Whether the route is there; asks when that is not known, or has not been so for a while."""
        if not self.there and self._clock.monotonic() >= self._look_at:
            async with self._looking:
                if not self.there and self._clock.monotonic() >= self._look_at:
                    await self._look()
        return self.there

    @property
    def way(self) -> str:
        """What is said of the way that marks go."""
        if self.there:
            return "markers are marked through the marking route in Airflow's API server"
        return f"markers are marked through Airflow's public REST API, because {self.why_not}"

    @property
    def busy(self) -> bool:
        """Whether marks are waiting for their turn."""
        return bool(self._line)

    async def mark(self, key: MarkerKey, mark: Mark) -> Answer:
        """What has become of this mark.

        :raises RouteRefused: when the route has not taken it.
        """
        if not self.there:
            raise RouteRefused(self.why_not)
        return await self._line.ask(_Encoded(key, msgspec.json.encode(mark)))

    async def work(self) -> None:
        """Take from the line and send, for ever."""
        await self._line.work()

    # ------------------------------------------------------------------ whether it is there

    async def _look(self) -> None:
        self._look_at = self._clock.monotonic() + LOOK_FOR_IT_EVERY
        before = self.why_not
        answer = await self._api.ask_once(MARKS_PATH)
        if isinstance(answer, str):
            self.why_not = f"the API server does not have the marking route ({answer})"
        else:
            about = _about(answer)
            protocol = None if about is None else about.protocol
            self.there = protocol == PROTOCOL
            self.reads = about is not None and about.reads
            self.why_not = f"the API server's marking route speaks protocol {protocol}, and this triggerer {PROTOCOL}"
        if self.there and before:
            self._api.tell(logging.INFO, self.way)

    def _gone(self, error: AirflowApiError) -> None:
        if self.there:
            self.there = False
            self.why_not = f"the marking route is gone: {error}"
            self._look_at = self._clock.monotonic() + LOOK_FOR_IT_EVERY
            self._api.tell(logging.WARNING, self.way)

    # ------------------------------------------------------------------ sending

    async def _send(self, taken: Sequence[_Due]) -> None:
        by_run: dict[tuple[str, str], list[_Due]] = {}
        for waiting in taken:
            by_run.setdefault(waiting.question.key[:2], []).append(waiting)
        body = _body(by_run)
        try:
            document = await self._api.call("POST", MARKS_PATH, content=body)
            answers = msgspec.convert(document, Answers).runs
            for waiting_of_run, answers_of_run in zip(by_run.values(), answers, strict=True):
                for waiting, answer in zip(waiting_of_run, answers_of_run, strict=True):
                    waiting.give(answer)
        except (msgspec.ValidationError, ValueError) as error:
            self._gone(AirflowApiError(f"its answer cannot be read ({error})"))
            _refuse(taken, self.why_not)
        except AirflowApiError as error:
            await self._refused(taken, error)

    async def _refused(self, taken: Sequence[_Due], error: AirflowApiError) -> None:
        if error.status in _GONE:
            self._gone(error)
        elif len(taken) > 1:
            for waiting in taken:
                if not waiting.over:
                    await self._send([waiting])
            return
        _refuse(taken, str(error))


def _about(document: object) -> About | None:
    try:
        return msgspec.convert(document, About)
    except msgspec.ValidationError:
        return None


def _take(due: deque[_Due]) -> list[_Due]:
    taken: list[_Due] = []
    size = 0
    while due and len(taken) < MOST_PER_REQUEST:
        length = len(due[0].question.mark)
        if taken and size + length > MOST_BYTES_PER_REQUEST:
            break
        waiting = due.popleft()
        if not waiting.over:  # else whoever asked has gone
            taken.append(waiting)
            size += length
    return taken


def _body(by_run: dict[tuple[str, str], list[_Due]]) -> bytes:
    runs = []
    for (dag_id, run_id), waiting in by_run.items():
        place = b'{"dag_id":%s,"run_id":%s,"marks":[' % (msgspec.json.encode(dag_id), msgspec.json.encode(run_id))
        runs.append(place + b",".join(one.question.mark for one in waiting) + b"]}")
    return b'{"protocol":%d,"runs":[%s]}' % (PROTOCOL, b",".join(runs))


def _refuse(taken: Sequence[_Due], why: str) -> None:
    for waiting in taken:
        waiting.refuse(RouteRefused(why))
