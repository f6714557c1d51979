"""Ids of asset events that are not there yet, and may still come.

A transaction takes the id of its event when it writes it, and others see the event when it commits. So an event may
become visible after others with higher ids. Ids are taken one by one, so whoever reads them in their order sees a gap
where one is missing. Most gaps are of transactions that were rolled back, or of old events that were deleted: only a
gap before a recent event may still be filled.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Final

__all__ = ["MAY_COME_FOR", "MOST_GAPS", "gaps_between"]

MAY_COME_FOR: Final = timedelta(hours=1)
"""The longest that a transaction may take to commit its event."""
MOST_GAPS: Final = 1_000
"""How many gaps are looked after, and how wide one may be: the newest ids."""


def gaps_between(after: int, rows: Iterable[tuple[int, datetime]], now: datetime) -> tuple[int, list[int]]:
    """The id behind these rows, and the missing ids before it that may still come.

    :param after: the first id that can be among them.
    :param rows: id and time stamp of each event there is from ``after`` on, in the order of ids.
    """
    gaps: list[int] = []
    for identity, stamp in rows:
        if identity > after and now - stamp < MAY_COME_FOR:
            gaps += range(max(after, identity - MOST_GAPS), identity)
        after = max(after, identity + 1)
    return after, gaps[-MOST_GAPS:]
