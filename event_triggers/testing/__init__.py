"""Parts for tests: of DAGs with event groups, of sources, and of this package itself.

:func:`run_dag` and :func:`run_group` run a DAG, or one group of it, on a list of messages. A broker in memory with two
sources, a ledger in memory, and a clock that the test turns are what they are made of.

The suite that every source passes is in :mod:`event_triggers.testing.conformance`, which needs pytest and
pytest-asyncio to run.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from event_triggers.testing.broker import MemoryBroker, MemoryStatistics
from event_triggers.testing.clock import ManualClock
from event_triggers.testing.ledger import LedgerEntry, MemoryLedger
from event_triggers.testing.memory import MemoryLog, MemoryQueue, MemorySource

if TYPE_CHECKING:
    from event_triggers.testing.dags import run_dag, run_group
    from event_triggers.testing.results import GroupResult, RunResult
    from event_triggers.testing.sent import Sent

__all__ = [
    "GroupResult",
    "LedgerEntry",
    "ManualClock",
    "MemoryBroker",
    "MemoryLedger",
    "MemoryLog",
    "MemoryQueue",
    "MemorySource",
    "MemoryStatistics",
    "RunResult",
    "Sent",
    "run_dag",
    "run_group",
]

_HOMES = {"GroupResult": "results", "RunResult": "results", "Sent": "sent", "run_dag": "dags", "run_group": "dags"}


def __getattr__(name: str) -> Any:
    # Lazily: these import the offline tester, which imports the parts above.
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value
