"""Telling a queue how its messages ended: collected, sent together, tried again when the broker did not hear.

Invariants:

* What is added is told to a stream. Acknowledgements are tried :data:`MOST_TRIES` times, on the next stream if need be;
  other outcomes once, because what is not told comes again by itself.
* :attr:`Due.done` is called exactly once for whatever is added, with whether the broker was told: when it was, or when
  that is given up.

A message that the broker was not told of comes again; the fan-out knows it then and acknowledges it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass

import anyio

from event_triggers.backoff import Backoff
from event_triggers.clock import Clock
from event_triggers.message import Message
from event_triggers.sources.base import Outcome, Settlement, Stream

__all__ = ["MOST_TRIES", "Due", "Settler"]

MOST_TRIES = 3
"""How often a broker is asked to acknowledge the same message."""

SETTLE_WITHIN = 30.0
"""Seconds that one call to the broker may take."""

_LAST_FLUSH = 5.0
"""Seconds that a closing connection may take to tell the broker what is still due."""


@dataclass(slots=True, eq=False)
class Due:
    """One message that the broker is to be told of."""

    message: Message
    outcome: Outcome
    done: Callable[[bool], None]
    tries: int = 0


class Settler:
    """What a channel still has to tell its broker.

    :param label: the stream, for logs.
    :param tell: writes into the logs of those whom it concerns.
    :param clock: the time to go by.
    """

    def __init__(self, label: str, tell: Callable[..., None], clock: Clock) -> None:
        self._label = label
        self._tell = tell
        self._clock = clock
        self._due: list[Due] = []
        self._something = asyncio.Event()
        self._over = False

    def add(self, message: Message, outcome: Outcome, done: Callable[[bool], None]) -> None:
        """Tell the broker about this message soon, and call ``done`` when it needs no more care: was it told?"""
        if self._over:
            done(False)
            return
        self._due.append(Due(message, outcome, done))
        self._something.set()

    async def run(self, stream: Stream) -> None:
        """Tell whatever comes, over this stream, for as long as it lives."""
        backoff = Backoff(most=5.0)
        while True:
            if not self._due:
                self._something.clear()
                await self._something.wait()
            if await self._flush(stream):
                backoff.reset()
            else:
                await self._clock.sleep(backoff.next())

    async def last_flush(self, stream: Stream) -> None:
        """The connection closes: tell what is due, in bounded time, whoever is cancelling us."""
        with anyio.move_on_after(_LAST_FLUSH, shield=True):
            await self._flush(stream, counts=False)

    def give_up(self) -> None:
        """The channel ends: nobody shall wait for what is still due."""
        self._over = True
        due, self._due = self._due, []
        for one in due:
            one.done(False)

    async def _flush(self, stream: Stream, *, counts: bool = True) -> bool:
        """Tell all that is due; ``False`` when the broker did not hear.

        :param counts: whether a failure is one of the tries.
        """
        due, self._due = self._due, []
        if not due:
            return True
        try:
            with anyio.fail_after(SETTLE_WITHIN):
                unheard = await stream.settle([Settlement(one.message, one.outcome) for one in due]) or ()
        except Exception as error:
            self._failed(due, error, counts)
            return False
        except BaseException:
            # Cancelled: whether the broker has heard is unknown, and settling twice is harmless.
            self._due = due + self._due
            raise
        for one in due:
            one.done(one.message.id not in unheard)
        return True

    def _failed(self, due: list[Due], error: Exception, counts: bool) -> None:
        for one in due:
            one.tries += counts
        again = [one for one in due if one.outcome is Outcome.ACCEPTED and one.tries < MOST_TRIES]
        over = [one for one in due if one.outcome is not Outcome.ACCEPTED or one.tries >= MOST_TRIES]
        self._tell(
            logging.WARNING,
            "%s: the broker could not be told how %d messages ended (%s: %s); the first is %s; %s",
            self._label,
            len(due),
            type(error).__name__,
            str(error) or "no answer in time",
            due[0].message,
            f"{len(again)} will be told again, {len(over)} will be delivered again",
        )
        self._due = again + self._due
        for one in over:
            one.done(False)
