"""Parts for tests: a broker in memory with two sources, a ledger in memory, and a clock that the test turns.

The suite that every source passes is in :mod:`event_triggers.testing.conformance`, which needs pytest-asyncio to run.
"""

from event_triggers.testing.broker import MemoryBroker, MemoryStatistics
from event_triggers.testing.clock import ManualClock
from event_triggers.testing.ledger import LedgerEntry, MemoryLedger
from event_triggers.testing.memory import MemoryLog, MemoryQueue, MemorySource

__all__ = [
    "LedgerEntry",
    "ManualClock",
    "MemoryBroker",
    "MemoryLedger",
    "MemoryLog",
    "MemoryQueue",
    "MemorySource",
    "MemoryStatistics",
]
