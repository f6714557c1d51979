"""Telling a waiting group what came nearest to the events that it still misses: now and then, and when its time is up.

Nothing is kept: what came is the hub's to know (:mod:`event_triggers.misses`), and a wait that starts again begins with
the first pause anew.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, repeat

from event_triggers.agenda import Agenda
from event_triggers.subscription import Subscription
from event_triggers.text import plain_logger

__all__ = ["tell_all", "tell_now_and_then"]

log = plain_logger(__name__)

_TELL_AFTER = (60.0, 600.0, 3600.0, 6 * 3600.0)
"""Seconds between two looks at what came nearest; the last one again and again."""
_SHOWN = 5
"""How many misses, the nearest first, are told while waiting, and stand in the error of a sensor whose time is up."""


def tell_now_and_then(subscription: Subscription, agenda: Agenda) -> None:
    """Tell it in the group's log, again and again, until the agenda is closed."""
    _note(subscription, agenda, chain(_TELL_AFTER, repeat(_TELL_AFTER[-1])))


def _note(subscription: Subscription, agenda: Agenda, pauses: Iterator[float]) -> None:
    async def tell() -> None:
        misses = await subscription.misses()
        for text in misses[:_SHOWN]:
            log.info("%s", text)
        if len(misses) > _SHOWN:
            log.info("so it is with %s more; at the deadline each is told", len(misses) - _SHOWN)
        _note(subscription, agenda, pauses)

    agenda.note(next(pauses), "near misses", tell)


async def tell_all(subscription: Subscription) -> list[str]:
    """Warn of each in the group's log, and give what is said of them in an error."""
    misses = await subscription.misses()
    for text in misses:
        log.warning("%s", text)
    more = [f"and {len(misses) - _SHOWN} more in the log"] if len(misses) > _SHOWN else []
    return [*misses[:_SHOWN], *more]
