"""What is due when in one wait: its deadline, the times of single events, what is told now and then.

One task keeps the time for all of it, and starts a task for each thing when it is due. A task that slept until then
for each of them took more memory than all the rest of a wait, and most never come to anything.

Nothing is kept over a restart: a wait writes its agenda anew.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Coroutine
from datetime import datetime
from itertools import count
from typing import Any

import anyio.abc

from event_triggers.clock import Clock
from event_triggers.flag import Flag

__all__ = ["Agenda"]


class Agenda:
    """The agenda of one wait.

    :param clock: the time to go by.
    """

    __slots__ = ("_changed", "_clock", "_closed", "_due", "_order")

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._due: list[tuple[float, int, str, Callable[[], Coroutine[Any, Any, None]]]] = []
        self._order = count()
        self._changed = Flag()
        self._closed = False

    def note(self, when: datetime | float, name: str, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Do this when it is due.

        :param when: a moment, or in how many seconds; what is past is due at once.
        :param name: of its task.
        """
        seconds = when if isinstance(when, (int, float)) else (when - self._clock.now()).total_seconds()
        heapq.heappush(self._due, (self._clock.monotonic() + seconds, next(self._order), name, work))
        self._changed.set()

    def close(self) -> None:
        """Start nothing more."""
        self._closed = True
        self._changed.set()

    async def keep(self, group: anyio.abc.TaskGroup) -> None:
        """Start in this group what is due, when it is, until the agenda is closed."""
        while not self._closed:
            self._changed.clear()
            timer = None
            if self._due:
                timer = self._clock.call_later(self._due[0][0] - self._clock.monotonic(), self._changed.set)
            try:
                await self._changed.wait()
            finally:
                if timer is not None:
                    timer.cancel()
            while self._due and self._due[0][0] <= self._clock.monotonic():
                _, _, name, work = heapq.heappop(self._due)
                group.start_soon(work, name=f"event_triggers: {name}")
