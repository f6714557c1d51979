"""Deliveries of one AMQP stream that nobody wants, kept for a while before they are requeued.

Flow: released -> parked -> due, or a further group listens -> requeued. They belong to their stream's connection; when
that breaks, the broker delivers them again by itself, and nothing is kept.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any, Final

from event_triggers.clock import Clock

__all__ = ["Parked"]

_MOST: Final = 5000
_LOOK_EVERY: Final = 0.5


class Parked:
    """What is parked, and until when."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._until: dict[Any, float] = {}

    def add(self, raw: Any, pause: float) -> bool:
        """Keep a delivery for so many seconds, without its body; ``False`` when it is not to be kept."""
        if pause <= 0 or len(self._until) >= _MOST:
            return False
        raw.body = b""
        self._until[raw] = self._clock.monotonic() + pause
        return True

    def count(self, consumer: str | None) -> int:
        """How many deliveries to this consumer are parked."""
        return sum(raw.consumer_tag == consumer for raw in self._until)

    async def requeue(self, due_by: float = float("inf")) -> None:
        """Requeue those that are due by this moment, by default all."""
        for raw in [raw for raw, until in self._until.items() if until <= due_by]:
            if self._until.pop(raw, None) is not None:
                await raw.nack(requeue=True)

    async def requeue_in_time(self) -> None:
        """Requeue what was parked long enough, for as long as the stream lives."""
        while True:
            await self._clock.sleep(_LOOK_EVERY)
            with suppress(Exception):  # a broken connection is told where messages are asked for
                await self.requeue(self._clock.monotonic())
