"""Which partitions of a Kafka stream nobody answers for, and since when."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

from event_triggers.errors import StreamError

__all__ = ["Silence"]


class Silence:
    """Who has not answered for how long, in time that was spent waiting.

    :param limit: seconds.
    :param tell: writes into the logs of those who listen.
    """

    def __init__(self, limit: float, label: str, tell: Callable[..., None]) -> None:
        self._limit = limit
        self._tell = tell
        self._label = label
        self._waited = 0.0
        self._last: dict[str, tuple[object, float]] = {}
        self._told: set[str] = set()

    def restart(self) -> None:
        """Other partitions from now on."""
        self._last.clear()
        self._told.clear()

    def listen(self, signs: Mapping[str, object], waited: float) -> None:
        """Look at a sign of life of each, after another wait.

        :raises StreamError: when none has shown a new one for too long.
        """
        self._waited += waited
        for name, sign in signs.items():
            if name not in self._last or self._last[name][0] != sign:
                self._last[name] = (sign, self._waited)
        quiet = {name for name in signs if self._waited - self._last[name][1] > self._limit}
        if quiet and len(quiet) == len(signs):
            raise StreamError(f"{self._label}: no broker has answered for {self._limit:.0f} s")
        for name in sorted(quiet - self._told):
            text = "%s: no broker answers for partition %s; its messages have to wait"
            self._tell(logging.WARNING, text, self._label, name)
        for name in sorted(self._told - quiet):
            self._tell(logging.INFO, "%s: partition %s is answered for again", self._label, name)
        self._told = quiet
