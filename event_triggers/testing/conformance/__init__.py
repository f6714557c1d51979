"""The suite that every source passes, on memory and on its real broker.

A test module gives a fixture ``harness`` (a :class:`BrokerHarness`) and a class that inherits :class:`LogConformance`
or :class:`QueueConformance`::

    @pytest.fixture
    async def harness():
        async with my_broker() as broker:
            yield MyHarness(broker)

    class TestMySource(QueueConformance):
        pass

It needs pytest. With pytest-asyncio, in whichever mode, fixtures may be asynchronous; without it this package's plugin
runs the tests. A failure is a :class:`ContractBrokenError`, which says the rule, what was seen, and where to look.
"""

from event_triggers.testing.conformance.common import SourceConformance
from event_triggers.testing.conformance.harness import BrokerHarness, Reader, reading
from event_triggers.testing.conformance.logs import LogConformance
from event_triggers.testing.conformance.queues import QueueConformance
from event_triggers.testing.conformance.rules import ContractBrokenError

__all__ = [
    "BrokerHarness",
    "ContractBrokenError",
    "LogConformance",
    "QueueConformance",
    "Reader",
    "SourceConformance",
    "reading",
]
