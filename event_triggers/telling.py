"""Writing into the task logs of all groups that listen to one channel.

A few groups are told at once. Of a crowd, some are told in each turn of the event loop: a line in one group's log takes
tens of microseconds, hundreds of lines would hold the loop. What is told stays in order; a group that has left before
its turn is not told. Nothing survives a restart.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Collection

from event_triggers.subscription import Subscription
from event_triggers.text import plain_logger

__all__ = ["AT_ONCE", "Telling"]

log = plain_logger(__name__)

AT_ONCE = 32
"""How many logs are written in one turn of the event loop."""


class Telling:
    """Tells whoever listens.

    :param listeners: those who listen now, kept up to date by the owner.
    """

    def __init__(self, listeners: Collection[Subscription]) -> None:
        self._listeners = listeners
        self._due: deque[tuple[deque[Subscription], int, str, tuple[object, ...]]] = deque()

    def tell(self, level: int, text: str, *args: object) -> None:
        """Write into the task log of every group that listens; into the process's own when none does."""
        if not self._listeners:
            log.log(level, text, *args)
            return
        waiting = bool(self._due)
        self._due.append((deque(self._listeners), level, text, args))
        if not waiting:
            self._go_on()

    def _go_on(self) -> None:
        try:
            for _ in range(AT_ONCE):
                if not self._due:
                    return
                left, level, text, args = self._due[0]
                subscription = left.popleft()
                if not left:
                    self._due.popleft()
                if subscription in self._listeners:
                    subscription.tell(level, text, *args)
        finally:
            # Also when somebody's log has failed: the others' lines are not lost with it.
            if self._due:
                asyncio.get_running_loop().call_soon(self._go_on)
