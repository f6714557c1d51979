"""The short form of the burst: 500 groups lose nothing, and memory stays bounded. How fast, the long form tells."""

from __future__ import annotations

import pytest

from event_triggers.load import MOST_UNANSWERED
from tests.chaos.burst import MOST_GROWTH, Burst, run
from tests.integration.kafka_support import shared_kafka


async def test_nothing_is_lost_in_a_burst_that_nobody_wants(request: pytest.FixtureRequest) -> None:
    kafka = shared_kafka(request.config)
    report = await run(Burst(messages=20_000, groups=500, events=3), kafka.direct, await kafka.topic(partitions=3))
    print(report.measured)
    assert (report.lost, report.duplicated, report.wrong) == ([], [], [])
    assert report.unanswered_most <= MOST_UNANSWERED
    assert report.memory_most - report.memory_before < MOST_GROWTH
    assert report.lags, "nobody has looked at the event loop"
