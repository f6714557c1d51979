"""Time, injected. Nothing else in the package reads a clock or sleeps, so tests can turn it by hand."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import datetime, timezone
from functools import lru_cache
from typing import Protocol

import anyio

__all__ = ["Clock", "SystemClock", "Timer", "move_on_after", "parse_datetime"]


class Timer(Protocol):
    """A call that is still to come."""

    def cancel(self) -> None:
        """Do not call; nothing happens when it has been."""


class Clock(Protocol):
    """What the package needs of time."""

    def now(self) -> datetime:
        """The current moment, aware, in UTC."""

    def monotonic(self) -> float:
        """Seconds from an arbitrary point, never going back."""

    async def sleep(self, seconds: float) -> None:
        """Return after ``seconds``; zero or less yields to the loop once."""

    def call_later(self, seconds: float, call: Callable[[], object]) -> Timer:
        """Call this after ``seconds``, or soon when that is zero or less.

        It takes a fraction of the memory of a task that sleeps, which counts where thousands wait.
        """


class SystemClock:
    """The machine's own clock."""

    def now(self) -> datetime:
        return datetime.now(timezone.utc)

    def monotonic(self) -> float:
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(max(seconds, 0))

    def call_later(self, seconds: float, call: Callable[[], object]) -> Timer:
        return asyncio.get_running_loop().call_later(max(seconds, 0), call)


def parse_datetime(value: str | datetime) -> datetime:
    """Read an ISO 8601 moment; one without a zone is taken as UTC, as Airflow does.

    :raises ValueError: when ``value`` is not an ISO 8601 moment.
    """
    return _read(value) if isinstance(value, str) else _in_utc(value)


@lru_cache(maxsize=128)
def _read(text: str) -> datetime:
    """All events of a run, as a rule, begin at the same moment: it is one object then."""
    text = text.strip()
    # datetime.fromisoformat of Python 3.10 does not know the military "Z".
    return _in_utc(datetime.fromisoformat(text[:-1] + "+00:00" if text.endswith(("Z", "z")) else text))


def _in_utc(moment: datetime) -> datetime:
    return moment.replace(tzinfo=timezone.utc) if moment.tzinfo is None else moment.astimezone(timezone.utc)


@asynccontextmanager
async def move_on_after(clock: Clock, seconds: float) -> AsyncIterator[None]:
    """Cancel what is done inside, silently, when it takes longer than ``seconds`` of this clock."""
    with anyio.CancelScope() as scope:
        timer = clock.call_later(seconds, scope.cancel)
        try:
            yield
        finally:
            timer.cancel()
