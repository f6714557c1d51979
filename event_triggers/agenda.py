"""What is due when in one wait: its deadline, the times of single events, what is told now and then.

One timer keeps the time for all of it, and a task is started for each thing when it is due. Tasks that sleep until
then, even one for all of them, take a good part of the memory of a wait, and most things never come to anything.

Nothing is kept over a restart: a wait writes its agenda anew.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from datetime import datetime
from itertools import count
from typing import Any

import anyio.abc

from event_triggers.clock import Clock, Timer

__all__ = ["Agenda"]


class Agenda:
    """The agenda of one wait.

    :param clock: the time to go by.
    """

    __slots__ = ("_clock", "_due", "_group", "_order", "_starter", "_timer")

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._due: list[tuple[float, int, str, Callable[[], Coroutine[Any, Any, None]]]] = []
        self._order = count()
        self._group: anyio.abc.TaskGroup | None = None
        self._timer: Timer | None = None
        """For what is due first, while there is a group to start it in."""
        self._starter: asyncio.Task[None] | None = None

    def note(self, when: datetime | float, name: str, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Do this when it is due.

        :param when: a moment, or in how many seconds; what is past is due at once.
        :param name: of its task.
        """
        seconds = when if isinstance(when, (int, float)) else (when - self._clock.now()).total_seconds()
        new = (self._clock.monotonic() + seconds, next(self._order), name, work)
        heapq.heappush(self._due, new)
        if self._due[0] is new:
            self._set_timer()

    @contextmanager
    def kept_in(self, group: anyio.abc.TaskGroup) -> Iterator[None]:
        """While this is open, start in this group what is due, when it is."""
        self._group = group
        self._set_timer()
        try:
            yield
        finally:
            self.close()

    def close(self) -> None:
        """Start nothing more."""
        self._group = None
        self._set_timer()

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._group is not None and self._due:
            self._timer = self._clock.call_later(self._due[0][0] - self._clock.monotonic(), self._time_is_up)

    def _time_is_up(self) -> None:
        self._timer = None
        # A task group takes new tasks from a task only.
        self._starter = asyncio.get_running_loop().create_task(self._start_what_is_due(), name="event_triggers: agenda")

    async def _start_what_is_due(self) -> None:
        while self._group is not None and self._due and self._due[0][0] <= self._clock.monotonic():
            _, _, name, work = heapq.heappop(self._due)
            self._group.start_soon(work, name=f"event_triggers: {name}")
        self._set_timer()
