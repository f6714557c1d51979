"""The suite that every source passes, on memory and on its real broker.

A test module gives a fixture ``harness`` (a :class:`BrokerHarness`) and a class that inherits :class:`LogConformance`
or :class:`QueueConformance`::

    @pytest.fixture
    async def harness():
        async with my_broker() as broker:
            yield MyHarness(broker)

    class TestMySource(QueueConformance):
        pass

It needs pytest-asyncio with ``asyncio_mode = "auto"``. For readable failures put
``pytest.register_assert_rewrite("event_triggers.testing.conformance")`` into a conftest.
"""

from event_triggers.testing.conformance.common import SourceConformance
from event_triggers.testing.conformance.harness import BrokerHarness, Reader, reading
from event_triggers.testing.conformance.logs import LogConformance
from event_triggers.testing.conformance.queues import QueueConformance

__all__ = ["BrokerHarness", "LogConformance", "QueueConformance", "Reader", "SourceConformance", "reading"]
