"""A clock that only a test turns."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable
from datetime import datetime, timedelta, timezone

from event_triggers.clock import Timer

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
        future = self._due_in(seconds)
        try:
            await future
        finally:
            self._forget(future)

    def call_later(self, seconds: float, call: Callable[[], object]) -> Timer:
        """Call this when the clock was advanced by ``seconds``, or soon when that is zero or less."""
        if seconds <= 0:
            return asyncio.get_running_loop().call_soon(call)
        return _Timer(self._due_in(seconds), call, self._forget)

    def _due_in(self, seconds: float) -> asyncio.Future[None]:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._counter += 1
        heapq.heappush(self._sleepers, (self._elapsed + timedelta(seconds=seconds), self._counter, future))
        self._tell_waiters()
        return future

    def _forget(self, future: asyncio.Future[None]) -> None:
        """Whoever has waited for this was cancelled, if it is still here."""
        left = [entry for entry in self._sleepers if entry[2] is not future]
        if len(left) < len(self._sleepers):
            self._sleepers = left
            heapq.heapify(left)

    @property
    def sleepers(self) -> list[float]:
        """For everybody who sleeps, and every call that is still to come, the seconds left, shortest first."""
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
        """Return once at least ``count`` sleep or are to be called; :meth:`advance` has woken the others. Bound it."""
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


class _Timer:
    """A call that is still to come.

    :param forget: what is told of a call that will not come.
    """

    def __init__(
        self, due: asyncio.Future[None], call: Callable[[], object], forget: Callable[[asyncio.Future[None]], None]
    ) -> None:
        self._due = due
        self._call = call
        self._forget = forget
        self._cancelled = False
        due.add_done_callback(self._when_due)

    def cancel(self) -> None:
        """Do not call, not even when it is due already."""
        self._cancelled = True
        self._due.cancel()
        self._forget(self._due)

    def _when_due(self, due: asyncio.Future[None]) -> None:
        if not self._cancelled:
            self._call()
