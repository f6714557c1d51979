"""What all books of one triggerer use of Airflow."""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakValueDictionary

from event_triggers.airflow_api import AirflowApi, path_of
from event_triggers.clock import Clock
from event_triggers.marker_reader import MarkerReader
from event_triggers.marking import MarkingLine
from event_triggers.marking_route import MarkingRoute
from event_triggers.marks import MARKER_OPERATOR
from event_triggers.xcoms import MarkerKey, XComs

__all__ = ["END_STATES", "PAGE", "Desk", "TooManyError"]

END_STATES = ("success", "failed", "skipped", "removed")
PAGE = 100
"""As many task instances as Airflow gives at once."""


class TooManyError(Exception):
    """More was found than is worth reading. :attr:`found` says how much."""

    def __init__(self, found: int) -> None:
        super().__init__(found)
        self.found = found


@dataclass
class Desk:
    """What all books of one triggerer use."""

    api: AirflowApi
    marks: MarkingLine
    route: MarkingRoute
    reader: MarkerReader
    xcoms: XComs
    clock: Clock
    _locks: WeakValueDictionary[MarkerKey, asyncio.Lock] = field(default_factory=WeakValueDictionary)

    @property
    def busy(self) -> bool:
        """Whether marks are waiting for their turn."""
        return self.marks.busy or self.route.busy

    def lock(self, key: MarkerKey) -> asyncio.Lock:
        """Whoever holds it may write the XComs of this marker."""
        return self._locks.setdefault(key, asyncio.Lock())

    async def markers(
        self, dag_id: str, run_id: str, *, most: float = math.inf, **filters: Any
    ) -> list[dict[str, Any]]:
        """The marker task instances of a run, page by page; ``~`` stands for all.

        :raises TooManyError: when there are more than ``most``.
        :raises AirflowApiError: when Airflow refuses.
        """
        path = path_of("dags", dag_id, "dagRuns", run_id, "taskInstances")
        rows: list[dict[str, Any]] = []
        while True:
            params = {"operator": MARKER_OPERATOR, "limit": PAGE, "offset": len(rows), "order_by": "id", **filters}
            answer = await self.api.call("GET", path, params=params)
            if answer["total_entries"] > most:
                raise TooManyError(answer["total_entries"])
            page = answer["task_instances"]
            rows += page
            if not page or len(rows) >= answer["total_entries"]:
                return rows
