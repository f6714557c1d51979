"""Sparing the processes of Airflow long looks for garbage.

Python's collector now and then looks through all objects that it knows, and everything else waits meanwhile. A process
of Airflow has some 300,000 (triggerer) to 700,000 objects (API server) as soon as it has loaded what it needs: 0.3 to
0.6 s each time, and under load it looks every few seconds. They stay as long as the process lives, so there is nothing
to be found among them. Frozen objects are not looked at any more; whatever is made later is, as ever.

It looks for the youngest garbage whenever 700 objects more were made than were freed, which one batch of messages does
several times; what is still being worked on then counts as old, and soon all that is old is looked through. With a
higher number a batch comes and goes unnoticed: its objects are freed when they are done with, as nearly all are.
"""

from __future__ import annotations

import gc

__all__ = ["calm_collector"]

_YOUNGEST = 10_000
_calmed = False


def calm_collector() -> None:
    """Freeze what this process has by now, and let the collector look less often; further calls do nothing.

    It takes no time. A collector that was switched off, or looks even less often, stays as it is.
    """
    global _calmed  # of the process, as what it guards
    if _calmed:
        return
    _calmed = True
    gc.freeze()
    youngest, *others = gc.get_threshold()
    if 0 < youngest < _YOUNGEST:
        gc.set_threshold(_YOUNGEST, *others)
