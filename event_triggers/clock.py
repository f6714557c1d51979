"""Time, injected. Nothing else in the package reads a clock or sleeps, so tests can turn it by hand."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime, timezone
from typing import Protocol

import anyio

__all__ = ["Clock", "SystemClock", "move_on_after", "parse_datetime"]


class Clock(Protocol):
    """What the package needs of time."""

    def now(self) -> datetime:
        """The current moment, aware, in UTC."""

    def monotonic(self) -> float:
        """Seconds from an arbitrary point, never going back."""

    async def sleep(self, seconds: float) -> None:
        """Return after ``seconds``; zero or less yields to the loop once."""


class SystemClock:
    """The machine's own clock."""

    def now(self) -> datetime:
        return datetime.now(timezone.utc)

    def monotonic(self) -> float:
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(max(seconds, 0))


def parse_datetime(value: str | datetime) -> datetime:
    """Read an ISO 8601 moment; one without a zone is taken as UTC, as Airflow does.

    :raises ValueError: when ``value`` is not an ISO 8601 moment.
    """
    if isinstance(value, str):
        text = value.strip()
        # datetime.fromisoformat of Python 3.10 does not know the military "Z".
        value = datetime.fromisoformat(text[:-1] + "+00:00" if text.endswith(("Z", "z")) else text)
    if value.tzinfo is None:
        value = value.replace(tzinfo=timezone.utc)
    return value.astimezone(timezone.utc)


@asynccontextmanager
async def move_on_after(clock: Clock, seconds: float) -> AsyncIterator[None]:
    """Cancel what is done inside, silently, when it takes longer than ``seconds`` of this clock."""
    async with anyio.create_task_group() as group:

        async def expire() -> None:
            await clock.sleep(seconds)
            group.cancel_scope.cancel()

        group.start_soon(expire, name=f"event_triggers: within {seconds:.0f} s")
        yield
        group.cancel_scope.cancel()
