"""A clock that only a test turns."""

from __future__ import annotations

import asyncio
import heapq
from datetime import datetime, timedelta, timezone

__all__ = ["ManualClock"]


class ManualClock:
    """A :class:`~event_triggers.clock.Clock` whose time stands still until :meth:`advance` is called.

    Belongs to one event loop at a time. Sleepers that are cancelled are forgotten.

    :param start: what :meth:`now` says at first; aware.
    """

    def __init__(self, start: datetime = datetime(2030, 1, 1, tzinfo=timezone.utc)) -> None:
        if start.tzinfo is None:
            raise ValueError("start must be aware")
        self._start = start.astimezone(timezone.utc)
        self._elapsed = timedelta()
        self._counter = 0
        self._sleepers: list[tuple[timedelta, int, asyncio.Future[None]]] = []
        self._waiters: list[tuple[int, asyncio.Future[None]]] = []

    def now(self) -> datetime:
        """The moment it shows, in UTC."""
        return self._start + self._elapsed

    def monotonic(self) -> float:
        """Seconds by which it was advanced so far."""
        return self._elapsed.total_seconds()

    async def sleep(self, seconds: float) -> None:
        """Return when the clock was advanced by ``seconds``; zero or less yields to the loop once."""
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._counter += 1
        entry = (self._elapsed + timedelta(seconds=seconds), self._counter, future)
        heapq.heappush(self._sleepers, entry)
        self._tell_waiters()
        try:
            await future
        finally:
            if entry in self._sleepers:  # cancelled
                self._sleepers.remove(entry)
                heapq.heapify(self._sleepers)

    @property
    def sleepers(self) -> list[float]:
        """For everybody who sleeps, the seconds that are left, shortest first."""
        return [(due - self._elapsed).total_seconds() for due, _, _ in sorted(self._sleepers, key=lambda s: s[:2])]

    def advance(self, by: float | timedelta) -> None:
        """Let time pass, and wake those whose time is up, in the order in which it was.

        They run when the caller next awaits, and then see the new time, as after a machine was suspended. To let
        somebody sleep several times, wait for the sleeper in between.

        :param by: seconds, or a timedelta; not negative.
        """
        step = by if isinstance(by, timedelta) else timedelta(seconds=by)
        if step < timedelta():
            raise ValueError(f"time does not go back: {by!r}")
        self._elapsed += step
        while self._sleepers and self._sleepers[0][0] <= self._elapsed:
            _, _, future = heapq.heappop(self._sleepers)
            if not future.done():
                future.set_result(None)

    async def wait_for_sleepers(self, count: int = 1) -> None:
        """Return once at least ``count`` tasks sleep; those :meth:`advance` has woken do not. Bound it yourself."""
        if len(self._sleepers) >= count:
            return
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        entry = (count, waiter)
        self._waiters.append(entry)
        try:
            await waiter
        finally:
            self._waiters.remove(entry)

    def _tell_waiters(self) -> None:
        for count, waiter in self._waiters:
            if len(self._sleepers) >= count and not waiter.done():
                waiter.set_result(None)
