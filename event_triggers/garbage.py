"""Sparing the processes of Airflow long looks for garbage.

Python's collector now and then looks through all objects that it knows, and everything else waits meanwhile. A process
of Airflow has some 300,000 (triggerer) to 700,000 objects (API server) as soon as it has loaded what it needs: 0.3 to
0.6 s each time, and under load it looks every few seconds. They stay as long as the process lives, so there is nothing
to be found among them. Frozen objects are not looked at any more; whatever is made later is, as ever.
"""

from __future__ import annotations

import gc

__all__ = ["freeze_once"]

_frozen = False


def freeze_once() -> None:
    """Freeze what this process has by now; further calls do nothing. It takes no time."""
    global _frozen  # of the process, as what it guards
    if not _frozen:
        _frozen = True
        gc.freeze()
