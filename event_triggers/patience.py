"""Asking Airflow until it does not refuse, and telling the group's log why it takes so long.

Invariants: what Airflow refuses is asked again every :data:`ASK_AGAIN` seconds for as long as the caller waits; the log
says it once per reason.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar

from event_triggers.clock import Clock
from event_triggers.errors import AirflowApiError

__all__ = ["ASK_AGAIN", "Patience"]

ASK_AGAIN = 30.0
"""Seconds until something that Airflow refused is tried again."""

T = TypeVar("T")


class Patience:
    """One group's patience with Airflow.

    :param tell: writes into the group's task log, with a level.
    """

    __slots__ = ("_clock", "_said", "_tell", "_troubles")

    def __init__(self, clock: Clock, tell: Callable[[int, str], None]) -> None:
        self._clock = clock
        self._tell = tell
        self._said: dict[object, None] = {}
        self._troubles: dict[object, str] = {}

    @property
    def trouble(self) -> str | None:
        """What is refused at the moment."""
        return next(iter(self._troubles.values()), None)

    async def call(self, call: Callable[[], Awaitable[T]]) -> T:
        """Call until Airflow does not refuse: a right may be granted, a marker may still be expanded."""
        try:
            while True:
                try:
                    return await call()
                except AirflowApiError as error:
                    self._troubles[call] = str(error)
                    # A right that is missing is missing for every marker; the log says it once.
                    about = error.status if error.status in (401, 403) else str(error)
                    self.say(f"{error}. Tried again every {ASK_AGAIN:.0f} s; nothing is acknowledged meanwhile.", about)
                await self._clock.sleep(ASK_AGAIN)
        finally:
            self._troubles.pop(call, None)

    def say(self, text: str, about: object = None, *, level: int = logging.ERROR) -> None:
        """Write this into the group's log, once; what it is ``about`` tells one reason from another."""
        about = text if about is None else about
        if about not in self._said:
            self._said[about] = None
            self._tell(level, text)
