"""Reading markers through the plugin's route: what many groups ask for at the same time travels together.

Flow: ``read`` puts a group into the line (:mod:`event_triggers.line`) and waits; one worker asks for all that is there,
up to :data:`MOST_GROUPS` groups at a time. When a thousand waits start together, as at midnight or after a crash, that
is a dozen requests, and not a thousand.

Invariants: what the route refuses is :exc:`RouteRefused`, and its caller asks the public API, which says what is
missing. No answer, 429 and 5xx are repeated as for every request (:mod:`event_triggers.airflow_api`).

Nothing is kept over a restart.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import msgspec

from event_triggers.airflow_api import AirflowApi
from event_triggers.errors import AirflowApiError
from event_triggers.line import Line, Waiting
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

_Due = Waiting[GroupMarkers, list[MarkerState]]


class MarkerReader:
    """Reads over the route, where that is there and can."""

    def __init__(self, api: AirflowApi, route: MarkingRoute) -> None:
        self._api = api
        self._route = route
        self._line: Line[GroupMarkers, list[MarkerState]] = Line(
            "questions for markers", take=_take, send=self._send, failed=RouteRefused
        )

    async def read(self, asked: GroupMarkers) -> list[MarkerState]:
        """The markers that there are of those that are asked for.

        :raises RouteRefused: when they are to be asked for elsewhere.
        """
        if not await self._route.find() or not self._route.reads:
            raise RouteRefused(self._route.why_not or "the marking route does not read markers")
        return await self._line.ask(asked)

    async def work(self) -> None:
        """Take from the line and ask, for ever."""
        await self._line.work()

    async def _send(self, taken: Sequence[_Due]) -> None:
        body = msgspec.json.encode(MarkersRequest(PROTOCOL, [waiting.question for waiting in taken]))
        try:
            document = await self._api.call("POST", MARKERS_PATH, content=body)
            groups = msgspec.convert(document, MarkersAnswer).groups
            for waiting, found in zip(taken, groups, strict=True):
                if found.status == 200:
                    waiting.give(found.markers)
                else:
                    waiting.refuse(RouteRefused(found.detail))
        except (AirflowApiError, msgspec.ValidationError, ValueError) as error:
            # The public API takes over; whether the route is there at all is found out with the next mark.
            self._route.reads = False
            log.warning("markers are read through Airflow's public REST API from now on: %s", text_of(error))
            for waiting in taken:
                waiting.refuse(RouteRefused(str(error)))


def _take(due: deque[_Due]) -> list[_Due]:
    taken = [due.popleft() for _ in range(min(MOST_GROUPS, len(due)))]
    return [waiting for waiting in taken if not waiting.over]  # else whoever asked has gone
