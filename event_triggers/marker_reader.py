"""Reading markers through the plugin's route: what many groups ask for at the same time travels together.

Flow: ``read`` puts a group into the line and waits; one worker asks for all that is there, up to :data:`MOST_GROUPS`
groups, and answers everybody who waits. A lone group is asked for at once. When a thousand waits start together, as at
midnight or after a crash, that is a dozen requests, and not a thousand.

Invariants: what the route refuses is :exc:`RouteRefused`, and its caller asks the public API, which says what is
missing. No answer, 429 and 5xx are repeated as for every request (:mod:`event_triggers.airflow_api`).

Nothing is kept over a restart.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence

import msgspec

from event_triggers.airflow_api import AirflowApi
from event_triggers.errors import AirflowApiError
from event_triggers.marking_route import MarkingRoute, RouteRefused
from event_triggers.marks import (
    MARKERS_PATH,
    MOST_GROUPS,
    PROTOCOL,
    GroupMarkers,
    MarkersAnswer,
    MarkersRequest,
    MarkerState,
)
from event_triggers.text import plain_logger, text_of

__all__ = ["MarkerReader"]

log = plain_logger(__name__)

_Waiting = tuple[GroupMarkers, "asyncio.Future[list[MarkerState]]"]


class MarkerReader:
    """Reads over the route, where that is there and can."""

    def __init__(self, api: AirflowApi, route: MarkingRoute) -> None:
        self._api = api
        self._route = route
        self._line: deque[_Waiting] = deque()
        self._something = asyncio.Event()

    async def read(self, asked: GroupMarkers) -> list[MarkerState]:
        """The markers that there are of those that are asked for.

        :raises RouteRefused: when they are to be asked for elsewhere.
        """
        if not await self._route.find() or not self._route.reads:
            raise RouteRefused(self._route.why_not or "the marking route does not read markers")
        answer: asyncio.Future[list[MarkerState]] = asyncio.get_running_loop().create_future()
        self._line.append((asked, answer))
        self._something.set()
        return await answer

    async def work(self) -> None:
        """Take from the line and ask, for ever."""
        while True:
            while not self._line:
                self._something.clear()
                await self._something.wait()
            taken = [self._line.popleft() for _ in range(min(MOST_GROUPS, len(self._line)))]
            taken = [one for one in taken if not one[1].done()]  # else whoever asked has gone
            try:
                await self._ask(taken)
            except Exception as error:
                # The line serves all groups: it must not end with one answer that nobody has foreseen.
                log.exception("markers could not be read over the marking route")
                _refuse(taken, f"reading failed ({text_of(error)})")
            except BaseException:
                self._line.extendleft(reversed([one for one in taken if not one[1].done()]))
                raise

    async def _ask(self, taken: Sequence[_Waiting]) -> None:
        if not taken:
            return
        body = msgspec.json.encode(MarkersRequest(PROTOCOL, [asked for asked, _ in taken]))
        try:
            document = await self._api.call("POST", MARKERS_PATH, content=body)
            groups = msgspec.convert(document, MarkersAnswer).groups
            for (_, answer), found in zip(taken, groups, strict=True):
                if answer.done():
                    continue
                if found.status == 200:
                    answer.set_result(found.markers)
                else:
                    answer.set_exception(RouteRefused(found.detail))
        except (AirflowApiError, msgspec.ValidationError, ValueError) as error:
            # The public API takes over; whether the route is there at all is found out with the next mark.
            self._route.reads = False
            log.warning("markers are read through Airflow's public REST API from now on: %s", text_of(error))
            _refuse(taken, str(error))


def _refuse(taken: Sequence[_Waiting], why: str) -> None:
    for _, answer in taken:
        if not answer.done():
            answer.set_exception(RouteRefused(why))
