"""Telling a queue how its messages ended: collected, sent together, tried again when the broker did not hear.

Invariant: what is added is told to a broker's stream and not dropped before :data:`MOST_TRIES` attempts; then its group is
released from waiting for it, and the log says so. A message that the broker was not told of comes again, and is known then.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import Protocol

import anyio

from event_triggers.message import Message
from event_triggers.sources.base import Outcome, Settlement, Stream
from event_triggers.subscription import Handout

__all__ = ["MOST_TRIES", "Settler"]

MOST_TRIES = 3
_LAST_FLUSH = 5.0
"""Seconds that a closing connection may take to tell the broker what is still due."""


class _Teller(Protocol):
    def tell(self, level: int, text: str, *args: object) -> None: ...


@dataclass(slots=True, eq=False)
class _Due:
    message: Message
    outcome: Outcome
    handout: Handout | None
    tries: int = 0

    def done(self) -> None:
        if self.handout is not None:
            for delivery in self.handout.deliveries:
                delivery.settlement_done()


class Settler:
    """What a channel still has to tell its broker."""

    def __init__(self) -> None:
        self._due: list[_Due] = []
        self._something = asyncio.Event()

    def add(self, message: Message, outcome: Outcome, handout: Handout | None = None) -> None:
        """Tell the broker about this message soon."""
        self._due.append(_Due(message, outcome, handout))
        self._something.set()

    async def run(self, stream: Stream, teller: _Teller) -> None:
        """Tell whatever comes, over this stream, for as long as it lives."""
        while True:
            await self._something.wait()
            self._something.clear()
            await self._flush(stream, teller)

    async def _flush(self, stream: Stream, teller: _Teller) -> None:
        due, self._due = self._due, []
        if not due:
            return
        told = False
        try:
            await stream.settle([Settlement(one.message, one.outcome) for one in due])
            told = True
        except Exception as error:
            teller.tell(
                logging.WARNING,
                "the broker could not be told how %d messages ended (%s: %s); the first is %s",
                len(due),
                type(error).__name__,
                error,
                due[0].message,
            )
        finally:
            self._after(due, told)

    def _after(self, due: list[_Due], told: bool) -> None:
        for one in due:
            one.tries += 1
            # Only an acknowledgement is worth repeating: whatever else is not told comes again by itself.
            if told or one.outcome is not Outcome.ACCEPTED or one.tries >= MOST_TRIES:
                one.done()
            else:
                self._due.append(one)
        if self._due:
            self._something.set()

    async def last_flush(self, stream: Stream, teller: _Teller) -> None:
        """The connection closes: tell what is due, in bounded time, whoever is cancelling us."""
        with anyio.move_on_after(_LAST_FLUSH, shield=True):
            await self._flush(stream, teller)

    def give_up(self) -> None:
        """The channel ends: nobody shall wait for what is still due."""
        due, self._due = self._due, []
        for one in due:
            one.done()
