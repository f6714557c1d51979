"""How many requests a hook takes: a bucket for each, which fills as time goes by."""

from __future__ import annotations

import math

__all__ = ["Rates"]

_MOST = 10_000


class Rates:
    """Counts in this process; another process of the API server counts for itself. A restart begins with full buckets.

    A bucket holds what comes in a second, and one request at least.
    """

    def __init__(self) -> None:
        self._buckets: dict[str, tuple[float, float]] = {}

    def take(self, name: str, per_second: float, now: float) -> int | None:
        """Count one request; ``None`` when it is welcome, else after how many whole seconds one is.

        :param now: seconds from any point, never going back.
        """
        most = max(per_second, 1.0)
        held, at = self._buckets.pop(name, (most, now))
        held = min(most, held + (now - at) * per_second)
        welcome = held >= 1.0
        self._buckets[name] = (held - 1.0 if welcome else held, now)
        if len(self._buckets) > _MOST:
            # The one not asked for longest; it is full again by now.
            del self._buckets[next(iter(self._buckets))]
        return None if welcome else max(1, math.ceil((1.0 - held) / per_second))
