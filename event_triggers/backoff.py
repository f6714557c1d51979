"""Growing pauses between attempts."""

from __future__ import annotations

import random

__all__ = ["Backoff"]


class Backoff:
    """Pauses that double from ``first`` to ``most`` seconds, each shortened by a random part of up to a third.

    The random part keeps many clients of one broken server from coming back in step.
    """

    def __init__(self, *, first: float = 0.5, most: float = 30.0) -> None:
        self._first = first
        self._most = most
        self._next = first
        self.attempts = 0

    def next(self) -> float:
        """The length of the next pause in seconds."""
        self.attempts += 1
        pause, self._next = self._next, min(self._next * 2, self._most)
        return pause * (1 - random.random() / 3)  # noqa: S311 - spreads load, guards nothing

    def reset(self) -> None:
        """It works again: the next pause is the first one."""
        self._next = self._first
        self.attempts = 0
